"""An album to give away: a zip file with a page and photos of chosen people, and nothing else about them.

It has the chosen names, and photos that were made anew from their pixels. It has no paths, no file names, no
dates, no places, no vectors, and nothing of other people but that they are in the photos.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from facepipe.core.counting import counted
from facepipe.core.errors import PhotoError
from facepipe.core.overwriting import GENERATOR
from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.models import LibraryPhoto
from facepipe.library.photo_files import large_photo

_SMALL_PX = 320
_PAGE = "album/index.html"
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 0 0 2rem }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .7rem }
ul { padding: 0; list-style: none }
img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: cover; border-radius: .6rem }
"""


@dataclass(frozen=True, slots=True)
class AlbumPhoto:
    """A photo of an album, and who of the chosen people is in it."""

    photo: LibraryPhoto
    names: tuple[str, ...]


def album_photos(library: Library, names: Collection[str]) -> list[AlbumPhoto]:
    """Return the photos with any of these people, in the order in which they were taken."""
    chosen = []
    for photo in sorted(library.photos.values(), key=lambda photo: (photo.taken_at or "", photo.id)):
        inside = {library.faces[id].name for id in photo.face_ids} & set(names)
        if inside:
            chosen.append(AlbumPhoto(photo, tuple(sorted(filter(None, inside), key=str.casefold))))
    return chosen


def album_file(photos: Sequence[AlbumPhoto]) -> Iterator[bytes]:
    """Return the pieces of a zip file, each made when it is asked for.

    Photos that can't be read any more, or have changed since they were analyzed, are left out and counted on
    its page.

    Raises:
        PhotoError: All photos would be left out; that of the first.
    """
    unread: list[tuple[AlbumPhoto, PhotoError]] = []
    made = _made(photos, unread)
    first = next(made, None)
    if first is None and unread:
        raise unread[0][1]
    return _pieces(made if first is None else chain([first], made), unread)


@dataclass(frozen=True, slots=True)
class _Made:
    """A photo of an album, and the pictures of it, as JPEG."""

    photo: AlbumPhoto
    large: bytes
    small: bytes


def _made(photos: Iterable[AlbumPhoto], unread: list[tuple[AlbumPhoto, PhotoError]]) -> Iterator[_Made]:
    """Yield the photos that can be read; the others are added to `unread`."""
    for photo in photos:
        try:
            yield _Made(photo, large_photo(photo.photo), large_photo(photo.photo, _SMALL_PX))
        except PhotoError as error:
            unread.append((photo, error))


def _pieces(photos: Iterable[_Made], unread: Sequence[tuple[AlbumPhoto, PhotoError]]) -> Iterator[bytes]:
    pipe = _Pipe()
    written: list[tuple[str, AlbumPhoto]] = []
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as album:
        for number, made in enumerate(photos, 1):
            name = f"{number:05d}.jpg"
            album.writestr(_entry(f"album/photos/{name}"), made.large)
            album.writestr(_entry(f"album/small/{name}"), made.small)
            written.append((name, made.photo))
            yield pipe.take()
        album.writestr(_entry(_PAGE), _page(written, [photo for photo, _ in unread]))
    yield pipe.take()


class _Pipe(io.RawIOBase):
    """A stream that can only be written, and gives away what was."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Keep a piece."""
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry without the time at which it was made."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def _page(photos: Sequence[tuple[str, AlbumPhoto]], left_out: Sequence[AlbumPhoto]) -> str:
    everyone = chain((photo for _, photo in photos), left_out)
    names = sorted({name for photo in everyone for name in photo.names}, key=str.casefold)
    links = "".join(f'<a href="#p{at}">{_text(name)}</a>\n' for at, name in enumerate(names))
    sections = "".join(_section(at, name, photos, left_out) for at, name in enumerate(names))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file:; "
        "style-src 'unsafe-inline'\">\n"
        f"<title>Album</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>Album</h1>\n"
        f"<nav>\n{links}</nav>\n{sections}</body></html>\n"
    )


def _section(
    at: int, name: str, photos: Sequence[tuple[str, AlbumPhoto]], left_out: Sequence[AlbumPhoto]
) -> str:
    own = [(file, photo) for file, photo in photos if name in photo.names]
    items = "".join(
        f'<li><a href="photos/{file}"><img src="small/{file}" alt="{_text(", ".join(photo.names))}" '
        'loading="lazy"></a></li>\n'
        for file, photo in own
    )
    missing = sum(name in photo.names for photo in left_out)
    count = counted(len(own), "photo") + (f", {missing} more could not be read" if missing else "")
    return f'<h2 id="p{at}">{_text(name)}</h2>\n<p>{count}</p>\n<ul>\n{items}</ul>\n'


def _text(text: str) -> str:
    return escape(visible(text))
