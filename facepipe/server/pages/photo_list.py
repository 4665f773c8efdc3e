"""Which photos are shown, and in which order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.models import LibraryPhoto
from facepipe.server.pages.views import Portion, mapped, portion

Show = Literal["all", "unsure", "unknown", "failures"]
Order = Literal["date", "folder"]


@dataclass(frozen=True, slots=True)
class PhotoFilter:
    """Which photos are wanted; those that fulfil all of it.

    Attributes:
        people: All of them are in the photo.
        without: None of them is.
        folder: The photo is in it or below it, relative to the common folder of all; empty: in any.
        since: Taken on that day or later.
        until: Taken on that day or before.
        show: All, those with a face that is unsure or unknown, or those that could not be analyzed.
        order: By the time at which they were taken, the newest first, or by folder and name.
    """

    people: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    folder: str = ""
    since: date | None = None
    until: date | None = None
    show: Show = "all"
    order: Order = "date"

    @property
    def query(self) -> str:
        """The filter as the query of an address."""
        single = {"folder": self.folder, "since": self.since, "until": self.until}
        pairs = [("person", name) for name in self.people] + [("without", name) for name in self.without]
        pairs += [(key, str(value)) for key, value in single.items() if value]
        return urlencode([*pairs, ("show", self.show), ("order", self.order)])

    def accepts(self, library: Library, photo: LibraryPhoto, folder: str) -> bool:
        """Whether a photo in a folder, relative to the common one, is wanted."""
        day = (photo.taken_at or "")[:10]
        return (
            (not self.folder or f"{folder}/".startswith(f"{self.folder}/"))
            and (self.since is None or self.since.isoformat() <= day)
            and (self.until is None or "" < day <= self.until.isoformat())
            and self._accepts_people(library, photo)
            and self._accepts_state(library, photo)
        )

    def _accepts_people(self, library: Library, photo: LibraryPhoto) -> bool:
        if not (self.people or self.without):
            return True
        names = names_in(library, photo)
        return names.issuperset(self.people) and names.isdisjoint(self.without)

    def _accepts_state(self, library: Library, photo: LibraryPhoto) -> bool:
        match self.show:
            case "failures":
                return photo.error is not None
            case "unsure" | "unknown":
                faces = (library.faces[id] for id in photo.face_ids)
                return any(not face.is_settled and face.match.status.value == self.show for face in faces)
        return True


def names_in(library: Library, photo: LibraryPhoto) -> set[str]:
    """Return the names of the people in a photo."""
    names = {library.faces[id].name for id in photo.face_ids}
    return {name for name in names if name is not None}


@dataclass(frozen=True, slots=True)
class PhotoTile:
    """A photo as the list shows it.

    Attributes:
        id: Of the photo.
        name: File name.
        heading: What begins with this photo: a month or a folder; None: nothing.
        people: Names of the people in it.
        error: Why it could not be analyzed.
    """

    id: int
    name: str
    heading: str | None
    people: str
    error: str | None


@dataclass(frozen=True, slots=True)
class _Places:
    """Where photos are, and in which order: both stay while a library is open.

    Attributes:
        folder_of: By photo, relative to the common folder of all; empty: that one.
        folders: With how many photos are in each.
        by_date: Ids, the newest photo first.
        by_folder: Ids.
    """

    folder_of: Mapping[int, str]
    folders: Sequence[tuple[str, int]]
    by_date: Sequence[int]
    by_folder: Sequence[int]


def _places_of(library: Library) -> _Places:
    photos = library.photos
    parents = {id: str(photo.path.parent) for id, photo in photos.items()}
    relative = _relative_folders(set(parents.values()))
    folder_of = {id: relative[parent] for id, parent in parents.items()}
    return _Places(
        folder_of,
        sorted(Counter(folder_of.values()).items()),
        sorted(photos, key=lambda id: (photos[id].taken_at or "", id), reverse=True),
        sorted(photos, key=lambda id: (folder_of[id], photos[id].path.name)),
    )


def _relative_folders(folders: Collection[str]) -> dict[str, str]:
    """Return folders relative to their common one; as they are where they have none."""
    try:
        common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    except ValueError:  # no photos, or several drives of Windows
        return {folder: Path(folder).as_posix() for folder in folders}
    return {folder: _relative(os.path.abspath(folder), common) for folder in folders}


def _relative(folder: str, common: str) -> str:
    relative = Path(folder).relative_to(common).as_posix()
    return "" if relative == "." else relative


_kept_places: WeakKeyDictionary[Library, tuple[int, _Places]] = WeakKeyDictionary()


def _places(library: Library) -> _Places:
    version, places = _kept_places.get(library, (0, None))
    if places is None or version != library.photos_version:
        places = _places_of(library)
        _kept_places[library] = library.photos_version, places
    return places


def prepare(library: Library) -> None:
    """Put the photos in their orders, before the first request has to wait for it."""
    _places(library)


def folders(library: Library) -> Sequence[tuple[str, int]]:
    """Return the folders with photos, relative to their common one, and how many photos are in each."""
    return _places(library).folders


def find_photos(library: Library, wanted: PhotoFilter) -> list[LibraryPhoto]:
    """Return the photos that a filter accepts, in its order."""
    places = _places(library)
    ids = places.by_folder if wanted.order == "folder" else places.by_date
    if wanted.people:  # few photos have a certain person: look at no others
        ids = _showing(library, ids, wanted.people[0])
    photos = [library.photos[id] for id in ids]
    if wanted == PhotoFilter(order=wanted.order):
        return photos
    return [photo for photo in photos if wanted.accepts(library, photo, places.folder_of[photo.id])]


def _showing(library: Library, ids: Sequence[int], name: str) -> list[int]:
    """The photos with a face of this name, and their copies, which share the face."""
    photos = library.photos
    contents = {photos[face.photo_id].sha256 for face in library.faces.values() if face.name == name}
    return [id for id in ids if photos[id].sha256 in contents]


def photo_tiles(library: Library, wanted: PhotoFilter, offset: int) -> Portion[PhotoTile]:
    """Return the photos that a filter accepts, from `offset` on, with headings between them."""
    photos = find_photos(library, wanted)
    folder_of = _places(library).folder_of

    def heading(photo: LibraryPhoto) -> str:
        return _folder_heading(folder_of[photo.id]) if wanted.order == "folder" else _month(photo)

    previous = heading(photos[offset - 1]) if 0 < offset <= len(photos) else None

    def tile(photo: LibraryPhoto) -> PhotoTile:
        nonlocal previous
        begins, previous = heading(photo) != previous, heading(photo)
        return _photo_tile(library, photo, previous if begins else None)

    return mapped(portion(photos, offset), tile)


def _photo_tile(library: Library, photo: LibraryPhoto, heading: str | None) -> PhotoTile:
    people = ", ".join(sorted(names_in(library, photo), key=str.casefold))
    return PhotoTile(photo.id, visible(photo.path.name), heading, people, photo.error)


def _folder_heading(folder: str) -> str:
    return visible(folder) or "All photos"


def _month(photo: LibraryPhoto) -> str:
    try:
        return datetime.fromisoformat(photo.taken_at or "").strftime("%B %Y")
    except ValueError:
        return "Date not known"
