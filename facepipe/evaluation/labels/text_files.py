"""Line by line: RetinaFace's `label.txt` and WIDER FACE's `*bbx_gt.txt`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from facepipe.core.errors import DataError
from facepipe.evaluation.labels.fields import photo_path, read_lines, to_numbers
from facepipe.evaluation.labels.models import UNKNOWN_POINT, FaceLabel, LabelledPhoto

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


def read_retinaface(labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    """Yield the photos of RetinaFace's `label.txt`: `# photo`, then a line for each face.

    Args:
        labels: The file.
        images: Folder of the photos.

    Raises:
        DataError: A line can't be read; names the file and the line.
    """
    path: Path | None = None
    faces: list[FaceLabel] = []
    for number, line in enumerate(read_lines(labels), 1):
        place = f"{labels}, line {number}"
        if line.startswith("#"):
            if path is not None:
                yield LabelledPhoto.of_faces(path, faces)
            path, faces = photo_path(images, line[1:].strip(), place), []
        elif line.strip():
            if path is None:
                raise DataError(f"{place}: expected '# photo' before the first face")
            faces.append(_retinaface_face(_row(line, place, _RETINAFACE_LINES)))
    if path is not None:
        yield LabelledPhoto.of_faces(path, faces)


def read_wider(labels: Path, images: Path) -> Iterator[LabelledPhoto]:
    """Yield the photos of WIDER FACE's `*bbx_gt.txt`; faces marked invalid are ignored.

    Args:
        labels: The file.
        images: Folder of the photos.

    Raises:
        DataError: A line can't be read; names the file and the line.
    """
    lines = read_lines(labels)
    while lines and not lines[-1].strip():
        lines.pop()
    at = 0
    while at < len(lines):
        path = photo_path(images, lines[at].strip(), f"{labels}, line {at + 1}")
        count = _face_count(lines, at + 1, labels)
        # A photo without faces still has one line of zeros.
        end = at + 2 + max(count, 1)
        if end > len(lines):
            raise DataError(f"{labels}, line {at + 2}: the file ends before the {count} faces of {path.name}")
        rows = [_row(lines[i], f"{labels}, line {i + 1}", _WIDER_LINES) for i in range(at + 2, end)]
        yield LabelledPhoto.of_faces(path, [_wider_face(row) for row in rows[:count]])
        at = end


def _face_count(lines: list[str], at: int, labels: Path) -> int:
    word = lines[at].strip() if at < len(lines) else ""
    if not word.isdecimal() or len(word) > _MAX_DIGITS:
        raise DataError(f"{labels}, line {at + 1}: expected the number of faces, got {word[:60]!r}")
    return int(word)


def _row(line: str, place: str, known: Mapping[int, str]) -> list[float]:
    values = to_numbers(line.split(), place)
    if len(values) not in known:
        wanted = ", or ".join(f"{count} numbers ({meaning})" for count, meaning in known.items())
        raise DataError(f"{place}: expected {wanted}, got {len(values)}: {line[:60]!r}")
    return values


def _retinaface_face(row: Sequence[float]) -> FaceLabel:
    columns = row[_LANDMARK_COLUMNS]
    points = list(zip(columns[::3], columns[1::3], strict=True))
    # A point may lie outside the photo, at any negative place; only (-1, -1) means unknown.
    known = [UNKNOWN_POINT if point == (-1, -1) else point for point in points]
    return FaceLabel.of_xywh(row[:4], known)


def _wider_face(row: Sequence[float]) -> FaceLabel:
    invalid = len(row) > _WIDER_INVALID_COLUMN and row[_WIDER_INVALID_COLUMN] == 1
    return FaceLabel.of_xywh(row[:4], ignored=invalid)
