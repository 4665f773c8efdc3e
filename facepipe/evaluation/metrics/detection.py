"""Detections against true boxes: overlap, matching, precision and recall, average precision.

This is the arithmetic of the WIDER FACE evaluation, which `wider` applies to the official ground truth and
`labelled_ap` to any labelled photos. A photo's detections are one array (n, 5): x1 y1 x2 y2 in pixels,
score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import BoolArray, Float64Array, IntArray, RealArray
from facepipe.evaluation.labels import LabelledPhoto

MATCH_IOU = 0.5
"""Smallest overlap of a detection with the face it finds. Source: WIDER FACE evaluation, after PASCAL VOC."""

SCORE_STEPS = 1000
"""Points of a precision-recall curve, at scores 0.999, 0.998, ... 0. Source: WIDER FACE evaluation."""

HEIGHT_BINS_PX = (0, 16, 32, 64, 128, 256, 1_000_000)
"""Edges of the bins of `DetectionResult.by_height`, at the photo's original size."""

MIN_FACE_PX = 8.0
"""Height from which labelled faces count unless another is asked for: lower ones are often not labelled."""


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """A precision-recall curve from the highest score threshold to the lowest.

    Attributes:
        precision: float64 (1000,), 0..1; 0 where nothing has been detected yet.
        recall: float64 (1000,), 0..1, rising.
        faces: How many true faces counted; a curve of no faces has no average precision.
    """

    precision: Float64Array
    recall: Float64Array
    faces: int

    @property
    def ap(self) -> float | None:
        """Area under the curve after precision is made falling, 0..1; None where no face counted."""
        if not self.faces:
            return None
        recall = np.concatenate(([0.0], self.recall, [1.0]))
        precision = np.concatenate(([0.0], self.precision, [0.0]))
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(recall) * falling[1:]))


@dataclass(frozen=True, slots=True)
class Matching:
    """All detections of a set of photos, and the true face that each one overlaps; the highest score first.

    Attributes:
        scores: float64 (d,), mapped to 0..1 by the lowest and highest score of the whole set, falling.
        heights_px: float64 (d,), of the detected boxes.
        face: int64 (d,), the true face of largest overlap counted through all photos, or -1 where no
            overlap reaches `MATCH_IOU`.
        first: bool (d,), the best-scored detection of its face; the later ones are false alarms.
    """

    scores: Float64Array
    heights_px: Float64Array
    face: IntArray
    first: BoolArray


