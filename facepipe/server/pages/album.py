"""An album of chosen people, to be downloaded."""

from __future__ import annotations

import asyncio

from litestar import Router, get
from litestar.response import Stream, Template

from facepipe.core.errors import PhotoError
from facepipe.library.album import album_file, album_photos
from facepipe.server.errors import RefusedError, not_found
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.photos import Names
from facepipe.server.pages.views import shown_people


@get("/album")
async def album_page(library_thread: LibraryThread) -> Template:
    """Ask who is to be in the album."""
    people = await library_thread.run(lambda library: shown_people(library, "", hidden=False))
    return Template("album.html", context={"people": people})


@get("/album.zip")
async def album(library_thread: LibraryThread, person: Names = None) -> Stream:
    """Return the album of people who are in photos, each of them."""
    if not person:
        raise RefusedError(400, "nobody", "choose at least one person")
    photos = await library_thread.run(lambda library: album_photos(library, person))
    missing = sorted(set(person).difference(*(photo.names for photo in photos)))
    if missing:
        listed = ", ".join(map(repr, missing))
        raise not_found(f"no photo shows {listed}: choose people as the page lists them")
    try:
        pieces = await asyncio.to_thread(album_file, photos)
    except PhotoError as error:
        message = f"the album would be empty, as none of its photos can be read: {error}"
        raise RefusedError(422, "photo", message) from error
    headers = {"Content-Disposition": 'attachment; filename="album.zip"'}
    return Stream(pieces, media_type="application/zip", headers=headers)


album_router = Router("/", route_handlers=[album_page, album])
