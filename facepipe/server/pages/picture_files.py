"""Pictures as files: thumbnails, close-ups, photos. Only those of the library; a path is never taken."""

from __future__ import annotations

from litestar import Response, Router, get
from litestar.concurrency import sync_to_thread

from facepipe.core.errors import PhotoError
from facepipe.images.small_pictures import media_type_of
from facepipe.library.photo_files import close_up, large_photo, media_type, original
from facepipe.server.errors import not_found
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.photos import photo_of

_SMALL_PX = 224
_KEPT = {"Cache-Control": "private, max-age=3600"}


@get("/faces/{face_id:str}")
async def face_picture(library_thread: LibraryThread, face_id: str) -> Response[bytes]:
    """Return the thumbnail of a face."""
    return _picture(await library_thread.run(lambda library: library.picture(library.face(face_id).id)))


@get("/photos/{photo_id:int}/small")
async def small_photo(library_thread: LibraryThread, photo_id: int) -> Response[bytes]:
    """Return the thumbnail of a photo."""
    photo = await library_thread.run(lambda library: photo_of(library, photo_id))
    kept = await library_thread.run(lambda library: library.preview(photo_id))
    if kept is not None:
        return _picture(kept)
    try:  # there is none of a photo without faces
        return _picture(await sync_to_thread(large_photo, photo, _SMALL_PX))
    except PhotoError as error:
        raise not_found(str(error)) from error


@get("/faces/{face_id:str}/large")
async def large_face(library_thread: LibraryThread, face_id: str) -> Response[bytes]:
    """Return a face cut from its photo; its thumbnail where the photo can't be read."""
    face = await library_thread.run(lambda library: library.face(face_id))
    photo = await library_thread.run(lambda library: library.photos[face.photo_id])
    try:
        return _picture(await sync_to_thread(close_up, photo, face.box_xyxy))
    except PhotoError:
        return _picture(await library_thread.run(lambda library: library.picture(face.id)))


@get("/photos/{photo_id:int}/large")
async def photo_picture(library_thread: LibraryThread, photo_id: int) -> Response[bytes]:
    """Return a photo in a size and form that every browser shows; its thumbnail where it can't be read."""
    photo = await library_thread.run(lambda library: photo_of(library, photo_id))
    try:
        return _picture(await sync_to_thread(large_photo, photo))
    except PhotoError:
        return _picture(await library_thread.run(lambda library: library.preview(photo_id)))


@get("/photos/{photo_id:int}/original")
async def original_photo(library_thread: LibraryThread, photo_id: int) -> Response[bytes]:
    """Return the file of a photo as it is."""
    photo = await library_thread.run(lambda library: photo_of(library, photo_id))
    try:
        content = await sync_to_thread(original, photo)
    except PhotoError as error:
        raise not_found(str(error)) from error
    return Response(content, media_type=media_type(photo), headers={"Content-Disposition": "inline"})


def _picture(content: bytes | None) -> Response[bytes]:
    if content is None:
        raise not_found("there is no picture of it")
    return Response(content, media_type=media_type_of(content), headers=_KEPT)


pictures_router = Router(
    "/pictures", route_handlers=[face_picture, small_photo, large_face, photo_picture, original_photo]
)