@dataclass(frozen=True, slots=True)
class HeightBin:
    """Average precision on the faces that count and are low_px <= height < high_px high.

    Faces of other heights are ignored, and so are detections of no face whose own height is outside the bin.
    """

    low_px: int
    high_px: int
    faces: int
    ap: float | None


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """Accuracy of detections.

    Attributes:
        photos: How many were measured.
        curves: By the name of the set of faces that count; its `.ap` is the figure.
        by_height: AP by the height of faces, of those that count in the last of the curves.
    """

    photos: int
    curves: Mapping[str, PrecisionRecall]
    by_height: tuple[HeightBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what a report needs, ready for JSON; without the curves."""
        return {
            "photos": self.photos,
            "ap": {name: curve.ap for name, curve in self.curves.items()},
            "faces": {name: curve.faces for name, curve in self.curves.items()},
            "ap_by_height": [asdict(height) for height in self.by_height],
        }


def iou_with_edges(boxes_xyxy: RealArray, other_boxes_xyxy: RealArray) -> Float64Array:
    """Overlap of every box (n, 4) with every other box (m, 4), float64 (n, m) in 0..1.

    A box includes the pixels at its right and lower edge: sides are x2 - x1 + 1. Source: as above.
    """
    edges = np.array([0.0, 0.0, 1.0, 1.0])
    return iou((boxes_xyxy + edges)[:, None], other_boxes_xyxy + edges)


def match_detections(true_boxes_xyxy: Sequence[RealArray], detections: Sequence[RealArray]) -> Matching:
    """Find the true face of every detection; the two sequences go through the same photos in the same order.

    Args:
        true_boxes_xyxy: Per photo (n, 4), pixels.
        detections: Per photo (m, 5), in any order of scores.

    Raises:
        DataError: Detections of another shape, or not finite.
    """
    faces, rows, offset = [], [], 0
    for boxes, found in zip(true_boxes_xyxy, detections, strict=True):
        checked = _checked(found)
        rows.append(checked)
        faces.append(_nearest_faces(checked, boxes, offset))
        offset += len(boxes)
    if not rows:
        raise DataError("nothing to evaluate: expected the detections of at least one photo, got none")
    return _ranked(np.concatenate(rows), np.concatenate(faces))


def precision_recall(
    matching: Matching, counted: BoolArray, judged: BoolArray | None = None
) -> PrecisionRecall:
    """Return the curve over the faces that count.

    A detection of a face that does not count is neither right nor wrong. A detection of no face at all, or of
    a face that a better-scored one has found already, is a false alarm.

    Args:
        matching: From `match_detections`.
        counted: bool (faces,), through all photos: which true faces count.
        judged: bool (d,), which detections of no face are false alarms; None: all of them.
    """
    on_face = matching.face >= 0
    faces = np.where(on_face, matching.face, 0)
    of_counted = on_face & (counted[faces] if len(counted) else False)
    alarms = ~on_face if judged is None else ~on_face & judged
    proposals = _count_above(matching.scores, of_counted | alarms)
    hits = _count_above(matching.scores, of_counted & matching.first)
    total = int(np.count_nonzero(counted))
    return PrecisionRecall(hits / np.maximum(proposals, 1), hits / max(total, 1), total)


def detection_result(
    matching: Matching, true_boxes_xyxy: Sequence[RealArray], counted: Mapping[str, BoolArray]
) -> DetectionResult:
    """Return the figures of matched detections.

    Args:
        matching: From `match_detections`.
        true_boxes_xyxy: The same photos' boxes.
        counted: By name, bool (faces,), through all photos: which true faces count.
    """
    boxes = np.concatenate(true_boxes_xyxy)
    heights_px, last = boxes[:, 3] - boxes[:, 1], list(counted.values())[-1]
    bins = []
    for low, high in pairwise(HEIGHT_BINS_PX):
        inside = (heights_px >= low) & (heights_px < high)
        judged = (matching.heights_px >= low) & (matching.heights_px < high)
        curve = precision_recall(matching, last & inside, judged)
        bins.append(HeightBin(low, high, curve.faces, curve.ap))
    curves = {name: precision_recall(matching, mask) for name, mask in counted.items()}
    return DetectionResult(len(true_boxes_xyxy), curves, tuple(bins))


def labelled_ap(
    photos: Sequence[LabelledPhoto], detections: Sequence[RealArray], min_face_px: float = MIN_FACE_PX
) -> DetectionResult:
    """Measure detections on any labelled photos: one curve, "labelled".

    Args:
        photos: With their faces. A detection of an ignored face is neither right nor wrong.
        detections: Per photo, in the same order, (m, 5).
        min_face_px: Faces lower than this are ignored too.

    Raises:
        DataError: No photo, or malformed detections.
    """
    truth = [counted_faces(photo, min_face_px) for photo in photos]
    boxes = [boxes for boxes, _ in truth]
    matching = match_detections(boxes, detections)
    return detection_result(matching, boxes, {"labelled": np.concatenate([counted for _, counted in truth])})


def counted_faces(photo: LabelledPhoto, min_face_px: float) -> tuple[Float64Array, BoolArray]:
    """Return all boxes (n, 4) of a photo, also those that are ignored, and which of them count (n,)."""
    boxes = np.concatenate([photo.boxes_xyxy, photo.ignored_xyxy]).astype(np.float64).reshape(-1, 4)
    heights_px = boxes[:, 3] - boxes[:, 1]
    return boxes, (heights_px >= min_face_px) & (np.arange(len(boxes)) < len(photo.boxes_xyxy))


def _checked(detections: RealArray) -> Float64Array:
    rows = np.asarray(detections, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise DataError(f"expected detections of shape (n, 5), x1 y1 x2 y2 score, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise DataError("detections hold values that are not finite: the network's output is broken")
    return rows


def _nearest_faces(detections: Float64Array, true_boxes_xyxy: RealArray, offset: int) -> IntArray:
    if not len(true_boxes_xyxy):
        return np.full(len(detections), -1, np.int64)
    overlaps = iou_with_edges(detections[:, :4], true_boxes_xyxy)
    return np.where(overlaps.max(axis=1) >= MATCH_IOU, overlaps.argmax(axis=1) + offset, -1)


def _ranked(detections: Float64Array, faces: IntArray) -> Matching:
    order = np.argsort(-detections[:, 4], kind="stable")
    detections, faces = detections[order], faces[order]
    first = np.zeros(len(faces), np.bool_)
    first[np.unique(faces, return_index=True)[1]] = True
    heights = detections[:, 3] - detections[:, 1]
    return Matching(_normalised(detections[:, 4]), heights, faces, first & (faces >= 0))


def _normalised(scores: Float64Array) -> Float64Array:
    if not len(scores) or scores.max() == scores.min():
        return np.ones_like(scores)
    normalised: Float64Array = (scores - scores.min()) / (scores.max() - scores.min())
    return normalised


def _count_above(scores: Float64Array, chosen: BoolArray) -> IntArray:
    """Count the chosen detections that reach each of the `SCORE_STEPS` thresholds."""
    thresholds = 1 - np.arange(1, SCORE_STEPS + 1) / SCORE_STEPS
    rising = scores[chosen][::-1]
    return len(rising) - np.searchsorted(rising, thresholds, side="left")
