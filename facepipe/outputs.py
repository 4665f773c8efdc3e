"""Pictures as results: annotated photos and face crops, laid out as the photos are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from facepipe.crops import cut_face
from facepipe.draw import draw_faces
from facepipe.errors import OutputError, UsageError
from facepipe.faces import UInt8Array
from facepipe.files import atomic_write_bytes
from facepipe.images import write_image
from facepipe.pipeline import PhotoResult

_NAME_IN_FILE = 40
"""Letters of a person's name in a file's: a name may have 200, which no file system takes."""
_WRITABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class PictureFolder:
    """Writes pictures of results below `folder`, under the photos' paths relative to their common folder.

    Args:
        folder: Made where missing.
        photos: Every photo that may come; their names can't collide then, and none of them is overwritten.

    Raises:
        UsageError: A picture would take the place of one of the photos.
        OutputError: The folder can't be made.
    """

    def __init__(self, folder: Path, photos: Sequence[Path]) -> None:
        self._folder = folder
        parents = [os.path.abspath(photo.parent) for photo in photos]
        self._root = Path(os.path.commonpath(parents)) if parents else Path()
        self._photos = {os.path.realpath(photo) for photo in photos}
        for photo in photos:
            self._require_no_photo(self._target(photo))
        make_folder(folder)

    def write_annotated(self, result: PhotoResult) -> Path:
        """The photo with its faces drawn, under its own name (`.jpg` added to formats that are only read).

        Raises:
            OutputError: The file can't be written.
        """
        assert result.photo is not None
        assert result.faces is not None
        target = self._target(result.path)
        if target.suffix.lower() not in _WRITABLE:
            target = target.with_name(f"{target.name}.jpg")
        return self._write(target, draw_faces(result.photo, result.faces))

    def write_crops(self, result: PhotoResult) -> list[Path]:
        """Each face with a margin, as `PHOTO_face0_NAME.jpg`; raises as `write_annotated`."""
        assert result.photo is not None
        assert result.faces is not None
        matches = result.faces.matches or [None] * len(result.faces)
        names = [match.name or match.status.value if match else "unknown" for match in matches]
        return [
            self._write(self._crop_target(result.path, i, name), cut_face(result.photo, box))
            for i, (name, box) in enumerate(zip(names, result.faces.boxes_xyxy, strict=True))
        ]

    def _target(self, photo: Path) -> Path:
        return self._folder / Path(os.path.abspath(photo)).relative_to(self._root)

    def _crop_target(self, photo: Path, face: int, name: str) -> Path:
        safe = re.sub(r"[^\w .-]", "_", name)[:_NAME_IN_FILE].strip(" .")
        return self._target(photo).with_name(f"{photo.name}_face{face}_{safe}.jpg")

    def _require_no_photo(self, target: Path) -> None:
        if os.path.realpath(target) in self._photos:
            raise UsageError(f"{self._folder}: holds the photos themselves; choose another folder")

    def _write(self, target: Path, picture: UInt8Array) -> Path:
        self._require_no_photo(target)
        make_folder(target.parent)
        write_image(target, picture)
        return target


def write_page(file: Path, html: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        OutputError: The file can't be written.
    """
    try:
        atomic_write_bytes(file, html.encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{file}: can't be written ({error.strerror}); choose another place") from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it.

    Raises:
        OutputError: It can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder ({error.strerror}); choose another") from error


def require_place(file: Path) -> None:
    """Check that a file can be written, before the work whose result goes there; makes its folder.

    Raises:
        OutputError: It can't.
    """
    make_folder(file.parent)
    if file.is_dir():
        raise OutputError(f"{file}: is a folder; name a file")
    if not os.access(file.parent, os.W_OK):
        raise OutputError(f"{file}: its folder may not be written; choose another")
