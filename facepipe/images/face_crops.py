"""Pictures of single faces: cut from photos, kept in galleries, shown on pages."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.gallery import Template, UnknownFace
from facepipe.images.reading import photo_sha256, read_image
from facepipe.images.small_pictures import small_jpeg

CROP_MARGIN = 0.25
"""Of a box's sides, added on each side: a face is known by its hair and chin too."""

THUMBNAIL_PX = 112
"""Longer side of pictures on pages."""

MAX_CROP_PIXELS = 4_000_000
"""Of a kept crop that is shown: encoders take some 12,000, and archives may hold anything."""

MAX_SOURCE_BYTES = 256_000_000
"""Of a photo that a face is cut from again: archives may name any file of this machine."""

_PAGE_QUALITY = 85
_LIST_PX, _LIST_QUALITY = 96, 50
"""Of a face of a batch, whose report is as large as its pictures. WebP of this quality has two thirds of the
bytes, 0.64 instead of 0.97 kB, and takes four times as long."""


def cut_face(photo: UInt8Array, box_xyxy: FloatArray) -> UInt8Array:
    """Return the box with a margin, inside the photo (RGB uint8), at least one pixel."""
    height, width = photo.shape[:2]
    margin = CROP_MARGIN * (box_xyxy[2:] - box_xyxy[:2])
    left, top = np.floor(np.maximum(box_xyxy[:2] - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box_xyxy[2:] + margin, (width, height))).astype(int)
    left, top = min(left, width - 1), min(top, height - 1)
    return np.ascontiguousarray(photo[top : max(bottom, top + 1), left : max(right, left + 1)])


def face_thumbnail(photo: UInt8Array, box_xyxy: FloatArray) -> bytes:
    """Return a face of a photo, with its margin, as a JPEG whose longer side has 96 px."""
    return small_jpeg(cut_face(photo, box_xyxy), _LIST_PX, _LIST_QUALITY)


def box_of(faces: Faces, row: int) -> tuple[float, float, float, float]:
    """Return the box of one face as plain numbers: left, top, right, bottom."""
    left, top, right, bottom = (float(side) for side in faces.boxes_xyxy[row])
    return left, top, right, bottom


def encode_crop(crop: UInt8Array) -> bytes:
    """Return an aligned crop, RGB uint8 (s, s, 3), as PNG, which keeps every pixel for another encoder."""
    encoded = BytesIO()
    Image.fromarray(crop).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def thumbnail(face: Template | UnknownFace, kept: bytes | None) -> bytes | None:
    """A small JPEG of a stored face: its kept crop, or cut again from the photo where that is still the same.

    None where there is neither, or what is there is no photo.
    """
    try:
        if kept is not None:
            return _page_picture(read_image(kept, max_pixels=MAX_CROP_PIXELS))
        if face.source is None or face.box_xyxy is None or face.photo_sha256 is None:
            return None
        if _content_of(face.source) != face.photo_sha256:
            return None
        return _page_picture(cut_face(read_image(face.source), np.array(face.box_xyxy, np.float32)))
    except PhotoError:
        return None


def _page_picture(face: UInt8Array) -> bytes:
    return small_jpeg(face, THUMBNAIL_PX, _PAGE_QUALITY)


def _content_of(source: str) -> str | None:
    """Return a photo's content hash; None where the file is no photo by its size or kind."""
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return None
    if not (stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_SOURCE_BYTES):
        return None
    return _hash_of_state(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_of_state(source: str, _size: int, _mtime_ns: int) -> str:
    """Hash a photo, once: the faces of a page are often of one photo."""
    return photo_sha256(source)
