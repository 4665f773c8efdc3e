"""People, and the faces of one."""

from __future__ import annotations

from litestar import Router, get
from litestar.response import Redirect, Template

from facepipe.library.library import Library
from facepipe.library.models import PersonSummary
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.requests import Offset, as_part
from facepipe.server.pages.views import (
    PersonView,
    Portion,
    names,
    people,
    person_view,
    portion,
    shown_people,
)


@get("/people")
async def people_page(
    library_thread: LibraryThread, text: str = "", hidden: bool = False, gone: str = "", offset: Offset = 0
) -> Template:
    """Show the people with their best faces; from an offset on, only further tiles."""

    def view(library: Library) -> tuple[Portion[PersonSummary], int]:
        shown = portion(shown_people(library, text, hidden=hidden), offset)
        return shown, sum(person.is_hidden for person in people.of(library))

    part, hidden_count = await library_thread.run(view)
    context = {"part": part, "text": text, "hidden": hidden, "hidden_count": hidden_count, "gone": gone}
    return Template("people_part.html" if offset else "people.html", context=context)


@get("/person")
async def person_page(library_thread: LibraryThread, name: str, offset: Offset = 0) -> Template | Redirect:
    """Show a person's faces, the most doubtful first; from an offset on, only further tiles.

    Where nobody has this name (any more), the people are shown.
    """
    view: PersonView | None = await library_thread.run(lambda library: person_view(library, name, offset))
    if view is None:
        return Redirect("/review/people", query_params={"gone": name})
    if offset:
        return as_part(view.faces)
    return Template("person.html", context={"view": view, "person": view.person})


@get("/names")
async def all_names(library_thread: LibraryThread) -> list[str]:
    """Return the names of all people, to be offered where one is typed."""
    return await library_thread.run(names)


people_router = Router("/", route_handlers=[people_page, person_page, all_names])
