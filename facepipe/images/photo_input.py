"""Photos as callers have them, and what is wrong with those that can't be used."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import from_pillow, read_image

Photo = UInt8Array | Image.Image | str | os.PathLike[str] | bytes
"""RGB uint8 (h, w, 3), a Pillow image, the path of a file, or the bytes of one."""

_EXPECTED = "expected a photo: RGB uint8 (h, w, 3), a Pillow image, a path, or the bytes of a file"


def as_rgb(photo: Photo) -> UInt8Array:
    """Return a photo as RGB uint8 (h, w, 3); files and Pillow images are turned upright.

    An array is returned as it is. Whether its channels are RGB can't be seen: OpenCV's are BGR and must be
    converted (`cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)`).

    Raises:
        UsageError: It is none of these; the message names what it is and what to do.
        PhotoError: The file can't be read.
    """
    if isinstance(photo, np.ndarray):
        return _checked(photo)
    if isinstance(photo, Image.Image):
        return from_pillow(photo)
    if isinstance(photo, str | os.PathLike | bytes):
        return read_image(photo)
    raise UsageError(f"{_EXPECTED}; got {_described(photo)}")


def _checked(photo: UInt8Array) -> UInt8Array:
    if photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and photo.size:
        return photo
    what = f"{photo.dtype} {photo.shape}"
    raise UsageError(f"{_EXPECTED}; got an array of {what}{_cure(photo)}")


def _cure(photo: np.ndarray[Any, Any]) -> str:
    """Return what to do about an array of another form; empty where nothing is known."""
    if photo.size == 0:
        return ", without a pixel"
    if photo.ndim == 4:
        return ": give the photos of a batch one by one"
    if photo.ndim == 2 or (photo.ndim == 3 and photo.shape[2] == 1):
        return ": repeat the gray channel with cv2.cvtColor(photo, cv2.COLOR_GRAY2RGB)"
    if photo.ndim == 3 and photo.shape[2] == 4:
        return ": leave the transparency out with photo[..., :3]"
    if photo.ndim == 3 and photo.shape[0] == 3 and photo.shape[2] != 3:
        return ": move the channels to the end with np.moveaxis(photo, 0, -1)"
    if photo.ndim == 3 and photo.shape[2] == 3:
        return ": scale it to 0..255 and convert it with .astype(np.uint8)"
    return ""


def _described(photo: object) -> str:
    if photo is None:
        return "None, which is what cv2.imread gives for a file it can't read: facepipe.read_image says why"
    if isinstance(photo, list | tuple):
        return f"a {type(photo).__name__}: give the photos one by one"
    return f"{type(photo).__module__}.{type(photo).__qualname__}"
