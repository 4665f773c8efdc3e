"""Photos, faces, people and groups of a library, as they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from facepipe.batch.decisions import Box, Decision, Verdict
from facepipe.core.faces import Match


@dataclass(frozen=True, slots=True)
class LibraryPhoto:
    """A photo of a library.

    Attributes:
        id: Of its row in the job; stays while the job remembers the photo, also where it is moved.
        path: Where it is.
        sha256: Of its content; None after an error.
        size_wh: Width and height of the upright photo in pixels; None after an error.
        taken_at: When it was taken, ISO 8601 without a zone, from EXIF; None: not known.
        error: Why it could not be analyzed.
        face_ids: Of its faces.
    """

    id: int
    path: Path
    sha256: str | None
    size_wh: tuple[int, int] | None
    taken_at: str | None
    error: str | None
    face_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LibraryFace:
    """A face of a library.

    Attributes:
        id: 12 hex digits, stable; see `facepipe.core.face_ids`.
        photo_id: Its photo.
        row: Its place among the faces of its photo.
        box_xyxy: In pixels of the upright photo.
        score: Detector confidence in 0..1; 1 for a box drawn by hand.
        match: The answer of the gallery, with the decisions applied: a confirmed face has the confirmed name.
        is_enrollable: Enrollment would take it: it is sharp, large and frontal enough to become a template.
        embedding_row: Of `Library.embeddings`; None: the face was not encoded.
        decision: What a person decided; None: nothing.
        group: Number of its group of unknown faces; None: it is in none.
    """

    id: str
    photo_id: int
    row: int
    box_xyxy: Box
    score: float
    match: Match
    is_enrollable: bool
    embedding_row: int | None
    decision: Decision | None
    group: int | None

    @property
    def name(self) -> str | None:
        """Who it is, decided or found; None: nobody was found."""
        return self.match.name

    @property
    def is_confirmed(self) -> bool:
        """A person decided who it is."""
        return self.decision is not None and self.decision.verdict is Verdict.IS

    @property
    def is_settled(self) -> bool:
        """A person decided what it is: there is nothing left to ask."""
        return self.decision is not None and self.decision.verdict is not None

    @property
    def doubt(self) -> float:
        """How doubtful its name is, 0..1: 0 where it is settled or far nearer than the threshold, 1 at it."""
        if self.is_settled:
            return 0.0
        match = self.match
        if match.distance_l2 is None or match.threshold_l2 <= 0:
            return 1.0
        gap = 1.0
        if match.runner_up_distance_l2 is not None:
            gap = (match.runner_up_distance_l2 - match.distance_l2) / match.threshold_l2
        return min(1.0, max(0.0, match.distance_l2 / match.threshold_l2, 1.0 - 4.0 * gap))


@dataclass(frozen=True, slots=True)
class PersonSummary:
    """A person of a library or of its gallery.

    Attributes:
        name: Unique.
        face_count: Faces of the library with this name, found or confirmed.
        confirmed_count: How many of them are confirmed.
        template_count: Enrolled faces in the gallery.
        cover_face_id: The face to show: chosen, or else the best; None: there is none in the library.
        is_hidden: Not to be shown among the people.
    """

    name: str
    face_count: int
    confirmed_count: int
    template_count: int
    cover_face_id: str | None
    is_hidden: bool


@dataclass(frozen=True, slots=True)
class FaceGroup:
    """Faces of nobody known that are likely one person's.

    Attributes:
        number: Stable: a group keeps its number while most of its faces stay together.
        face_ids: The most typical first.
    """

    number: int
    face_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A change that can be undone.

    Attributes:
        id: Rising.
        label: What was done, for people to read: `3 faces are Ada`.
        made_at: ISO 8601, UTC.
        is_undone: It was taken back.
    """

    id: int
    label: str
    made_at: str
    is_undone: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """How many names were right, of those that a person checked.

    Attributes:
        right: Confirmed as the gallery had named them.
        wrong: Named otherwise by the person, or rejected.
    """

    right: int
    wrong: int
