"""The WIDER FACE protocol on any subset of its validation photos.

Source: S. Yang et al., "WIDER FACE: A Face Detection Benchmark", 2016, and the evaluation tool published with
it. One difference has no effect on its photos, which all have faces: detections in a photo without any are
false alarms here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import BoolArray, Float64Array, RealArray
from facepipe.evaluation.metrics.detection import DetectionResult, detection_result, match_detections

SETTINGS = ("easy", "medium", "hard")
"""The official subsets, each holding the one before it: faces by size, occlusion and pose."""


@dataclass(frozen=True, slots=True)
class WiderPhoto:
    """True faces of one photo.

    Attributes:
        boxes_xyxy: float64 (n, 4), pixels of the original photo.
        counted: Per setting of `SETTINGS`, bool (n,): the faces that count; the others are ignored.
    """

    boxes_xyxy: Float64Array
    counted: tuple[BoolArray, BoolArray, BoolArray]


@dataclass(frozen=True, slots=True)
class WiderGroundTruth:
    """The official ground truth; `photos` by key, see `wider_key`."""

    photos: Mapping[str, WiderPhoto]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `wider_face_val.mat` and `wider_{easy,medium,hard}_val.mat`.

        Raises:
            DataError: A file is missing or damaged, or the files do not belong together.
        """
        boxes = {
            key: _xyxy(np.asarray(rows, np.float64).reshape(-1, 4))
            for key, rows in _photo_cells(folder / "wider_face_val.mat", "face_bbx_list")
        }
        files = [folder / f"wider_{setting}_val.mat" for setting in SETTINGS]
        easy, medium, hard = (_counted_faces(file, boxes) for file in files)
        return cls({key: WiderPhoto(boxes[key], (easy[key], medium[key], hard[key])) for key in boxes})


def wider_key(photo: PurePath) -> str:
    """Return the key of a photo at `.../<event>/<stem>.<any format>`: "<event>/<stem>"."""
    return f"{photo.parent.name}/{photo.stem}"


def wider_ap(ground_truth: WiderGroundTruth, detections: Mapping[str, RealArray]) -> DetectionResult:
    """Measure detections by the official protocol: a curve for each of `SETTINGS`.

    Args:
        ground_truth: All photos of the benchmark, or more than are measured.
        detections: By `wider_key`, (n, 5): x1 y1 x2 y2 in pixels of the original photo, score. The keys are
            the subset to measure: a photo without detections must be there, with (0, 5).

    Raises:
        DataError: No photo, a photo without ground truth, or malformed detections.
    """
    if unknown := detections.keys() - ground_truth.photos.keys():
        raise DataError(
            f"{min(unknown)}: not a photo of the WIDER FACE ground truth; keys are '<event>/<stem>'"
        )
    photos = [ground_truth.photos[key] for key in detections]
    boxes = [photo.boxes_xyxy for photo in photos]
    matching = match_detections(boxes, list(detections.values()))
    counted = {
        name: np.concatenate([photo.counted[i] for photo in photos]) for i, name in enumerate(SETTINGS)
    }
    return detection_result(matching, boxes, counted)


def _counted_faces(file: Path, boxes: Mapping[str, Float64Array]) -> dict[str, BoolArray]:
    kept = dict(_photo_cells(file, "gt_list"))
    if kept.keys() != boxes.keys():
        raise DataError(f"{file}: lists other photos than wider_face_val.mat beside it")
    return {key: _mask(file, rows, len(boxes[key])) for key, rows in kept.items()}


def _mask(file: Path, rows_from_one: RealArray, faces: int) -> BoolArray:
    rows = np.asarray(rows_from_one, np.int64).ravel() - 1
    if len(rows) and not (rows.min() >= 0 and rows.max() < faces):
        raise DataError(f"{file}: keeps face {rows.max() + 1} of a photo that has {faces}")
    mask = np.zeros(faces, np.bool_)
    mask[rows] = True
    return mask


def _photo_cells(file: Path, column: str) -> list[tuple[str, RealArray]]:
    """One column of a ground-truth file, photo by photo: its key and its cell."""
    from scipy.io import loadmat

    try:
        with file.open("rb") as stream:
            table = loadmat(stream, variable_names=["event_list", "file_list", column])
        return [
            (f"{event[0].item()}/{name[0].item()}", cell[0])
            for event, names, cells in zip(
                *(table[c] for c in ("event_list", "file_list", column)), strict=True
            )
            for name, cell in zip(names[0], cells[0], strict=True)
        ]
    except FileNotFoundError as error:
        raise DataError(f"{file}: WIDER FACE ground truth not found; it is part of its eval_tools") from error
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DataError(f"{file}: not WIDER FACE ground truth ({type(error).__name__}: {error})") from error


def _xyxy(boxes_xywh: Float64Array) -> Float64Array:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
