"""YOLO's labels: one text file a photo, in shares of the photo's width and height."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from facepipe.core.errors import DataError, PhotoError, UsageError
from facepipe.evaluation.labels.fields import face_categories, read_lines, to_numbers
from facepipe.evaluation.labels.models import UNKNOWN_POINT, FaceLabel, LabelledPhoto
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_size

_CLASS_NAMES = "classes.txt"
_VALUES_OF_POINT = {5: 0, 15: 2, 20: 3}
"""Numbers of a line: class and box, and with five landmarks of x, y or of x, y and visibility."""


def read_yolo(labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    """Yield the photos below `images`, in natural order, with the labels in files of the same names.

    A photo without such a file has no faces. One that can't be read has none either, since its size is not
    known; a file without a photo is taken for one of a `.jpg` that is missing. `facepipe data check` lists
    both. Classes are named, one a line, in a file `classes.txt` in `labels` or beside it.

    Args:
        labels: Folder of the text files, with sub-folders as those of the photos.
        images: Folder of the photos; their upright sizes are read.

    Raises:
        DataError: There are no photos, or a line can't be read; names the file and the line.
    """
    found = sorted(labels.rglob("*.txt"))
    files = {file.relative_to(labels).with_suffix(""): file for file in found if file.name != _CLASS_NAMES}
    faces = {name: _read_faces(file) for name, file in files.items()}
    wanted = _face_classes(labels, {kind for rows in faces.values() for kind, _ in rows})
    names = {path: path.relative_to(images).with_suffix("") for path in _photos(images)}
    with_photo = set(names.values())
    missing = {images / f"{name}.jpg": name for name in faces if name not in with_photo}
    for path, name in {**names, **missing}.items():
        rows = [values for kind, values in faces.get(name, []) if kind in wanted]
        yield LabelledPhoto.of_faces(path, _in_pixels(rows, path))


def _photos(images: Path) -> list[Path]:
    try:
        return find_photos([images])
    except UsageError as error:
        raise DataError(str(error)) from error


def _read_faces(file: Path) -> list[tuple[int, list[float]]]:
    """Return the class of each face, and its numbers without it."""
    faces = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        kind, *values = to_numbers(line.split(), place)
        if len(values) + 1 not in _VALUES_OF_POINT:
            wanted = "5 numbers (class and box), 15 (and five landmarks) or 20 (with visibility)"
            raise DataError(f"{place}: expected {wanted}, got {len(values) + 1}: {line[:60]!r}")
        if kind != int(kind) or kind < 0:
            raise DataError(f"{place}: expected the number of a class, got {line.split()[0][:60]!r}")
        faces.append((int(kind), values))
    return faces


def _face_classes(labels: Path, used: set[int]) -> set[int]:
    """Return which classes are faces; those without a name are named by their numbers."""
    files = (folder / _CLASS_NAMES for folder in (labels, labels.parent))
    lines = next((read_lines(file) for file in files if file.is_file()), [])
    names = {
        **{kind: str(kind) for kind in used},
        **{kind: line for kind, line in enumerate(lines) if line.strip()},
    }
    wanted = face_categories(names.values(), labels)
    return {kind for kind, name in names.items() if name in wanted}


def _in_pixels(rows: Sequence[Sequence[float]], photo: Path) -> list[FaceLabel]:
    if not rows:
        return []
    try:
        size_wh = read_size(photo)
    except PhotoError:
        return []
    return [_face(row, size_wh) for row in rows]


def _face(row: Sequence[float], size_wh: tuple[int, int]) -> FaceLabel:
    width, height = size_wh
    x, y, w, h = row[0] * width, row[1] * height, row[2] * width, row[3] * height
    return FaceLabel((x - w / 2, y - h / 2, x + w / 2, y + h / 2), _landmarks(row, width, height))


def _landmarks(row: Sequence[float], width: int, height: int) -> list[tuple[float, float]]:
    step = _VALUES_OF_POINT[len(row) + 1]
    points = [row[i : i + step] for i in range(4, len(row), step)] if step else []
    return [(point[0] * width, point[1] * height) if _is_known(point) else UNKNOWN_POINT for point in points]


def _is_known(point: Sequence[float]) -> bool:
    return point[2] > 0 if len(point) > 2 else (point[0], point[1]) != (-1, -1)
