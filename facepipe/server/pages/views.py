"""What pages show of a library, as plain data: computed in the library's thread, rendered in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from facepipe.batch.decisions import Verdict
from facepipe.core.plain_text import visible
from facepipe.library.library import Library
from facepipe.library.models import Checked, FaceGroup, LibraryFace, LibraryPhoto, PersonSummary
from facepipe.server.pages.explanations import explain

Value = TypeVar("Value")
Item = TypeVar("Item")

PAGE_LENGTH = 120
"""Faces, people, groups or photos that are shown at once; more come as the reader scrolls."""


class Cached(Generic[Value]):
    """A value computed from a library, kept until the library changes."""

    def __init__(self, compute: Callable[[Library], Value]) -> None:
        self._compute = compute
        self._kept: WeakKeyDictionary[Library, tuple[int, Value]] = WeakKeyDictionary()

    def of(self, library: Library) -> Value:
        """Return the value; to be called in the library's thread."""
        version, value = self._kept.get(library, (None, None))
        if version != library.version or value is None:
            value = self._compute(library)
            self._kept[library] = library.version, value
        return value


@dataclass(frozen=True, slots=True)
class Portion(Generic[Item]):
    """A part of a list.

    Attributes:
        items: From `offset` on.
        offset: Of the first item in the list.
        total: Length of the list.
    """

    items: Sequence[Item]
    offset: int
    total: int

    @property
    def next_offset(self) -> int | None:
        """Where the next part begins; None: there is none."""
        end = self.offset + len(self.items)
        return end if end < self.total else None


def portion(items: Sequence[Item], offset: int, length: int = PAGE_LENGTH) -> Portion[Item]:
    """Return a part of a list."""
    return Portion(items[offset : offset + length], offset, len(items))


def mapped(part: Portion[Item], function: Callable[[Item], Value]) -> Portion[Value]:
    """Return a part with other items in the place of its own."""
    return Portion([function(item) for item in part.items], part.offset, part.total)


@dataclass(frozen=True, slots=True)
class FaceTile:
    """A face as pages show it.

    Attributes:
        id: Of the face.
        photo_id: Its photo.
        photo_name: File name of the photo.
        name: Who it is; None: nobody was found.
        maybe: Who it may be, where that is unsure.
        state: `confirmed`, `named`, `unsure`, `unknown`, `not_a_face` or `ignored`.
        why: Why, in words.
        distance: To the nearest person, as text; empty where it was not compared.
    """

    id: str
    photo_id: int
    photo_name: str
    name: str | None
    maybe: str | None
    state: str
    why: str
    distance: str

    @property
    def label(self) -> str:
        """The name for people to read."""
        return {
            "unsure": f"{self.maybe}?",
            "unknown": "Unknown",
            "not_a_face": "Not a face",
            "ignored": "Ignored",
        }.get(self.state, self.name or "")


def face_tile(library: Library, face: LibraryFace) -> FaceTile:
    """Return a face as pages show it."""
    distance = face.match.distance_l2
    return FaceTile(
        id=face.id,
        photo_id=face.photo_id,
        photo_name=visible(library.photos[face.photo_id].path.name),
        name=face.name,
        maybe=face.match.candidate_name,
        state=state_of(face),
        why=explain(face),
        distance="" if distance is None or face.is_settled else f"{distance:.2f}",
    )


def state_of(face: LibraryFace) -> str:
    """Return the state of a face; see `FaceTile`."""
    match face.decision and face.decision.verdict:
        case Verdict.IS:
            return "confirmed"
        case Verdict.NOT_A_FACE:
            return "not_a_face"
        case Verdict.IGNORE:
            return "ignored"
    return face.match.status.value


people = Cached(lambda library: library.people())
"""Everybody, by name."""

groups = Cached(lambda library: library.groups())
"""The groups of unknown faces, the largest first."""


def shown_people(library: Library, text: str, *, hidden: bool) -> list[PersonSummary]:
    """Return the people with faces whose names contain a text; hidden ones only where they are asked for."""
    wanted = text.casefold()
    return [
        person
        for person in people.of(library)
        if person.is_hidden == hidden and wanted in person.name.casefold() and person.face_count
    ]


@dataclass(frozen=True, slots=True)
class PersonView:
    """A person with some faces.

    Attributes:
        person: Who it is.
        faces: Some of the faces, the most doubtful first.
        photo_count: Photos with a face of this person.
        checked: How many names were right.
    """

    person: PersonSummary
    faces: Portion[FaceTile]
    photo_count: int
    checked: Checked


def person_view(library: Library, name: str, offset: int) -> PersonView | None:
    """Return a person with the faces from `offset` on; None: nobody has this name."""
    person = library.person(name)
    if person is None:
        return None
    faces = library.faces_of(name)
    tiles = mapped(portion(faces, offset), lambda face: face_tile(library, face))
    return PersonView(person, tiles, len({face.photo_id for face in faces}), library.checked(name))


def group_of(library: Library, number: int) -> FaceGroup | None:
    """Return a group by its number; None: there is none."""
    return next((group for group in groups.of(library) if group.number == number), None)


def group_faces(library: Library, group: FaceGroup, offset: int) -> Portion[FaceTile]:
    """Return the faces of a group, from `offset` on."""
    return mapped(portion(group.face_ids, offset), lambda id: face_tile(library, library.faces[id]))


def faces_of_photo(library: Library, photo: LibraryPhoto) -> list[FaceTile]:
    """Return the faces of a photo."""
    return [face_tile(library, library.faces[id]) for id in photo.face_ids]


def share_checked(person: PersonSummary) -> int:
    """Return how many percent of a person's faces were confirmed, rounded down."""
    return 100 * person.confirmed_count // max(1, person.face_count)


def names(library: Library) -> list[str]:
    """Return the names of all people."""
    return [person.name for person in people.of(library)]
