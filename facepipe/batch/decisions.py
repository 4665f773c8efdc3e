"""What a person decided about a face."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Box = tuple[float, float, float, float]


class Verdict(Enum):
    """What a face is. The values are stable codes for files."""

    IS = "is"
    """It is the person `Decision.name`."""
    NOT_A_FACE = "not_a_face"
    """A false alarm of the detector."""
    IGNORE = "ignore"
    """A face that nobody wants to name: it is never asked about again."""


@dataclass(frozen=True, slots=True)
class Decision:
    """All that a person decided about one face.

    It is kept under the content of the photo and the place of the face in it, so that it holds for moved and
    renamed photos, and for the faces that another detector finds there.

    Attributes:
        face_id: Of the face; see `facepipe.core.face_ids`.
        photo_sha256: Content hash of the photo.
        box_xyxy: The face in pixels of the upright photo: left, top, right, bottom.
        verdict: What the face is; None: that was not decided.
        name: The person, where the verdict is `IS`.
        not_names: People whom the face does not show.
        found_name: The name that the gallery had given the face when it was first decided about, if any.
        is_drawn: The box was drawn by hand: no detector found the face.
        decided_at: ISO 8601, UTC: when any of it was last changed.
    """

    face_id: str
    photo_sha256: str
    box_xyxy: Box
    verdict: Verdict | None = None
    name: str | None = None
    not_names: frozenset[str] = frozenset()
    found_name: str | None = None
    is_drawn: bool = False
    decided_at: str = ""

    @property
    def is_empty(self) -> bool:
        """Nothing was decided."""
        return self.verdict is None and not self.not_names and not self.is_drawn
