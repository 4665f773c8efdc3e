"""Finds the labels of a data set and reads them, whatever their format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.labels.coco import read_coco
from facepipe.evaluation.labels.models import LabelledPhoto, no_boxes
from facepipe.evaluation.labels.text_files import read_retinaface, read_wider
from facepipe.evaluation.labels.voc import read_voc
from facepipe.evaluation.labels.yolo import read_yolo
from facepipe.images.finding import find_photos

_Reader = Callable[[Path, Path], Iterator[LabelledPhoto]]

_IMAGE_FOLDERS = ("images", "JPEGImages")
_KNOWN = (
    "label.txt, *bbx_gt.txt, *.json, annotations/*.json (COCO), Annotations/*.xml (Pascal VOC) "
    "or labels/*.txt (YOLO)"
)


def read_labels(folder: Path, labels: Path | None = None) -> list[LabelledPhoto]:
    """Read the photos of a data set and their faces.

    The photos are in `folder/images` or `folder/JPEGImages`, or else in the folder itself.

    Args:
        folder: The data set.
        labels: The label file (`label.txt`, `*bbx_gt.txt`, COCO's `*.json`) or folder (Pascal VOC's `*.xml`,
            YOLO's `*.txt`); None: `folder/label.txt`, or else `folder/*bbx_gt.txt`, or else the one of
            another format.

    Raises:
        DataError: No labels or several, no photo in them, or a place that can't be read; names the file and
            the place.
    """
    labels = labels or _find_labels(folder)
    photos = list(_reader(labels)(labels, _images_folder(folder)))
    if not photos:
        raise DataError(f"{labels}: names no photos")
    return photos


def unlabelled_photos(folder: Path) -> list[LabelledPhoto]:
    """List all photos below a folder, without labels, for training by a teacher.

    Raises:
        UsageError: The folder holds no photos.
    """
    no_points = np.zeros((0, 5, 2), np.float32)
    return [LabelledPhoto(path, no_boxes(), no_points) for path in find_photos([folder])]


def _images_folder(folder: Path) -> Path:
    return next((folder / name for name in _IMAGE_FOLDERS if (folder / name).is_dir()), folder)


def _find_labels(folder: Path) -> Path:
    if (folder / "label.txt").is_file():
        return folder / "label.txt"
    found = sorted(folder.glob("*bbx_gt.txt")) or list(_other_formats(folder))
    if not found:
        raise DataError(f"{folder}: found no {_KNOWN}; docs/training.md shows the formats")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DataError(f"{folder}: found several label files ({names}); say which one")
    return found[0]


def _other_formats(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "annotations/*.json"):
        yield from sorted(folder.glob(pattern))
    for name, pattern in (("Annotations", "*.xml"), ("labels", "*.txt")):
        if any((folder / name).rglob(pattern)):
            yield folder / name


def _reader(labels: Path) -> _Reader:
    if labels.is_dir():
        return _folder_reader(labels)
    if labels.name.endswith("bbx_gt.txt"):
        return read_wider
    return read_coco if labels.suffix.lower() == ".json" else read_retinaface


def _folder_reader(labels: Path) -> _Reader:
    if any(labels.rglob("*.xml")):
        return read_voc
    if any(labels.rglob("*.txt")):
        return read_yolo
    raise DataError(
        f"{labels}: holds no *.xml (Pascal VOC) and no *.txt (YOLO); name a file or another folder"
    )
