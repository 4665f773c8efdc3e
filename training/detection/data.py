"""Photos of detection data sets as pixels: decoded each time, or once into a memory-mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from facepipe.core.errors import DataError, PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.images.reading import read_image
from facepipe.training.engine.pixels import cached_pictures


class PhotoSource(Protocol):
    """Labelled photos and their pixels."""

    photos: list[LabelledPhoto]

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (h, w, 3) of one photo; not to be changed.

        Raises:
            PhotoError: It can't be read; names it.
        """


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
        DataError: No photo can be read, or the disk is full.
    """

    def __init__(self, photos: Sequence[LabelledPhoto], cache_folder: Path) -> None:
        self.photos = list(photos)
        key = hashlib.sha256("\n".join(_signature(p.path) for p in photos).encode()).hexdigest()[:16]
        self._pictures, _ = cached_pictures(
            cache_folder / f"{key}.pixels", lambda: _decoded(self.photos), lambda size_hw: size_hw
        )

    def pixels(self, index: int) -> UInt8Array:
        """See `PhotoSource.pixels`."""
        pixels = self._pictures[index]
        if not pixels.size:
            raise PhotoError(f"{self.photos[index].path}: could not be read when the cache was made")
        return pixels


def _decoded(photos: Sequence[LabelledPhoto]) -> Iterator[tuple[UInt8Array, tuple[int, int]]]:
    """Pixels and sizes of photos; none and zero of those that can't be read."""
    readable, error = 0, None
    for photo in photos:
        try:
            pixels = read_image(photo.path)
            readable += 1
        except PhotoError as reason:
            pixels, error = np.empty((0, 0, 3), np.uint8), reason
        yield pixels, (pixels.shape[0], pixels.shape[1])
    if error is not None and not readable:
        raise DataError(f"no photo can be read, such as {error}; check with 'facepipe data check'")


def _signature(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing"
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
