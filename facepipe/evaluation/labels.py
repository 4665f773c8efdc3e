"""Label files of detection data sets: RetinaFace's `label.txt` and WIDER FACE's `*bbx_gt.txt`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from facepipe.core.errors import DataError
from facepipe.core.faces import FloatArray
from facepipe.images.finding import find_photos

_LANDMARK_COLUMNS = slice(4, 19)
_RETINAFACE_LINES = {
    4: "a box",
    19: "a box and five landmarks of x, y and a flag",
    20: "the same and a number that is not used",
}
"""What lines of so many numbers hold; others would lose landmarks without a word."""
_WIDER_LINES = {4: "a box", 10: "a box and six attributes"}
_WIDER_INVALID_COLUMN = 7
_MAX_DIGITS = 9


def _no_boxes() -> FloatArray:
    return np.zeros((0, 4), np.float32)


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
    ignored_xyxy: FloatArray = field(default_factory=_no_boxes)


def read_labels(folder: Path, labels: Path | None = None) -> list[LabelledPhoto]:
    """Read the photos of a data set: `folder/images` and a label file in one of the two formats.

    Args:
        folder: The data set.
        labels: The label file; None: `folder/label.txt`, or else the one `folder/*bbx_gt.txt`.

    Raises:
        DataError: No label file or several, no photo in it, or a line that can't be read; names the file
            and the line.
    """
    labels = labels or _find_labels(folder)
    try:
        lines = labels.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{labels}: can't read these labels: {error}") from error
    images = folder / "images"
    read = _wider_photos if labels.name.endswith("bbx_gt.txt") else _retinaface_photos
    photos = list(read(lines, labels, images if images.is_dir() else folder))
    if not photos:
        raise DataError(f"{labels}: names no photos")
    return photos


def unlabelled_photos(folder: Path) -> list[LabelledPhoto]:
    """List all photos below a folder, without labels, for training by a teacher.

    Raises:
        UsageError: The folder holds no photos.
    """
    no_points = np.zeros((0, 5, 2), np.float32)
    return [LabelledPhoto(path, _no_boxes(), no_points) for path in find_photos([folder])]


def _find_labels(folder: Path) -> Path:
    if (folder / "label.txt").is_file():
        return folder / "label.txt"
    found = sorted(folder.glob("*bbx_gt.txt"))
    if not found:
        raise DataError(f"{folder}: found no label.txt and no *bbx_gt.txt; docs/training.md shows the forms")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: found several label files ({names}); say which one")
    return found[0]


def _retinaface_photos(lines: list[str], labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    name: str | None = None
    rows: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            if name is not None:
                yield _labelled(images / name, rows)
            name, rows = line[1:].strip(), []
        elif line.strip():
            if name is None:
                raise DataError(f"{labels}, line {number}: expected '# photo' before the first face")
            rows.append(_numbers(line, labels, number, _RETINAFACE_LINES))
    if name is not None:
        yield _labelled(images / name, rows)


def _wider_photos(lines: list[str], labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    while lines and not lines[-1].strip():
        lines.pop()
    at = 0
    while at < len(lines):
        name, count = lines[at].strip(), _face_count(lines, at + 1, labels)
        # A photo without faces still has one line of zeros.
        end = at + 2 + max(count, 1)
        if end > len(lines):
            raise DataError(f"{labels}, line {at + 2}: the file ends before the {count} faces of {name}")
        rows = [_numbers(lines[i], labels, i + 1, _WIDER_LINES) for i in range(at + 2, end)][:count]
        invalid = [len(row) > _WIDER_INVALID_COLUMN and row[_WIDER_INVALID_COLUMN] == 1 for row in rows]
        yield _labelled(images / name, [row[:4] for row in rows], invalid)
        at = end


def _face_count(lines: list[str], at: int, labels: Path) -> int:
    word = lines[at].strip() if at < len(lines) else ""
    if not word.isdecimal() or len(word) > _MAX_DIGITS:
        raise DataError(f"{labels}, line {at + 1}: expected the number of faces, got {word[:60]!r}")
    return int(word)


def _numbers(line: str, labels: Path, number: int, known: Mapping[int, str]) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError as error:
        raise DataError(f"{labels}, line {number}: expected numbers, got {line[:60]!r}") from error
    if not all(math.isfinite(value) for value in values):
        raise DataError(f"{labels}, line {number}: expected finite numbers, got {line[:60]!r}")
    if len(values) not in known:
        wanted = ", or ".join(f"{count} numbers ({meaning})" for count, meaning in known.items())
        raise DataError(f"{labels}, line {number}: expected {wanted}, got {len(values)}: {line[:60]!r}")
    return values


def _labelled(path: Path, rows: Sequence[Sequence[float]], invalid: Sequence[bool] = ()) -> LabelledPhoto:
    boxes = np.zeros((len(rows), 4), np.float32)
    landmarks = np.full((len(rows), 5, 2), np.nan, np.float32)
    for i, row in enumerate(rows):
        x, y, w, h = row[:4]
        boxes[i] = x, y, x + w, y + h
        if len(row) >= _LANDMARK_COLUMNS.stop:
            points = np.asarray(row[_LANDMARK_COLUMNS], np.float32).reshape(5, 3)[:, :2]
            # A point may lie outside the photo, at any negative place; only (-1, -1) means unknown.
            landmarks[i] = np.where((points == -1).all(axis=1, keepdims=True), np.nan, points)
    bad = np.array(invalid, bool) if len(invalid) else np.zeros(len(rows), bool)
    return LabelledPhoto(path, boxes[~bad], landmarks[~bad], boxes[bad])
