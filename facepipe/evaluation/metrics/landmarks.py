"""Errors of detected landmarks, on photos with labelled faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from facepipe.core.errors import DataError
from facepipe.core.faces import LANDMARK_NAMES, Faces
from facepipe.evaluation.arrays import Float64Array, RealArray
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.evaluation.metrics.detection import MATCH_IOU, iou_with_edges

MIN_EYE_DISTANCE = 0.2
"""Eyes nearer to each other than this share of the box (profiles) are no unit of length."""


@dataclass(frozen=True, slots=True)
class LandmarkSummary:
    """Normalised mean error (NME): the mean distance of the five points, as a share of a length.

    Attributes:
        faces: Labelled faces with all five points.
        found: Those with a detection of IoU >= 0.5 with their box. The errors are over these; None: no such.
        nme_box: Mean over faces, by the square root of the true box's area.
        median_box: Its median, which a few wrong labels do not move.
        nme_interocular: Mean by the distance of the true eyes, over faces that are no profiles.
        by_landmark: Mean error of each point by the box, in the order of `LANDMARK_NAMES`.
    """

    faces: int
    found: int
    nme_box: float | None
    median_box: float | None
    nme_interocular: float | None
    by_landmark: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LandmarkErrors:
    """Errors face by face, so that two detectors can be compared on the same faces.

    Attributes:
        distances_px: float64 (faces, 5), from the true points, in the order of the photos and their faces;
            NaN where the face was not found.
        box_sides_px: float64 (faces,), square root of the true box's area.
        eye_distances_px: float64 (faces,), between the true eyes.
    """

    distances_px: Float64Array
    box_sides_px: Float64Array
    eye_distances_px: Float64Array

    @property
    def by_box(self) -> Float64Array:
        """float64 (faces,): mean distance as a share of the box's side; NaN where the face was not found."""
        shares: Float64Array = self.distances_px.mean(axis=1) / self.box_sides_px
        return shares

    def summary(self) -> LandmarkSummary:
        """Return the figures for a report."""
        found = ~np.isnan(self.by_box)
        frontal = found & (self.eye_distances_px >= MIN_EYE_DISTANCE * self.box_sides_px)
        points = self.distances_px[found] / self.box_sides_px[found, None]
        by_eyes = self.distances_px[frontal].mean(axis=1) / self.eye_distances_px[frontal]
        return LandmarkSummary(
            faces=len(found),
            found=int(found.sum()),
            nme_box=_mean(self.by_box[found]),
            median_box=float(np.median(self.by_box[found])) if found.any() else None,
            nme_interocular=_mean(by_eyes),
            by_landmark=dict(zip(LANDMARK_NAMES, points.mean(axis=0).tolist(), strict=True))
            if found.any()
            else {},
        )


def landmark_errors(photos: Sequence[LabelledPhoto], detections: Sequence[Faces]) -> LandmarkErrors:
    """Compare detections with the labels of the same photos, in the same order.

    A labelled face takes the detection that overlaps it most; faces with fewer than five labelled points are
    left out.

    Raises:
        DataError: No face of any photo has all five points, or one of them has no size.
    """
    distances, boxes, points = [], [], []
    for photo, found in zip(photos, detections, strict=True):
        labelled = np.isfinite(photo.landmarks).all(axis=(1, 2))
        boxes.append(np.asarray(photo.boxes_xyxy[labelled], np.float64))
        points.append(np.asarray(photo.landmarks[labelled], np.float64))
        distances.append(_distances_px(boxes[-1], points[-1], found))
    if not sum(len(b) for b in boxes):
        raise DataError("none of the photos has a face with five labelled landmarks")
    sides = np.concatenate(boxes)[:, 2:] - np.concatenate(boxes)[:, :2]
    if (sides <= 0).any():
        raise DataError("a labelled face has a box without size; 'facepipe data check' names it")
    eyes = np.concatenate(points)[:, :2]
    eye_distances = np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=1)
    return LandmarkErrors(np.concatenate(distances), np.sqrt(sides.prod(axis=1)), eye_distances)


def nme_ratio(errors: LandmarkErrors, reference: LandmarkErrors) -> float:
    """Return the box NME divided by that of `reference`, both over the faces that both detectors found.

    Raises:
        DataError: The errors are of other faces, or no face was found by both.
    """
    if not np.array_equal(errors.box_sides_px, reference.box_sides_px):
        raise DataError("the two landmark measurements are of different faces")
    both = ~np.isnan(errors.by_box) & ~np.isnan(reference.by_box)
    if not both.any():
        raise DataError("no face was found by both detectors")
    return float(errors.by_box[both].mean() / reference.by_box[both].mean())


def _distances_px(boxes_xyxy: Float64Array, points: Float64Array, found: Faces) -> Float64Array:
    distances = np.full((len(boxes_xyxy), len(LANDMARK_NAMES)), np.nan)
    if len(found) and len(boxes_xyxy):
        overlaps = iou_with_edges(boxes_xyxy, found.boxes_xyxy)
        hit = overlaps.max(axis=1) >= MATCH_IOU
        nearest = found.landmarks[overlaps.argmax(axis=1)[hit]].astype(np.float64)
        distances[hit] = np.linalg.norm(nearest - points[hit], axis=2)
    return distances


def _mean(values: RealArray) -> float | None:
    return float(np.mean(values)) if len(values) else None
