"""Photos, and the faces of one."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from litestar import Router, get
from litestar.params import Parameter
from litestar.response import Template

from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.models import LibraryPhoto
from facepipe.server.errors import RefusedError, not_found
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.photo_list import Order, PhotoFilter, Show, folders, photo_tiles
from facepipe.server.pages.requests import Offset
from facepipe.server.pages.views import faces_of_photo, names

Names = Annotated[list[str] | None, Parameter()]


@get("/photos")
async def photos_page(
    library_thread: LibraryThread,
    person: Names = None,
    without: Names = None,
    folder: str = "",
    since: str = "",
    until: str = "",
    show: Show = "all",
    order: Order = "date",
    offset: Offset = 0,
) -> Template:
    """Show the photos that fulfil all that is asked for; from an offset on, only further tiles."""
    wanted = PhotoFilter(
        _given(person), _given(without), folder, _day(since), _day(until), show=show, order=order
    )

    def view(library: Library) -> dict[str, Any]:
        part = {"part": photo_tiles(library, wanted, offset), "wanted": wanted}
        return part if offset else {**part, "folders": folders(library), "names": names(library)}

    context = await library_thread.run(view)
    return Template("photos_part.html" if offset else "photos.html", context=context)


def _given(values: list[str] | None) -> tuple[str, ...]:
    """Return what a form's fields hold; a field that was left empty holds an empty text."""
    return tuple(value for value in values or () if value)


def _day(text: str) -> date | None:
    """Return the day of a form's field; None: it was left empty. Raises: RefusedError."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise RefusedError(400, "day", f"expected a day such as 2019-07-31, got {text!r:.40}") from error


@get("/photo")
async def photo_page(library_thread: LibraryThread, id: int) -> Template:
    """Show a photo with its faces, and why they have their names."""

    def view(library: Library) -> dict[str, Any]:
        photo = photo_of(library, id)
        boxes = {face_id: library.faces[face_id].box_xyxy for face_id in photo.face_ids}
        path = visible(str(photo.path))
        return {"photo": photo, "path": path, "faces": faces_of_photo(library, photo), "boxes": boxes}

    return Template("photo.html", context=await library_thread.run(view))


def photo_of(library: Library, id: int) -> LibraryPhoto:
    """Return a photo. Raises: RefusedError."""
    photo = library.photos.get(id)
    if photo is None:
        raise not_found(f"the library has no photo {id}")
    return photo


photos_router = Router("/", route_handlers=[photos_page, photo_page])
