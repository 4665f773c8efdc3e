"""A detector's mistakes on labelled photos: faces that it misses, and what it takes for a face."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from facepipe.evaluation.arrays import BoolArray, Float64Array
from facepipe.evaluation.metrics.detection import MATCH_IOU, iou_with_edges
from facepipe.images.reading import DEFAULT_MAX_PIXELS, read_image

Box = tuple[float, float, float, float]
_CONTEXT = 1.0
"""Of a box's sides, shown on each side of it: what is around decides what it is."""
_PICTURE_PX, _JPEG_QUALITY = 224, 85
_LABELLED_RGB, _DETECTED_RGB = (0, 200, 90), (255, 60, 40)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredPhoto:
    """Labels and detections of one photo.

    Attributes:
        path: Where it is.
        boxes_xyxy: float64 (n, 4), labelled faces in pixels.
        counted: bool (n,): those that count; the others are ignored.
        detections: float64 (m, 5), x1 y1 x2 y2 score.
    """

    path: Path
    boxes_xyxy: Float64Array
    counted: BoolArray
    detections: Float64Array


@dataclass(frozen=True, slots=True)
class Mistake:
    """One face that was missed, or one false alarm.

    Attributes:
        path: Of the photo.
        box_xyxy: Of the label, or of the detection.
        score: Of the detection; of a missed face that of the best detection that overlaps it, 0 where none
            does.
        is_second: A false alarm on a face that a better detection has found.
    """

    path: Path
    box_xyxy: Box
    score: float
    is_second: bool = False

    @property
    def height_px(self) -> float:
        """Height of the box."""
        return self.box_xyxy[3] - self.box_xyxy[1]


@dataclass(frozen=True, slots=True)
class Mistakes:
    """The mistakes of a detector at one score.

    Attributes:
        score: Detections count from here.
        faces: Labelled faces that count.
        missed: Those that no detection overlaps enough, the largest first.
        alarms: Detections of no labelled face, and second ones of a face, the most confident first.
    """

    score: float
    faces: int
    missed: tuple[Mistake, ...]
    alarms: tuple[Mistake, ...]


def find_mistakes(photos: Iterable[MeasuredPhoto], score: float) -> Mistakes:
    """Find what a detector misses and what it takes for a face, where detections count from a score."""
    missed: list[Mistake] = []
    alarms: list[Mistake] = []
    faces = 0
    for photo in photos:
        faces += int(np.count_nonzero(photo.counted))
        missed += _missed(photo, score)
        alarms += _alarms(photo, score)
    missed.sort(key=lambda mistake: -mistake.height_px)
    alarms.sort(key=lambda mistake: -mistake.score)
    return Mistakes(score, faces, tuple(missed), tuple(alarms))


def _missed(photo: MeasuredPhoto, score: float) -> list[Mistake]:
    detected = photo.detections[:, :4]
    overlaps = iou_with_edges(photo.boxes_xyxy, detected)
    scores = np.where(overlaps >= MATCH_IOU, photo.detections[:, 4], 0.0).max(axis=1, initial=0.0)
    rows = np.flatnonzero(photo.counted & (scores < score))
    return [Mistake(photo.path, _box(photo.boxes_xyxy[row]), float(scores[row])) for row in rows]


def _alarms(photo: MeasuredPhoto, score: float) -> list[Mistake]:
    order = np.argsort(-photo.detections[:, 4], kind="stable")
    found: set[int] = set()
    alarms = []
    for detection in photo.detections[order]:
        if detection[4] < score:
            break
        face = _face_of(photo.boxes_xyxy, detection)
        if face is None or (face in found and photo.counted[face]):
            alarms.append(Mistake(photo.path, _box(detection), float(detection[4]), face is not None))
        elif face is not None:
            found.add(face)
    return alarms


def _face_of(boxes_xyxy: Float64Array, detection: Float64Array) -> int | None:
    """Return the row of the label that a detection overlaps most; None: none of them enough."""
    if not len(boxes_xyxy):
        return None
    overlaps = iou_with_edges(detection[None, :4], boxes_xyxy)[0]
    return int(overlaps.argmax()) if overlaps.max() >= MATCH_IOU else None


def _box(values: Float64Array) -> Box:
    left, top, right, bottom = (float(value) for value in values[:4])
    return left, top, right, bottom


def pictures_of(
    mistakes: Sequence[Mistake], *, missed: bool, max_pixels: int = DEFAULT_MAX_PIXELS
) -> list[bytes]:
    """Cut the places of mistakes out of their photos.

    Args:
        mistakes: Of `Mistakes`.
        missed: Whether they are missed faces, whose boxes are drawn in green; false alarms are in red.
        max_pixels: Larger photos are refused.

    Returns:
        JPEG files, longer side at most 224 px, each with its box drawn.

    Raises:
        PhotoError: A photo is gone.
    """
    return [_picture(mistake, _LABELLED_RGB if missed else _DETECTED_RGB, max_pixels) for mistake in mistakes]


def _picture(mistake: Mistake, rgb: tuple[int, int, int], max_pixels: int) -> bytes:
    photo = Image.fromarray(read_image(mistake.path, max_pixels=max_pixels))
    left, top, right, bottom = mistake.box_xyxy
    margin_wh = _CONTEXT * (right - left), _CONTEXT * (bottom - top)
    window = (
        min(max(0, math.floor(left - margin_wh[0])), photo.width - 1),
        min(max(0, math.floor(top - margin_wh[1])), photo.height - 1),
        max(1, min(photo.width, math.ceil(right + margin_wh[0]))),
        max(1, min(photo.height, math.ceil(bottom + margin_wh[1]))),
    )
    width, height = max(1, window[2] - window[0]), max(1, window[3] - window[1])
    scale = _PICTURE_PX / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = photo.crop((*window[:2], window[0] + width, window[1] + height)).resize(size)
    corners = [(side - window[i % 2]) * scale for i, side in enumerate(mistake.box_xyxy)]
    ImageDraw.Draw(picture).rectangle(corners, outline=rgb, width=2)
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return encoded.getvalue()
