"""Pictures as results: annotated photos and face crops, laid out as the photos are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from facepipe.core.errors import OutputError, UsageError
from facepipe.core.faces import Match, UInt8Array
from facepipe.core.file_names import file_name_of, with_ending
from facepipe.core.files import atomic_write_bytes, make_private_folder
from facepipe.core.overwriting import NAMED_COPY, PICTURE, Form, require_replaceable
from facepipe.core.paths import is_inside
from facepipe.images.drawing import draw_faces
from facepipe.images.face_crops import cut_face
from facepipe.images.reading import PHOTO_SUFFIXES, write_image
from facepipe.pipeline import PhotoResult

_PERSON_IN_CROP_BYTES = 60
_WRITABLE = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
"""Formats that are written and can be marked as facepipe's."""


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
        if any(self._is_photo(self._target(photo)) for photo in photos):
            raise UsageError(f"{folder}: holds the photos themselves; choose another folder")
        make_folder(folder)

    def write_annotated(self, result: PhotoResult) -> Path:
        """The photo with its faces drawn, under its own name (`.jpg` added to formats that are only read).

        Raises:
            OutputError: The file can't be written, or would take the place of one of the photos, or of any
                file but a picture that facepipe wrote.
        """
        assert result.photo is not None
        assert result.faces is not None
        target = self._target(result.path)
        if target.suffix.lower() not in _WRITABLE:
            target = target.with_name(with_ending(target.name, ".jpg"))
        return self._write(target, draw_faces(result.photo, result.faces))

    def write_crops(self, result: PhotoResult) -> list[Path]:
        """Return each face with a margin, as `PHOTO_face0_NAME.jpg`; raises as `write_annotated`."""
        assert result.photo is not None
        assert result.faces is not None
        matches = result.faces.matches or [None] * len(result.faces)
        return [
            self._write(self._crop_target(result.path, i, match), cut_face(result.photo, box))
            for i, (match, box) in enumerate(zip(matches, result.faces.boxes_xyxy, strict=True))
        ]

    def place_of_copy(self, photo: Path) -> Path:
        """Return where a copy of a photo with names goes, under its own name; its folder is made.

        Raises:
            OutputError: It would take the place of any file but such a copy.
        """
        target = self._target(photo)
        self._require_own(target)
        require_replaceable(target, NAMED_COPY)
        make_folder(target.parent)
        return target

    def _target(self, photo: Path) -> Path:
        return self._folder / Path(os.path.abspath(photo)).relative_to(self._root)

    def _crop_target(self, photo: Path, face: int, match: Match | None) -> Path:
        ending = f"_face{face}_{_name_in_crop(match)}.jpg"
        return self._target(photo).with_name(with_ending(photo.name, ending))

    def _is_photo(self, target: Path) -> bool:
        return os.path.realpath(target) in self._photos

    def _require_own(self, target: Path) -> None:
        if self._is_photo(target):
            raise OutputError(f"{target}: one of the photos has this name; choose another folder")
        if not is_inside(target.parent, self._folder):
            raise OutputError(f"{target.parent}: leads out of {self._folder} by a link; remove the link")

    def _write(self, target: Path, picture: UInt8Array) -> Path:
        self._require_own(target)
        write_picture(target, picture)
        return target


def _name_in_crop(match: Match | None) -> str:
    if match is None:
        return "unknown"
    return match.status.value if match.name is None else file_name_of(match.name, _PERSON_IN_CROP_BYTES)


def write_picture(file: Path, picture: UInt8Array) -> None:
    """Write RGB uint8 (h, w, 3) in the format of the suffix, in a folder that is made where missing.

    Raises:
        OutputError: It can't be written, or would take the place of another file than such a picture.
    """
    require_replaceable(file, PICTURE)
    make_folder(file.parent)
    write_image(file, picture)


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
    """Make a folder for results, and those above it that are missing, for the user alone.

    Raises:
        OutputError: It can't be made.
    """
    try:
        make_private_folder(folder)
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder ({error.strerror}); choose another") from error


def require_place(file: Path, form: Form, *, force: bool | None = None, inputs: Iterable[Path] = ()) -> None:
    """Check that a file can be written, before the work whose result goes there; makes its folder.

    Args:
        file: Where to.
        form: What it will hold. A file of another form is only replaced with `force`.
        force: Replace any ordinary file; None: the command has no such option.
        inputs: Files that are to be read; none of them is replaced.

    Raises:
        OutputError: It can't.
    """
    if file.suffix.lower() in PHOTO_SUFFIXES:
        raise OutputError(f"{file}: is the name of a photo; name {form.name} otherwise")
    require_replaceable(file, form, force=force, inputs=inputs)
    make_folder(file.parent)
    if not os.access(file.parent, os.W_OK):
        raise OutputError(f"{file}: its folder may not be written; choose another")
