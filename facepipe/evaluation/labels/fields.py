"""What the readers of all formats share: files, numbers, names of photos and categories, checked."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

from facepipe.core.errors import DataError
from facepipe.core.files import open_regular

_MAX_NUMBER = 2**24
"""Up to it, whole pixels are exact as float32."""
_MAX_FILE_NAME_BYTES, _MAX_PATH = 255, 1000
"""What file systems take of a name, and less than they take of a path."""
_FACE = "face"
_log = logging.getLogger("facepipe")


def read_file(file: Path) -> bytes:
    """Read a file of a data set.

    Raises:
        DataError: It can't be read.
    """
    try:
        with open_regular(file) as stream:
            return stream.read()
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def read_lines(file: Path) -> list[str]:
    """Read the lines of a label file, in UTF-8.

    Raises:
        DataError: It can't be read, or is no text.
    """
    try:
        return read_file(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: can't read these labels: {error}") from error


def to_numbers(values: Iterable[str | float], place: str) -> list[float]:
    """Convert words to finite numbers of at most 2^24, up to which whole pixels are exact.

    Args:
        values: Words or numbers.
        place: File and line, for messages.

    Raises:
        DataError: One of them is no such number.
    """
    values = list(values)
    shown = " ".join(map(str, values))[:60]
    try:
        numbers = [float(value) for value in values]
    except (ValueError, OverflowError) as error:
        raise DataError(f"{place}: expected numbers, got {shown!r}") from error
    if not all(math.isfinite(number) and abs(number) <= _MAX_NUMBER for number in numbers):
        raise DataError(f"{place}: expected finite numbers up to {_MAX_NUMBER:,}, got {shown!r}")
    return numbers


def photo_path(images: Path, name: str, place: str) -> Path:
    """Return the path of a photo that is named in a label file.

    Raises:
        DataError: The name is empty, or no system takes it.
    """
    parts = name.encode().split(b"/")
    too_long = len(name) > _MAX_PATH or max(map(len, parts)) > _MAX_FILE_NAME_BYTES
    if not name.strip() or too_long or "\0" in name:
        raise DataError(f"{place}: expected the file name of a photo, got {name[:60]!r}")
    return images / name


def face_categories(names: Iterable[str], labels: Path) -> set[str]:
    """Return which categories of a data set are faces: those named "face", in any case, or else all.

    Args:
        names: Of all its categories.
        labels: Named in the log, where several are taken.
    """
    known = set(names)
    faces = {name for name in known if name.strip().lower() == _FACE}
    if not faces and len(known) > 1:
        _log.warning("%s: no category is named face; all %d are taken for faces", labels, len(known))
    return faces or known
