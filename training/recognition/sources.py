"""Sources of faces: aligned crops, whole photos of people, data sets of a detector."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from facepipe.align import align_faces
from facepipe.core.errors import DataError, LandmarkError, PhotoError, UsageError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image
from facepipe.quality import central_face
from facepipe.quality_rules import EnrollRules
from facepipe.training.engine.unusable import usable
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

_LOG = logging.getLogger("facepipe.training")

CROP_TEMPLATE = "facenet_160"
"""Of the crops made here: arcface_112 in the inner 80%, with a margin for shifts and turns."""


class Face(NamedTuple):
    """An aligned, square crop."""

    name: str
    """Of the photo, relative to the source and with the source's own name in front."""
    person: str
    """Empty where unknown."""
    pixels: UInt8Array


class FaceSource(Protocol):
    """Something that faces come from. Photos that can't be used are passed over: see `usable`."""

    def signatures(self) -> Iterator[str]:
        """Lines that change whenever the faces would."""

    def faces(self) -> Iterator[Face]:
        """Yield all faces, always in the same order."""


@dataclass(frozen=True, slots=True)
class CropSource:
    """Aligned, square face crops.

    A crop of exactly the network's input size is the alignment's frame itself. A larger one holds the frame
    in its middle 80%, scaled with it; the margin is for shifts and turns.

    Attributes:
        path: A folder of photos, or a tar file of them.
        labelled: Whether the folder a crop lies in is the person's.
        photos: Of the folder; None: all below it.
    """

    path: Path
    labelled: bool = False
    photos: tuple[Path, ...] | None = None

    def signatures(self) -> Iterator[str]:
        """See `FaceSource`."""
        yield f"{self.labelled}"
        yield from _file_signatures([self.path] if self._is_tar else self._photos())

    def faces(self) -> Iterator[Face]:
        """See `FaceSource`.

        Raises:
            DataError: The source is missing, a crop is not square, or none can be read.
        """
        for name, pixels in self._tar_members() if self._is_tar else self._folder_members():
            height, width = pixels.shape[:2]
            if height != width:
                raise DataError(
                    f"{name}: expected a square face crop, got {width}x{height} pixels; "
                    "whole photos are another kind of data (kind = photos)"
                )
            yield Face(name, _person(name) if self.labelled else "", pixels)

    @property
    def _is_tar(self) -> bool:
        return self.path.suffix == ".tar"

    def _photos(self) -> Iterable[Path]:
        return self.photos if self.photos is not None else _photos_below(self.path)

    def _folder_members(self) -> Iterator[tuple[str, UInt8Array]]:
        for path, pixels in usable(self.path, self._photos(), read_image):
            yield _name(self.path, path), pixels

    def _tar_members(self) -> Iterator[tuple[str, UInt8Array]]:
        for (name, _), pixels in usable(self.path, self._tar_contents(), self._tar_pixels):
            yield f"{self.path.name}/{name}", pixels

    def _tar_contents(self) -> Iterator[tuple[str, bytes]]:
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    if stream is not None:
                        yield member.name, stream.read()
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{self.path}: not a readable tar file: {error}") from error

    def _tar_pixels(self, member: tuple[str, bytes]) -> UInt8Array:
        name, content = member
        try:
            return read_image(content)
        except PhotoError as error:  # which knows bytes only
            raise PhotoError(f"{self.path}, {name}: {error}") from error


