"""Pictures of single faces: cut from photos, kept in galleries, shown on pages."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from facepipe.errors import PhotoError
from facepipe.faces import Faces, FloatArray, UInt8Array
from facepipe.images import photo_sha256, read_image
from gallery import Template, UnknownFace

CROP_MARGIN = 0.25
"""Of a box's sides, added on each side: a face is known by its hair and chin too."""

THUMBNAIL_PX = 112
"""Longer side of pictures on pages."""

_JPEG_QUALITY = 85


def cut_face(photo: UInt8Array, box_xyxy: FloatArray) -> UInt8Array:
    """The box with a margin, inside the photo (RGB uint8), at least one pixel."""
    height, width = photo.shape[:2]
    margin = CROP_MARGIN * (box_xyxy[2:] - box_xyxy[:2])
    left, top = np.floor(np.maximum(box_xyxy[:2] - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(box_xyxy[2:] + margin, (width, height))).astype(int)
    left, top = min(left, width - 1), min(top, height - 1)
    return np.ascontiguousarray(photo[top : max(bottom, top + 1), left : max(right, left + 1)])


def box_of(faces: Faces, row: int) -> tuple[float, float, float, float]:
    """The box of one face as plain numbers: left, top, right, bottom."""
    left, top, right, bottom = (float(side) for side in faces.boxes_xyxy[row])
    return left, top, right, bottom


def encode_crop(crop: UInt8Array) -> bytes:
    """An aligned crop, RGB uint8 (s, s, 3), as PNG, which keeps every pixel for another encoder."""
    encoded = BytesIO()
    Image.fromarray(crop).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def thumbnail(face: Template | UnknownFace, kept: bytes | None) -> bytes | None:
    """A small JPEG of a stored face: its kept crop, or cut again from the photo where that is still the same.

    None where there is neither.
    """
    if kept is not None:
        return _small_jpeg(read_image(kept))
    if face.source is None or face.box_xyxy is None or face.photo_sha256 is None:
        return None
    try:
        path = Path(face.source)
        if photo_sha256(path) != face.photo_sha256:
            return None
        return _small_jpeg(cut_face(read_image(path), np.array(face.box_xyxy, np.float32)))
    except PhotoError:
        return None


def _small_jpeg(rgb: UInt8Array) -> bytes:
    picture = Image.fromarray(rgb)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return encoded.getvalue()
