"""Photos of detection data sets as pixels: decoded each time, or once into a memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.evaluation.labels import LabelledPhoto, read_labels, unlabelled_photos
from facepipe.images.reading import read_image
from facepipe.training.engine.pixels import cached_pictures

__all__ = ["DecodedPhotos", "LabelledPhoto", "PhotoFiles", "PhotoSource", "read_labels", "unlabelled_photos"]


class PhotoSource(Protocol):
    """Labelled photos and their pixels."""

    photos: list[LabelledPhoto]

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (h, w, 3) of one photo; not to be changed."""


class PhotoFiles:
    """Decodes a photo at each access: no disk space, but ten times the time of a crop."""

    def __init__(self, photos: Sequence[LabelledPhoto]) -> None:
        self.photos = list(photos)

    def pixels(self, index: int) -> UInt8Array:
        """See `PhotoSource.pixels`."""
        return read_image(self.photos[index].path)


class DecodedPhotos:
    """Keeps decoded photos in one memory-mapped file, which later runs use again.

    Cropping from decoded pixels costs a tenth of decoding the photo again. The file takes three bytes a
    pixel: 1.5 GB for a thousand photos of half a megapixel.

    Raises:
        DataError: A photo is missing, or the disk is full.
        PhotoError: A photo can't be read.
    """

    def __init__(self, photos: Sequence[LabelledPhoto], cache_folder: Path) -> None:
        self.photos = list(photos)
        key = hashlib.sha256("\n".join(_signature(p.path) for p in photos).encode()).hexdigest()[:16]
        self._pictures, _ = cached_pictures(
            cache_folder / f"{key}.pixels", lambda: map(_decoded, self.photos), lambda size_hw: size_hw
        )

    def pixels(self, index: int) -> UInt8Array:
        """See `PhotoSource.pixels`."""
        return self._pictures[index]


def _decoded(photo: LabelledPhoto) -> tuple[UInt8Array, tuple[int, int]]:
    pixels = read_image(photo.path)
    return pixels, (pixels.shape[0], pixels.shape[1])


def _signature(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: labelled photo is missing; check with 'facepipe data check'") from error
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
