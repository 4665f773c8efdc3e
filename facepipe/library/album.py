"""An album to give away: a zip file with a page and photos of chosen people, and nothing else about them.

It has the chosen names, and photos that were made anew from their pixels. It has no paths, no file names, no
dates, no places, no vectors, and nothing of other people but that they are in the photos.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape

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
    """Yield a zip file, piece by piece, as its photos are made.

    Photos that can't be read any more, or have changed since they were analyzed, are left out.
    """
    pipe = _Pipe()
    written: list[tuple[str, AlbumPhoto]] = []
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as album:
        for photo in photos:
            name = f"{len(written) + 1:05d}.jpg"
            if _add_photo(album, photo.photo, name):
                written.append((name, photo))
            yield pipe.take()
        album.writestr(_entry(_PAGE), _page(written))
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


def _add_photo(album: zipfile.ZipFile, photo: LibraryPhoto, name: str) -> bool:
    try:
        large, small = large_photo(photo), large_photo(photo, _SMALL_PX)
    except PhotoError:
        return False
    album.writestr(_entry(f"album/photos/{name}"), large)
    album.writestr(_entry(f"album/small/{name}"), small)
    return True


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry without the time at which it was made."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def _page(photos: Sequence[tuple[str, AlbumPhoto]]) -> str:
    names = sorted({name for _, photo in photos for name in photo.names}, key=str.casefold)
    links = "".join(f'<a href="#p{at}">{_text(name)}</a>\n' for at, name in enumerate(names))
    sections = "".join(_section(at, name, photos) for at, name in enumerate(names))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self' file:; "
        "style-src 'unsafe-inline'\">\n"
        f"<title>Album</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>Album</h1>\n"
        f"<nav>\n{links}</nav>\n{sections}</body></html>\n"
    )


def _section(at: int, name: str, photos: Sequence[tuple[str, AlbumPhoto]]) -> str:
    own = [(file, photo) for file, photo in photos if name in photo.names]
    items = "".join(
        f'<li><a href="photos/{file}"><img src="small/{file}" alt="{_text(", ".join(photo.names))}" '
        'loading="lazy"></a></li>\n'
        for file, photo in own
    )
    return f'<h2 id="p{at}">{_text(name)}</h2>\n<p>{counted(len(own), "photo")}</p>\n<ul>\n{items}</ul>\n'


def _text(text: str) -> str:
    return escape(visible(text))
