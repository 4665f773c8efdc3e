"""Changes that the page asks for, as JSON has them: `{"do": "confirm", "face_ids": [...], "name": "Ada"}`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from facepipe.gallery.impostors import FARTHEST_L2
from facepipe.library.library import Library
from facepipe.library.models import Step
from facepipe.server.pages.face_finder import face_finder

FaceIds = Annotated[list[str], Meta(min_length=1, max_length=100_000)]
Name = Annotated[str, Meta(min_length=1, max_length=1_000)]


class Change(Struct, tag_field="do", forbid_unknown_fields=True):
    """A change that can be undone."""

    def apply(self, library: Library) -> Step:
        """Make it. Raises: FacepipeError, and nothing is changed."""
        raise NotImplementedError


class Confirm(Change, tag="confirm"):
    """These faces are this person."""

    face_ids: FaceIds
    name: Name

    def apply(self, library: Library) -> Step:
        """See `Library.confirm`."""
        return library.confirm(self.face_ids, self.name)


class ConfirmAll(Change, tag="confirm_all"):
    """All faces with this name have it rightly."""

    name: Name

    def apply(self, library: Library) -> Step:
        """See `Library.confirm`."""
        return library.confirm([face.id for face in library.faces_of(self.name)], self.name)


class Reject(Change, tag="reject"):
    """These faces are not this person."""

    face_ids: FaceIds
    name: Name

    def apply(self, library: Library) -> Step:
        """See `Library.reject`."""
        return library.reject(self.face_ids, self.name)


class MarkNotFaces(Change, tag="not_faces"):
    """These are no faces."""

    face_ids: FaceIds

    def apply(self, library: Library) -> Step:
        """See `Library.mark_not_faces`."""
        return library.mark_not_faces(self.face_ids)


class Ignore(Change, tag="ignore"):
    """Nobody wants to name these faces."""

    face_ids: FaceIds

    def apply(self, library: Library) -> Step:
        """See `Library.ignore`."""
        return library.ignore(self.face_ids)


class Reset(Change, tag="reset"):
    """Forget what was decided about these faces."""

    face_ids: FaceIds

    def apply(self, library: Library) -> Step:
        """See `Library.reset`."""
        return library.reset(self.face_ids)


class NameGroup(Change, tag="name_group"):
    """The faces of a group, but for some, are this person."""

    group: int
    name: Name
    without: list[str] = []

    def apply(self, library: Library) -> Step:
        """See `Library.name_group`."""
        if not self.without:
            return library.name_group(self.group, self.name)
        return library.confirm(_faces_of_group(library, self.group, self.without), self.name)


class IgnoreGroup(Change, tag="ignore_group"):
    """Nobody wants to name the faces of a group, but for some."""

    group: int
    without: list[str] = []

    def apply(self, library: Library) -> Step:
        """See `Library.ignore_group`."""
        if not self.without:
            return library.ignore_group(self.group)
        return library.ignore(_faces_of_group(library, self.group, self.without))


class Rename(Change, tag="rename"):
    """A person gets another name."""

    name: Name
    new_name: Name

    def apply(self, library: Library) -> Step:
        """See `Library.rename`."""
        return library.rename(self.name, self.new_name)


class Merge(Change, tag="merge"):
    """Two people are one, who keeps the name `into`."""

    name: Name
    into: Name

    def apply(self, library: Library) -> Step:
        """See `Library.merge`."""
        return library.merge(self.name, self.into)


class SetHidden(Change, tag="set_hidden"):
    """A person is not shown among the people, or is again."""

    name: Name
    is_hidden: bool

    def apply(self, library: Library) -> Step:
        """See `Library.set_hidden`."""
        return library.set_hidden(self.name, self.is_hidden)


class SetCover(Change, tag="set_cover"):
    """A person is shown by this face."""

    name: Name
    face_id: str

    def apply(self, library: Library) -> Step:
        """See `Library.set_cover`."""
        return library.set_cover(self.name, self.face_id)


class SetThreshold(Change, tag="set_threshold"):
    """Faces are named up to another distance: everybody's, or one person's."""

    name: Name | None
    threshold_l2: Annotated[float, Meta(ge=0, le=FARTHEST_L2)]

    def apply(self, library: Library) -> Step:
        """See `Library.set_threshold`."""
        return library.set_threshold(self.name, self.threshold_l2)


class DrawFace(Change, tag="draw_face"):
    """There is a face where none was found."""

    photo_id: int
    box_xyxy: tuple[float, float, float, float]
    name: Name | None = None

    def apply(self, library: Library) -> Step:
        """See `Library.draw_face`."""
        step, _ = library.draw_face(self.photo_id, self.box_xyxy, self.name, face_finder(library))
        return step


AnyChange = (
    Confirm
    | ConfirmAll
    | Reject
    | MarkNotFaces
    | Ignore
    | Reset
    | NameGroup
    | IgnoreGroup
    | Rename
    | Merge
    | SetHidden
    | SetCover
    | SetThreshold
    | DrawFace
)


def _faces_of_group(library: Library, number: int, without: list[str]) -> list[str]:
    faces = next((group.face_ids for group in library.groups() if group.number == number), ())
    return [face_id for face_id in faces if face_id not in without]
