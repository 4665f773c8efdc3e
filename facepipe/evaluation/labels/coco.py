"""COCO's annotations: one JSON file of photos, boxes and keypoints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import DataError
from facepipe.core.faces import LANDMARK_NAMES, FloatArray
from facepipe.core.validation import decode_json
from facepipe.evaluation.labels.fields import face_categories, photo_path, read_file, to_numbers
from facepipe.evaluation.labels.models import UNKNOWN_POINT, FaceLabel, LabelledPhoto

Id = int | str

_KEYPOINTS = 15
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class _Image:
    id: Id
    file_name: str


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: Id
    bbox: tuple[float, float, float, float]
    category_id: Id | None = None
    keypoints: tuple[float, ...] = ()
    iscrowd: int | bool = 0


@dataclass(frozen=True, slots=True)
class _Category:
    id: Id
    name: str


@dataclass(frozen=True, slots=True)
class _Dataset:
    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]
    categories: tuple[_Category, ...] = ()


def read_coco(labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    """Yield the photos of COCO's annotations, in the order of `images`.

    `bbox` is left, top, width, height in pixels. `keypoints` are five of x, y and visibility (0: unknown), in
    the order of `LANDMARK_NAMES`; none, or all 0, where the face has none. A face of `iscrowd` 1 is ignored.

    Args:
        labels: The JSON file.
        images: Folder of the photos.

    Raises:
        DataError: Not such a file, or a value that can't be read; names the file and the place.
    """
    try:
        dataset = decode_json(read_file(labels).removeprefix(_BYTE_ORDER_MARK), _Dataset)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{labels}: not annotations of COCO: {error}") from error
    paths = _paths(dataset, labels, images)
    faces = _faces(dataset, labels, paths)
    for image_id, path in paths.items():
        yield LabelledPhoto.of_faces(path, faces[image_id])


def coco_json(photos: Sequence[LabelledPhoto], images: Path) -> bytes:
    """Return annotations that `read_coco` reads as these photos, which are below the folder `images`."""
    annotations = []
    for number, photo in enumerate(photos):
        for box, points in zip(photo.boxes_xyxy, photo.landmarks, strict=True):
            annotations.append(_annotation(number, box) | {"keypoints": _keypoints(points)})
        annotations += [_annotation(number, box) | {"iscrowd": 1} for box in photo.ignored_xyxy]
    dataset = {
        "images": [
            {"id": number, "file_name": photo.path.relative_to(images).as_posix()}
            for number, photo in enumerate(photos)
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations)],
        "categories": [{"id": 1, "name": "face", "keypoints": list(LANDMARK_NAMES)}],
    }
    return json.dumps(dataset).encode()


def _annotation(photo: int, box_xyxy: FloatArray) -> dict[str, Any]:
    left, top, right, bottom = (float(edge) for edge in box_xyxy)
    return {
        "image_id": photo,
        "category_id": 1,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def _keypoints(points: FloatArray) -> list[float]:
    known = np.isfinite(points).all(axis=1, keepdims=True)
    rows: list[float] = np.hstack([np.where(known, points, 0), 2.0 * known]).round(2).ravel().tolist()
    return rows


def _paths(dataset: _Dataset, labels: Path, images: Path) -> dict[Id, Path]:
    paths: dict[Id, Path] = {}
    for number, image in enumerate(dataset.images):
        place = f"{labels}, images[{number}]"
        if image.id in paths:
            raise DataError(f"{place}: expected an id of its own, got {str(image.id)[:60]!r} again")
        paths[image.id] = photo_path(images, image.file_name, place)
    return paths


def _faces(dataset: _Dataset, labels: Path, paths: dict[Id, Path]) -> dict[Id, list[FaceLabel]]:
    names: dict[Id | None, str] = {category.id: category.name for category in dataset.categories}
    wanted = face_categories(names.values(), labels)
    faces: dict[Id, list[FaceLabel]] = defaultdict(list)
    for number, annotation in enumerate(dataset.annotations):
        place = f"{labels}, annotations[{number}]"
        if annotation.image_id not in paths:
            raise DataError(f"{place}: image_id {str(annotation.image_id)[:60]!r} is not among the images")
        if names and annotation.category_id not in names:
            raise DataError(f"{place}: category_id {str(annotation.category_id)[:60]!r} is not a category")
        if names and names[annotation.category_id] not in wanted:
            continue
        faces[annotation.image_id].append(
            FaceLabel.of_xywh(
                to_numbers(annotation.bbox, place),
                _landmarks(annotation.keypoints, place),
                bool(annotation.iscrowd),
            )
        )
    return faces


def _landmarks(keypoints: Sequence[float], place: str) -> list[tuple[float, float]]:
    if not any(keypoints):
        return []
    if len(keypoints) != _KEYPOINTS:
        wanted = f"keypoints of {_KEYPOINTS} numbers (five landmarks of x, y and visibility)"
        raise DataError(f"{place}: expected {wanted}, got {len(keypoints)}")
    numbers = to_numbers(keypoints, place)
    points = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [(x, y) if visibility else UNKNOWN_POINT for x, y, visibility in points]
