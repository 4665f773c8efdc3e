"""Contact sheets of training crops with their labels, and of a detector's faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from facepipe.core.errors import PhotoError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.evaluation.detector import scored_boxes
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.evaluation.metrics.detection import MIN_FACE_PX, PrecisionRecall, counted_faces
from facepipe.evaluation.mistakes import MeasuredPhoto, find_mistakes
from facepipe.images.drawing import draw_faces
from facepipe.images.reading import read_image
from facepipe.training.detection.augment import AugmentConfig, TrainingCrop
from facepipe.training.detection.crops import CropSampler, WeightedPhotos
from facepipe.training.engine.curves import new_figure, save_figure

_BOX_RGB, _IGNORED_RGB, _ALARM_RGB = (0, 230, 80), (255, 160, 0), (255, 40, 40)
_LANDMARK_RGB = ((255, 0, 0), (0, 120, 255), (255, 255, 255), (255, 0, 200), (0, 230, 230))
_GAP_PX = 6
_SHEET_COLUMNS = 4


def preview(
    data: Sequence[WeightedPhotos],
    config: AugmentConfig,
    *,
    seed: int = 0,
    count: int = 24,
    columns: int = 6,
    cell_px: int = 320,
) -> UInt8Array:
    """Draw a contact sheet of the first crops of a run with their labels.

    Boxes that train are green, ignored faces orange and crossed out. Landmarks: left eye red, right eye blue,
    nose white, left corner of the mouth pink, right one cyan; left and right as the viewer sees them, also in
    mirrored crops.

    Returns:
        RGB uint8.
    """
    sampler = CropSampler(data, config, seed)
    return contact_sheet([draw_crop(sampler[i].crop, cell_px) for i in range(count)], columns)


def draw_crop(crop: TrainingCrop, side_px: int) -> UInt8Array:
    """Draw a crop scaled to `side_px` with boxes, ignored faces and landmarks: see `preview`."""
    scale = side_px / crop.pixels.shape[0]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    picture = np.asarray(cv2.resize(crop.pixels, (side_px, side_px), interpolation=how), np.uint8)
    for box in crop.ignored_xyxy * scale:
        first, last = _corners(box)
        cv2.rectangle(picture, first, last, _IGNORED_RGB, 1)
        cv2.line(picture, first, last, _IGNORED_RGB, 1)
    for box, points in zip(crop.boxes_xyxy * scale, crop.landmarks * scale, strict=True):
        cv2.rectangle(picture, *_corners(box), _BOX_RGB, 1)
        for point, colour in zip(points, _LANDMARK_RGB, strict=True):
            if np.isfinite(point).all():
                cv2.circle(picture, (round(float(point[0])), round(float(point[1]))), 2, colour, -1)
    return picture


def detection_sheet(
    detector: FaceDetector,
    photos: Sequence[LabelledPhoto],
    *,
    labelled: bool,
    cell_px: int = 480,
) -> UInt8Array:
    """Draw a contact sheet of photos with the faces that the detector finds; RGB uint8.

    Where photos are labelled, faces that it misses are crossed out in orange, and false alarms have a red
    box. Photos that can't be read are left out.
    """
    cells = []
    for photo in photos:
        with suppress(PhotoError):
            pixels = read_image(photo.path)
            faces = detector.detect(pixels)
            picture = draw_faces(pixels, faces)
            if labelled:
                _draw_mistakes(picture, photo, faces, detector.options.score_threshold)
            cells.append(_letterboxed(picture, cell_px))
    return contact_sheet(cells or [np.full((cell_px, cell_px, 3), 255, np.uint8)], _SHEET_COLUMNS)


def _draw_mistakes(picture: UInt8Array, photo: LabelledPhoto, faces: Faces, score: float) -> None:
    measured = MeasuredPhoto(photo.path, *counted_faces(photo, MIN_FACE_PX), scored_boxes(faces))
    mistakes = find_mistakes([measured], score)
    width = max(1, max(picture.shape[:2]) // 300)
    for missed in mistakes.missed:
        first, last = _corners(np.array(missed.box_xyxy, np.float32))
        cv2.rectangle(picture, first, last, _IGNORED_RGB, width)
        cv2.line(picture, first, last, _IGNORED_RGB, width)
    for alarm in mistakes.alarms:
        cv2.rectangle(picture, *_corners(np.array(alarm.box_xyxy, np.float32)), _ALARM_RGB, width)


def write_precision_recall(curves: Mapping[str, PrecisionRecall], picture: Path) -> None:
    """Write a PNG of precision-recall curves; the legend gives each one's average precision.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: The file can't be written.
    """
    figure = new_figure(5.0, 4.5)
    panel = figure.subplots()
    for name, curve in curves.items():
        reached = curve.precision > 0
        ap = "no faces" if curve.ap is None else f"AP {100 * curve.ap:.1f}"
        panel.plot(curve.recall[reached], curve.precision[reached], label=f"{name}: {ap}")
    panel.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    panel.grid(alpha=0.3)
    panel.legend(loc="lower left")
    save_figure(figure, picture)


def contact_sheet(cells: Sequence[UInt8Array], columns: int) -> UInt8Array:
    """Arrange images of one size in rows of `columns`, on white."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    columns = min(columns, len(cells))
    sheet = np.full((rows * (height + _GAP_PX), columns * (width + _GAP_PX), 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        y, x = i // columns * (height + _GAP_PX), i % columns * (width + _GAP_PX)
        sheet[y : y + height, x : x + width] = cell
    return sheet


def _corners(box: FloatArray) -> tuple[tuple[int, int], tuple[int, int]]:
    left, top, right, bottom = (round(float(edge)) for edge in box)
    return (left, top), (right, bottom)


def _letterboxed(picture: UInt8Array, side: int) -> UInt8Array:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    cell = np.full((side, side, 3), 255, np.uint8)
    cell[: size_wh[1], : size_wh[0]] = cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)
    return cell
