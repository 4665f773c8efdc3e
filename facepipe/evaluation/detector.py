"""Accuracy of a detector in published settings: WIDER FACE's protocol or any labels, landmarks, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, UInt8Array, mirror_boxes, mirror_landmarks
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.evaluation.arrays import Float64Array
from facepipe.evaluation.labels import read_labels
from facepipe.evaluation.metrics.detection import (
    MIN_FACE_PX,
    DetectionResult,
    counted_faces,
    labelled_ap,
)
from facepipe.evaluation.metrics.landmarks import LandmarkSummary, landmark_errors
from facepipe.evaluation.metrics.wider import WiderGroundTruth, wider_ap, wider_key
from facepipe.evaluation.mistakes import MeasuredPhoto, Mistakes, find_mistakes
from facepipe.images.finding import find_photos
from facepipe.images.reading import DEFAULT_MAX_PIXELS, read_image
from facepipe.retinaface.nms import nms

Setting = Literal["original", "letterbox640", "letterbox640_gray", "short1600"]
SETTINGS: tuple[str, ...] = get_args(Setting)

SCORE_THRESHOLD = 0.02
"""Of published figures: average precision wants the whole curve."""
NMS_IOU: dict[Setting, float] = {
    "original": 0.4,
    "letterbox640": 0.45,
    "letterbox640_gray": 0.45,
    "short1600": 0.4,
}
"""Of published figures."""

_LETTERBOX_PX = 640
_GRAY = 128
_SHORT_SIDE_PX, _LONGEST_SIDE_PX = 1600, 2150

Watch = Callable[[Sequence[Path]], Iterable[Path]]


@dataclass(frozen=True, slots=True)
class DetectorProtocol:
    """The size at which photos are analyzed, and which detections count.

    Attributes:
        setting: "original": photos as they are; "letterbox640": the longer side becomes 640 px (what a square
            would add is padding, which holds no face); "letterbox640_gray": likewise, in the centre of a gray
            square of 640 px; "short1600": the shorter side becomes 1600 px, or the longer one 2150 where it
            would be larger.
        flip: Detect in the mirrored photo too, and keep the better box of each face.
        multi_scale: See `DetectorOptions`: True as photos are served, False as published figures are made.
        score_threshold: Smallest confidence, 0..1.
        nms_iou: Of two boxes that overlap more, the better stays; None: see `NMS_IOU`.
    """

    setting: Setting = "original"
    flip: bool = False
    multi_scale: bool = False
    score_threshold: float = SCORE_THRESHOLD
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise UsageError(f"setting: expected one of {', '.join(SETTINGS)}, got {self.setting!r}")

    @property
    def overlap(self) -> float:
        """The IoU of non-maximum suppression."""
        return NMS_IOU[self.setting] if self.nms_iou is None else self.nms_iou

    def options(self) -> DetectorOptions:
        """Return the detector's options, for photos that are scaled already."""
        return DetectorOptions(
            self.score_threshold, self.overlap, max_side=None, multi_scale=self.multi_scale
        )

    def scale(self, width_px: int, height_px: int) -> float:
        """Return the factor from the photo's sides to those of the network's input."""
        short, long = sorted((width_px, height_px))
        if self.setting in ("letterbox640", "letterbox640_gray"):
            return _LETTERBOX_PX / long
        if self.setting == "short1600":
            return min(_SHORT_SIDE_PX / short, _LONGEST_SIDE_PX / long)
        return 1.0


@dataclass(frozen=True, slots=True)
class DetectorEvaluation:
    """Accuracy of one detector.

    Attributes:
        weights: The detector's name.
        protocol: How it was measured.
        result: By WIDER FACE's protocol, or on labelled faces.
        min_face_px: Height from which labelled faces count; None: WIDER FACE's protocol.
        landmarks: Errors on labelled faces, where there was a data set of them.
        ms_per_photo: Of detection, without reading the photo.
        mistakes: At the score from which `facepipe identify` takes detections for faces.
    """

    weights: str
    protocol: DetectorProtocol
    result: DetectionResult
    min_face_px: float | None
    landmarks: LandmarkSummary | None
    ms_per_photo: float
    mistakes: Mistakes

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "weights": self.weights,
            "protocol": {**asdict(self.protocol), "nms_iou": self.protocol.overlap},
            **self.result.to_dict(),
            "min_face_px": self.min_face_px,
            "landmarks": self.landmarks.to_dict() if self.landmarks else None,
            "ms_per_photo": round(self.ms_per_photo, 2),
        }