@dataclass(frozen=True, slots=True)
class PhotoSource:
    """Whole photos, of which the main face is found and aligned; those without a sure one can't be used.

    Attributes:
        path: A folder of photos.
        labelled: Whether the folder a photo lies in is the person's.
        crop_px: Side of the crops.
        min_score: Minimum confidence of a face, 0..1.
        photos: Of the folder; None: all below it.
    """

    path: Path
    labelled: bool
    crop_px: int
    min_score: float = EnrollRules().min_score
    photos: tuple[Path, ...] | None = None

    def signatures(self) -> Iterator[str]:
        """See `FaceSource`."""
        fingerprint = load_card(DEFAULT_DETECTOR).card.fingerprint
        yield f"photos {self.labelled} {self.crop_px} {fingerprint} {self.min_score}"
        yield from _file_signatures(self._photos())

    def faces(self) -> Iterator[Face]:
        """See `FaceSource`.

        Raises:
            DataError: The source is missing, or no photo can be used.
        """
        detector = FaceDetector.load()
        for path, pixels in usable(self.path, self._photos(), lambda path: self._aligned(detector, path)):
            name = _name(self.path, path)
            yield Face(name, _person(name) if self.labelled else "", pixels)

    def _photos(self) -> Iterable[Path]:
        return self.photos if self.photos is not None else _photos_below(self.path)

    def _aligned(self, detector: FaceDetector, path: Path) -> UInt8Array:
        photo = read_image(path)
        found = detector.detect(photo)
        face = central_face(found.select(found.scores >= self.min_score), photo.shape[1], photo.shape[0])
        if not len(face):
            raise PhotoError(f"{path}: no face that the detector is sure of")
        return _crop(photo, face.landmarks, self.crop_px, str(path))


@dataclass(frozen=True, slots=True)
class DetectionSource:
    """Faces cut out of a detector's data set by its labelled landmarks, without names.

    Attributes:
        path: The data set: see `facepipe.evaluation.labels.read_labels`.
        crop_px: Side of the crops.
        min_face_px: Minimum shorter side of a face's box in its photo.
    """

    path: Path
    crop_px: int
    min_face_px: float

    def signatures(self) -> Iterator[str]:
        """See `FaceSource`."""
        yield f"detection {self.crop_px} {self.min_face_px}"
        for photo in read_labels(self.path):
            yield from _file_signatures([photo.path])
            yield f"{photo.boxes_xyxy.tolist()} {photo.landmarks.tolist()}"

    def faces(self) -> Iterator[Face]:
        """See `FaceSource`.

        Raises:
            DataError: The labels are malformed, or no photo can be used.
        """
        for _, faces in usable(self.path, read_labels(self.path), self._faces_of):
            yield from faces

    def _faces_of(self, photo: LabelledPhoto) -> list[Face]:
        sides = (photo.boxes_xyxy[:, 2:] - photo.boxes_xyxy[:, :2]).min(axis=1)
        large = (sides >= self.min_face_px) & np.isfinite(photo.landmarks).all(axis=(1, 2))
        if not large.any():
            return []
        pixels, faces = read_image(photo.path), []
        for row in np.flatnonzero(large):
            name = f"{_name(self.path, photo.path)}#{row}"
            try:
                crop = _crop(pixels, photo.landmarks[row : row + 1], self.crop_px, name)
            except LandmarkError as error:  # other faces of the photo may be good
                _LOG.warning("passed over: %s", error)
                continue
            faces.append(Face(name, "", crop))
        return faces


def _crop(pixels: UInt8Array, landmarks: FloatArray, side_px: int, name: str) -> UInt8Array:
    """Cut one face (1, 5, 2) out of a photo.

    Raises:
        LandmarkError: Its landmarks determine no alignment; names it.
    """
    try:
        return np.ascontiguousarray(align_faces(pixels, landmarks, CROP_TEMPLATE, side_px)[0])
    except LandmarkError as error:
        raise LandmarkError(f"{name}: {error}") from error


def _file_signatures(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: training faces are missing: {error}") from error
        yield f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _photos_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder or tar file of training faces; check the path")
    try:
        return find_photos([folder])
    except UsageError as error:
        raise DataError(str(error)) from error


def _name(folder: Path, path: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder).as_posix()}"


def _person(name: str) -> str:
    """Return the person's folder; empty for photos beside the folders."""
    _, *folders, _ = PurePosixPath(name).parts
    return folders[-1] if folders else ""
