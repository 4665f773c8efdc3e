"""Changes, and taking them back."""

from __future__ import annotations

from litestar import Router, get, post
from litestar.response import Template
from msgspec import Struct

from facepipe.core.counting import counted
from facepipe.library.advice import right_share, threshold_advice
from facepipe.library.library import Library
from facepipe.library.models import Checked, Step
from facepipe.server.pages.changes import AnyChange, Name
from facepipe.server.pages.library_thread import LibraryThread

_STEPS_KEPT = 1000


class Done(Struct):
    """What was done.

    Attributes:
        label: In words; None: there was nothing to do.
        step: Number of the step that can be taken back; None: it can't be.
    """

    label: str | None
    step: int | None = None


class UndoRequest(Struct):
    """How far to go back.

    Attributes:
        to: The oldest step to take back, and with it all later ones; None: the last one.
    """

    to: int | None = None


class EraseRequest(Struct):
    """Whom to erase."""

    name: Name


@post("/changes", status_code=200)
async def change(library_thread: LibraryThread, data: AnyChange) -> Done:
    """Make a change; it is durable when this is answered."""
    step = await library_thread.run(data.apply)
    return Done(step.label, step.id)


@post("/undo", status_code=200)
async def undo(library_thread: LibraryThread, data: UndoRequest) -> Done:
    """Take the last step back, or all down to one."""
    undone: Step | None = await library_thread.run(lambda library: _undo(library, data.to))
    return Done(None if undone is None else undone.label)


def _undo(library: Library, to: int | None) -> Step | None:
    """Take the last step back, or all down to one; nothing where that was taken back before."""
    if to is None:
        return library.undo()
    ids = [step.id for step in library.steps(_STEPS_KEPT) if not step.is_undone]
    undone = None
    for _ in ids[: ids.index(to) + 1] if to in ids else ():
        undone = library.undo()
    return undone


@post("/erase", status_code=200)
async def erase(library_thread: LibraryThread, data: EraseRequest) -> Done:
    """Erase a person; can't be undone."""
    photo_count = await library_thread.run(lambda library: library.erase(data.name))
    return Done(f"{data.name} is erased, in {photo_count} photos")


@post("/sidecars", status_code=200)
async def write_sidecars(library_thread: LibraryThread) -> Done:
    """Write the names into XMP sidecars beside the photos."""
    failed = await library_thread.run(lambda library: library.write_results(sidecars=True))
    more = f"; {counted(failed, 'file')} could not be written: the terminal shows why" if failed else ""
    return Done(f"Names are written beside the photos{more}")


@get("/history")
async def history_page(library_thread: LibraryThread) -> Template:
    """Show the last steps."""
    steps = await library_thread.run(lambda library: library.steps(_STEPS_KEPT))
    return Template("history.html", context={"steps": steps})


@get("/checked")
async def checked_page(library_thread: LibraryThread) -> Template:
    """Show how many names were right, of those that were checked."""

    counts = await library_thread.run(lambda library: library.checked_by_name())
    rows = sorted(counts.items(), key=lambda row: (-row[1].wrong, row[0].casefold()))
    total = Checked(sum(own.right for own in counts.values()), sum(own.wrong for own in counts.values()))
    return Template("checked.html", context={"all": total, "share": right_share(total), "rows": rows})


@get("/advice")
async def advice_part(library_thread: LibraryThread) -> Template:
    """Show what the answers tell about thresholds."""
    advice = await library_thread.run(threshold_advice)
    return Template(
        "advice_part.html", context={"advice": [own for own in advice if own.best_l2 is not None]}
    )


class LibraryState(Struct):
    """The state of the library.

    Attributes:
        version: Grows with every change.
        photos_left: Photos that are still to be named again.
        is_read_only: Another process works with it.
    """

    version: int
    photos_left: int
    is_read_only: bool


@get("/state")
async def state(library_thread: LibraryThread) -> LibraryState:
    """Return the state of the library."""
    thread = library_thread
    return LibraryState(thread.version, thread.photos_left, thread.is_read_only)


history_router = Router(
    "/", route_handlers=[change, undo, erase, write_sidecars, history_page, checked_page, advice_part, state]
)
