"""The types that all parts share: the faces of a photo, and the matches of a gallery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self, overload

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.integer] | npt.NDArray[np.bool_] | Sequence[int]
"""Indices of rows, or a mask of them all."""

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Order of the five landmarks; left and right as the viewer of the photo sees them."""


class MatchStatus(Enum):
    """Outcome of matching a face. The values are stable codes for reports."""

    NAMED = "named"
    UNSURE = "unsure"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Match:
    """The match of a face in a gallery.

    Attributes:
        name: The person, or None where the face is not named.
        distance_l2: Euclidean distance to the nearest person, accepted or not; None where the face was not
            compared (empty gallery, or a face not good enough).
        threshold_l2: Largest distance at which the face would have been named.
        runner_up_name: The next nearest *other* person, or None where there is none.
        runner_up_distance_l2: Euclidean distance to the runner-up.
        candidate_name: Who an unsure face may be: near enough, but not clearly this person and no other.
        reason: Why the face is not named, a stable code: of `facepipe.gallery.matching.Doubt`, or of
            `facepipe.quality.Reason` for a face that was not compared. None where it is named.
    """

    name: str | None
    distance_l2: float | None
    threshold_l2: float
    runner_up_name: str | None = None
    runner_up_distance_l2: float | None = None
    candidate_name: str | None = None
    reason: str | None = None

    @property
    def status(self) -> MatchStatus:
        """Named, unsure (see `candidate_name`) or unknown."""
        if self.name is not None:
            return MatchStatus.NAMED
        return MatchStatus.UNKNOWN if self.candidate_name is None else MatchStatus.UNSURE

    @property
    def label(self) -> str:
        """The name for people to read: `Ada`, `Ada?` where it is unsure, or `unknown`."""
        if self.candidate_name is not None:
            return f"{self.candidate_name}?"
        return self.name or "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face of a photo, a row of `Faces`.

    Attributes:
        box_xyxy: float32 (4,): left, top, right, bottom.
        score: Detector confidence in 0..1.
        landmarks: float32 (5, 2), x and y in the order of `LANDMARK_NAMES`.
        embedding: float32 (d,), unit length; None before encoding, and of a face that was not encoded.
        match: Of a gallery, or None before matching.
        enrollable: Whether enrollment would take it too, or None before it was measured.
        id: Stable; see `Faces.ids`.
    """

    box_xyxy: FloatArray
    score: float
    landmarks: FloatArray
    embedding: FloatArray | None = None
    match: Match | None = None
    enrollable: bool | None = None
    id: str | None = None

    @property
    def name(self) -> str | None:
        """The person, or None where the face is not named, or no gallery was asked."""
        return None if self.match is None else self.match.name

    @property
    def distance_l2(self) -> float | None:
        """Euclidean distance to the nearest person, or None where the face was not compared."""
        return None if self.match is None else self.match.distance_l2


@dataclass(frozen=True, slots=True)
class Faces:
    """The n faces of one photo as columns of equal length; later steps of the pipeline add columns.

    Iterating gives a `Face` for each row, most confident first, and so does an index: `faces[0]`. A slice, a
    mask or several indices give `Faces` again, as `select` does.

    Coordinates are pixels of the upright photo, origin at its top-left corner.

    Attributes:
        boxes_xyxy: float32 (n, 4), left, top, right, bottom.
        scores: float32 (n,), detector confidence in 0..1, falling.
        landmarks: float32 (n, 5, 2), x and y in the order of `LANDMARK_NAMES`.
        embeddings: float32 (n, d), unit length, or None before encoding. A row of NaN is a face that was not
            encoded: its landmarks determine no alignment, or it is not good enough to be compared.
        matches: n matches in a gallery, or None before matching.
        enrollable: bool (n,), which of them enrollment would take too, or None before they were measured.
        ids: n stable ids (see `facepipe.core.face_ids`), or None where the photo's content is not known.

    Raises:
        ValueError: A column has another shape or length.
    """

    boxes_xyxy: FloatArray
    scores: FloatArray
    landmarks: FloatArray
    embeddings: FloatArray | None = None
    matches: tuple[Match, ...] | None = None
    enrollable: BoolArray | None = None
    ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes_xyxy)
        _require_shape("boxes_xyxy", self.boxes_xyxy, (n, 4))
        _require_shape("scores", self.scores, (n,))
        _require_shape("landmarks", self.landmarks, (n, 5, 2))
        if self.embeddings is not None:
            _require_shape("embeddings", self.embeddings, (n, self.embeddings.shape[-1]))
        if self.matches is not None and len(self.matches) != n:
            raise ValueError(f"expected {n} matches, got {len(self.matches)}")
        if self.enrollable is not None:
            _require_shape("enrollable", self.enrollable, (n,))
        if self.ids is not None and len(self.ids) != n:
            raise ValueError(f"expected {n} ids, got {len(self.ids)}")

    @classmethod
    def empty(cls) -> Self:
        """Return a photo without faces."""
        return cls(np.zeros((0, 4), np.float32), np.zeros((0,), np.float32), np.zeros((0, 5, 2), np.float32))

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def __iter__(self) -> Iterator[Face]:
        return (self._face(row) for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int | np.integer) -> Face: ...

    @overload
    def __getitem__(self, rows: slice | Rows) -> Self: ...

    def __getitem__(self, rows: int | np.integer | slice | Rows) -> Face | Self:
        if isinstance(rows, int | np.integer):
            return self._face(range(len(self))[rows])
        return self.select(range(len(self))[rows] if isinstance(rows, slice) else rows)

    def _face(self, row: int) -> Face:
        embedding = None if self.embeddings is None else self.embeddings[row]
        return Face(
            box_xyxy=self.boxes_xyxy[row],
            score=float(self.scores[row]),
            landmarks=self.landmarks[row],
            embedding=embedding if embedding is not None and np.isfinite(embedding).all() else None,
            match=None if self.matches is None else self.matches[row],
            enrollable=None if self.enrollable is None else bool(self.enrollable[row]),
            id=None if self.ids is None else self.ids[row],
        )

    @property
    def sizes_px(self) -> FloatArray:
        """float32 (n,): the shorter side of each box in pixels."""
        sides: FloatArray = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        return sides.min(axis=1) if len(self) else np.zeros((0,), np.float32)

    def select(self, rows: Rows) -> Self:
        """Return the given rows of all columns, in their order. `rows`: indices or a mask of n."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.intp)
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            landmarks=self.landmarks[index],
            embeddings=None if self.embeddings is None else self.embeddings[index],
            matches=None if self.matches is None else tuple(self.matches[i] for i in index),
            enrollable=None if self.enrollable is None else self.enrollable[index],
            ids=None if self.ids is None else tuple(self.ids[i] for i in index),
        )

    def with_embeddings(self, embeddings: FloatArray, rows: Rows | None = None) -> Self:
        """Return these faces with their embeddings, float32 (n, d), or those of some rows, the others NaN."""
        if rows is None:
            return replace(self, embeddings=embeddings)
        spread = np.full((len(self), embeddings.shape[1]), np.nan, np.float32)
        spread[np.asarray(rows)] = embeddings
        return replace(self, embeddings=spread)

    def with_matches(self, matches: Iterable[Match]) -> Self:
        """Return these faces with their n matches."""
        return replace(self, matches=tuple(matches))

    def with_ids(self, ids: Iterable[str]) -> Self:
        """Return these faces with their n ids."""
        return replace(self, ids=tuple(ids))

    def with_enrollable(self, enrollable: BoolArray) -> Self:
        """Return these faces with a mask of those that enrollment would take, bool (n,)."""
        return replace(self, enrollable=enrollable)


def _require_shape(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")


def mirror_boxes(boxes_xyxy: FloatArray, width: float) -> FloatArray:
    """Mirror boxes (n, 4) in a picture of this width."""
    mirrored = boxes_xyxy.copy()
    mirrored[:, [0, 2]] = width - boxes_xyxy[:, [2, 0]]
    return mirrored


def mirror_landmarks(landmarks: FloatArray, width: float) -> FloatArray:
    """Mirror landmarks (n, 5, 2) in a picture of this width; the viewer's left and right are swapped."""
    mirrored = landmarks[:, [1, 0, 2, 4, 3]].copy()
    mirrored[..., 0] = width - mirrored[..., 0]
    return mirrored
