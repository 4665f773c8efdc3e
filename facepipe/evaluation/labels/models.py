"""Photos and their labelled faces, as every format gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from facepipe.core.faces import FloatArray

UNKNOWN_POINT = (float("nan"), float("nan"))


def no_boxes() -> FloatArray:
    """Return float32 (0, 4)."""
    return np.zeros((0, 4), np.float32)


class FaceLabel(NamedTuple):
    """One labelled face.

    Attributes:
        box_xyxy: Left, top, right, bottom in pixels.
        landmarks: Five points x, y in pixels, `UNKNOWN_POINT` where unknown; empty: none is known.
        ignored: Too bad to be a positive, but not background.
    """

    box_xyxy: tuple[float, float, float, float]
    landmarks: Sequence[tuple[float, float]] = ()
    ignored: bool = False

    @classmethod
    def of_xywh(
        cls,
        box_xywh: Sequence[float],
        landmarks: Sequence[tuple[float, float]] = (),
        ignored: bool = False,
    ) -> Self:
        """Return the face of a box given by its left, top, width and height."""
        x, y, w, h = box_xywh
        return cls((x, y, x + w, y + h), landmarks, ignored)


@dataclass(frozen=True, slots=True)
class LabelledPhoto:
    """One photo with its annotated faces.

    Attributes:
        path: The photo.
        boxes_xyxy: float32 (n, 4) pixels.
        landmarks: float32 (n, 5, 2) pixels; NaN where unknown.
        ignored_xyxy: float32 (m, 4) pixels: faces too bad to be positives, but not background.
    """

    path: Path
    boxes_xyxy: FloatArray
    landmarks: FloatArray
    ignored_xyxy: FloatArray = field(default_factory=no_boxes)

    @classmethod
    def of_faces(cls, path: Path, faces: Sequence[FaceLabel]) -> Self:
        """Return a photo with its faces as arrays."""
        boxes = np.array([face.box_xyxy for face in faces], np.float32).reshape(-1, 4)
        points = [face.landmarks or [UNKNOWN_POINT] * 5 for face in faces]
        landmarks = np.array(points, np.float32).reshape(-1, 5, 2)
        bad = np.array([face.ignored for face in faces], np.bool_)
        return cls(path, boxes[~bad], landmarks[~bad], boxes[bad])
