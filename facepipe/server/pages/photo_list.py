"""Which photos are shown, and in which order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from facepipe.core.faces import MatchStatus
from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.models import LibraryPhoto
from facepipe.server.pages.views import Cached, Portion, mapped, portion

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

    def accepts(self, entry: PhotoEntry) -> bool:
        """Whether a photo is wanted."""
        return (
            self._accepts_state(entry)
            and all(name in entry.names for name in self.people)
            and not any(name in entry.names for name in self.without)
            and (not self.folder or f"{entry.folder}/".startswith(f"{self.folder}/"))
            and (self.since is None or self.since.isoformat() <= entry.day)
            and (self.until is None or "" < entry.day <= self.until.isoformat())
        )

    def _accepts_state(self, entry: PhotoEntry) -> bool:
        match self.show:
            case "unsure":
                return MatchStatus.UNSURE in entry.statuses
            case "unknown":
                return MatchStatus.UNKNOWN in entry.statuses
            case "failures":
                return entry.photo.error is not None
        return True


@dataclass(frozen=True, slots=True)
class PhotoEntry:
    """A photo with what filters ask for.

    Attributes:
        photo: The photo.
        folder: Its folder, relative to the common folder of all photos; empty: that one.
        names: Of the people in it.
        statuses: Of its faces that nobody decided about.
    """

    photo: LibraryPhoto
    folder: str
    names: frozenset[str]
    statuses: frozenset[MatchStatus]

    @property
    def day(self) -> str:
        """When it was taken, as 2019-07-31; empty: not known."""
        return (self.photo.taken_at or "")[:10]


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
class _PhotoIndex:
    entries: Sequence[PhotoEntry]
    folders: Sequence[tuple[str, int]]


def _indexed(library: Library) -> _PhotoIndex:
    common = common_folder(library)
    entries = [_entry(library, photo, common) for photo in library.photos.values()]
    return _PhotoIndex(entries, sorted(Counter(entry.folder for entry in entries).items()))


def common_folder(library: Library) -> Path:
    """Return the folder that holds all photos."""
    parents = {os.path.abspath(photo.path.parent) for photo in library.photos.values()}
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # no photos, or several drives of Windows
        return Path()


def _entry(library: Library, photo: LibraryPhoto, common: Path) -> PhotoEntry:
    faces = [library.faces[id] for id in photo.face_ids]
    folder = Path(os.path.abspath(photo.path.parent))
    relative = folder.relative_to(common).as_posix() if common != Path() else folder.as_posix()
    return PhotoEntry(
        photo=photo,
        folder="" if relative == "." else relative,
        names=frozenset(face.name for face in faces if face.name is not None),
        statuses=frozenset(face.match.status for face in faces if not face.is_settled),
    )


_index = Cached(_indexed)


def folders(library: Library) -> Sequence[tuple[str, int]]:
    """Return the folders with photos, relative to their common one, and how many photos are in each."""
    return _index.of(library).folders


def find_photos(library: Library, wanted: PhotoFilter) -> list[PhotoEntry]:
    """Return the photos that a filter accepts, in its order."""
    entries = [entry for entry in _index.of(library).entries if wanted.accepts(entry)]
    if wanted.order == "folder":
        return sorted(entries, key=lambda entry: (entry.folder, entry.photo.path.name))
    return sorted(entries, key=lambda entry: (entry.photo.taken_at or "", entry.photo.id), reverse=True)


def photo_tiles(library: Library, wanted: PhotoFilter, offset: int) -> Portion[PhotoTile]:
    """Return the photos that a filter accepts, from `offset` on, with headings between them."""
    entries = find_photos(library, wanted)
    previous = _heading(entries[offset - 1], wanted.order) if 0 < offset <= len(entries) else None

    def tile(entry: PhotoEntry) -> PhotoTile:
        nonlocal previous
        heading = _heading(entry, wanted.order)
        begins, previous = heading != previous, heading
        return _photo_tile(entry, heading if begins else None)

    return mapped(portion(entries, offset), tile)


def _photo_tile(entry: PhotoEntry, heading: str | None) -> PhotoTile:
    photo = entry.photo
    people = ", ".join(sorted(entry.names, key=str.casefold))
    return PhotoTile(photo.id, visible(photo.path.name), heading, people, photo.error)


def _heading(entry: PhotoEntry, order: Order) -> str:
    if order == "folder":
        return visible(entry.folder) or "All photos"
    try:
        return date.fromisoformat(entry.day).strftime("%B %Y")
    except ValueError:
        return "Date not known"