def evaluate_detector(
    detector: FaceDetector,
    protocol: DetectorProtocol,
    images: Path,
    ground_truth: Path | None = None,
    landmarks: Path | None = None,
    *,
    labels: Path | None = None,
    min_face_px: float = MIN_FACE_PX,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    watch: Watch = iter,
) -> DetectorEvaluation:
    """Measure a detector; its options are replaced by the protocol's.

    Args:
        detector: What is measured.
        protocol: See `DetectorProtocol`.
        images: With ground truth, any part of WIDER FACE's validation set as EVENT/NAME; else a data set with
            labels (docs/training.md).
        ground_truth: Folder of the official .mat files; None: the data set's labels are the truth.
        landmarks: A data set whose faces have landmarks.
        labels: See `read_labels`.
        min_face_px: Labelled faces lower than this are ignored.
        max_pixels: Larger photos are refused.
        watch: Hands on the photos one by one, for a progress bar.

    Raises:
        DataError: The ground truth or the labels are missing or damaged, or a photo is not in them.
        PhotoError: A photo can't be read.
    """
    truth = WiderGroundTruth.load(ground_truth) if ground_truth else None
    photos = [] if truth else read_labels(images, labels)
    with_landmarks = read_labels(landmarks) if landmarks else []
    detector.options = protocol.options()
    timer = _TimedDetector(detector, protocol, max_pixels)
    if truth:
        paths = find_photos([images])
        found = {wider_key(path): scored_boxes(timer.detect(path)) for path in watch(paths)}
        result = wider_ap(truth, found)
        measured = [
            MeasuredPhoto(path, known.boxes_xyxy, known.counted[-1], found[key])
            for path in paths
            for key in [wider_key(path)]
            for known in [truth.photos[key]]
        ]
    else:
        paths = [photo.path for photo in photos]
        rows = [scored_boxes(timer.detect(path)) for path in watch(paths)]
        result = labelled_ap(photos, rows, min_face_px)
        measured = [
            MeasuredPhoto(photo.path, *counted_faces(photo, min_face_px), own)
            for photo, own in zip(photos, rows, strict=True)
        ]
    ms_per_photo = 1000 * timer.seconds / result.photos
    faces = [timer.detect(path) for path in watch([photo.path for photo in with_landmarks])]
    errors = landmark_errors(with_landmarks, faces).summary() if with_landmarks else None
    height = None if truth else min_face_px
    mistakes = find_mistakes(measured, DetectorOptions().score_threshold)
    return DetectorEvaluation(detector.card.name, protocol, result, height, errors, ms_per_photo, mistakes)


class _TimedDetector:
    """Detects the faces of photo files, and adds up the seconds that this takes without reading them."""

    def __init__(self, detector: FaceDetector, protocol: DetectorProtocol, max_pixels: int) -> None:
        self._detector, self._protocol, self._max_pixels = detector, protocol, max_pixels
        self.seconds = 0.0

    def detect(self, path: Path) -> Faces:
        """See `find_faces`."""
        photo = read_image(path, max_pixels=self._max_pixels)
        started = time.perf_counter()
        faces = find_faces(self._detector, photo, self._protocol)
        self.seconds += time.perf_counter() - started
        return faces


def find_faces(detector: FaceDetector, photo: UInt8Array, protocol: DetectorProtocol) -> Faces:
    """Detect the faces of one RGB photo (h, w, 3) by the protocol, in the photo's pixels.

    Args:
        detector: With the protocol's options.
        photo: RGB uint8 (h, w, 3).
        protocol: See `DetectorProtocol`.
    """
    height, width = photo.shape[:2]
    scaled = _scaled(photo, protocol.scale(width, height))
    left, top, view = _on_gray(scaled) if protocol.setting == "letterbox640_gray" else (0, 0, scaled)
    faces = detector.detect(view)
    if protocol.flip:
        mirrored = detector.detect(np.ascontiguousarray(view[:, ::-1]))
        faces = _better_of_both(faces, _mirrored(mirrored, view.shape[1]), protocol.overlap)
    # Sides are rounded to whole pixels one by one, so that each axis has a scale of its own.
    back = np.array([width / scaled.shape[1], height / scaled.shape[0]], np.float32)
    points = (faces.landmarks - np.array([left, top], np.float32)) * back
    boxes = (faces.boxes_xyxy - np.array([left, top] * 2, np.float32)) * np.tile(back, 2)
    inside = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    return Faces(inside, faces.scores, points)


def scored_boxes(faces: Faces) -> Float64Array:
    """float64 (n, 5), x1 y1 x2 y2 score, as the measurements take detections."""
    rows: Float64Array = np.concatenate([faces.boxes_xyxy, faces.scores[:, None]], axis=1, dtype=np.float64)
    return rows


def _scaled(photo: UInt8Array, scale: float) -> UInt8Array:
    if scale == 1.0:
        return photo
    size_wh = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    # Averaging areas would be a little better (0.1 of AP at 640 px); published figures are made so.
    return np.asarray(cv2.resize(photo, size_wh, interpolation=cv2.INTER_LINEAR), np.uint8)


def _on_gray(photo: UInt8Array) -> tuple[int, int, UInt8Array]:
    """Return a gray square with the photo in its centre, and the photo's left and top edge in it."""
    height, width = photo.shape[:2]
    left, top = (_LETTERBOX_PX - width) // 2, (_LETTERBOX_PX - height) // 2
    square = np.full((_LETTERBOX_PX, _LETTERBOX_PX, 3), _GRAY, np.uint8)
    square[top : top + height, left : left + width] = photo
    return left, top, square


def _mirrored(faces: Faces, width_px: int) -> Faces:
    boxes, points = faces.boxes_xyxy, faces.landmarks
    return Faces(mirror_boxes(boxes, width_px), faces.scores, mirror_landmarks(points, width_px))


def _better_of_both(first: Faces, second: Faces, iou: float) -> Faces:
    both = Faces(
        np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.landmarks, second.landmarks]),
    )
    return nms(both, iou)
