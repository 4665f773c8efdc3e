"""Photos of detection data sets as pixels: decoded each time, or once into a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from facepipe.errors import DataError
from facepipe.faces import UInt8Array
from facepipe.files import atomic_file, atomic_write_bytes
from facepipe.images import read_image
from training.detection.labels import LabelledPhoto, read_labels, unlabelled_photos

__all__ = ["DecodedPhotos", "LabelledPhoto", "PhotoFiles", "PhotoSource", "read_labels", "unlabelled_photos"]


class PhotoSource(Protocol):
    """Labelled photos and their pixels."""

    photos: list[LabelledPhoto]

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (h, w, 3) of one photo; not to be changed."""


class PhotoFiles:
    """Decodes a photo whenever it is asked for: no disk space, but ten times the work of a crop."""

    def __init__(self, photos: Sequence[LabelledPhoto]) -> None:
        self.photos = list(photos)

    def pixels(self, index: int) -> UInt8Array:
        """See `PhotoSource.pixels`."""
        return read_image(self.photos[index].path)


class DecodedPhotos:
    """Random access to decoded photos: one memory-mapped file of pixels, made once and used ever after.

    Cropping from decoded pixels costs a tenth of decoding the photo again. The file takes three bytes a
    pixel: 1.5 GB for a thousand photos of half a megapixel.

    Raises:
        DataError: A photo is missing, or the disk is full.
        PhotoError: A photo can't be read.
    """

    def __init__(self, photos: Sequence[LabelledPhoto], cache_folder: Path) -> None:
        self.photos = list(photos)
        key = hashlib.sha256("\n".join(_signature(p.path) for p in photos).encode()).hexdigest()[:16]
        self._pixels_path = cache_folder / f"{key}.pixels"
        self._sizes_path = cache_folder / f"{key}.json"
        if not self._is_whole():
            self._decode_all()
        self._sizes = self._read_sizes()
        self._offsets = np.concatenate([[0], np.cumsum([h * w * 3 for h, w in self._sizes])])
        self._pixels = np.memmap(self._pixels_path, np.uint8, "r")

    def pixels(self, index: int) -> UInt8Array:
        """See `PhotoSource.pixels`."""
        h, w = self._sizes[index]
        return self._pixels[self._offsets[index] : self._offsets[index + 1]].reshape(h, w, 3)

    def _read_sizes(self) -> list[tuple[int, int]]:
        return [(h, w) for h, w in json.loads(self._sizes_path.read_text())]

    def _is_whole(self) -> bool:
        if not (self._sizes_path.is_file() and self._pixels_path.is_file()):
            return False
        return self._pixels_path.stat().st_size == sum(h * w * 3 for h, w in self._read_sizes())

    def _decode_all(self) -> None:
        folder = self._pixels_path.parent
        sizes: list[tuple[int, int]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._pixels_path) as file:
                for photo in self.photos:
                    pixels = read_image(photo.path)
                    sizes.append((pixels.shape[0], pixels.shape[1]))
                    file.write(pixels.tobytes())
            atomic_write_bytes(self._sizes_path, json.dumps(sizes).encode())
        except OSError as error:
            raise DataError(
                f"{folder}: can't write the cache of decoded photos: {error}; "
                "free some space, name another folder, or train without a cache"
            ) from error


def _signature(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: labelled photo is missing; check with 'facepipe data check'") from error
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
