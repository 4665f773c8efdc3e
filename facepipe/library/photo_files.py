"""The files of a library's photos, and pictures made from them: no other file is ever read."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from facepipe.batch.decisions import Box
from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.core.files import open_regular
from facepipe.images.face_crops import MAX_SOURCE_BYTES, cut_face
from facepipe.images.reading import printable, read_reduced, scaled_down
from facepipe.library.models import LibraryPhoto

_LARGE_PX = 1600
_CLOSE_UP_PX = 320
_QUALITY = 82
_MEDIA_TYPES = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".dib": "image/bmp",
    ".gif": "image/gif",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".hif": "image/heif",
    ".jfif": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}


def original(photo: LibraryPhoto) -> bytes:
    """Return the file of a photo, if it is still the one that was analyzed: no other file ever leaves.

    Raises:
        PhotoError: It is another one by now, too large, or can't be read.
    """
    name = printable(photo.path)
    try:
        with open_regular(photo.path) as stream:
            content = stream.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise PhotoError(f"{name}: can't be read ({error.strerror}); is its disk there?") from error
    if len(content) > MAX_SOURCE_BYTES or hashlib.sha256(content).hexdigest() != photo.sha256:
        raise PhotoError(f"{name}: it has changed since it was analyzed; run `facepipe batch` again")
    return content


def media_type(photo: LibraryPhoto) -> str:
    """Return the type of the file of a photo."""
    return _MEDIA_TYPES.get(photo.path.suffix.lower(), "application/octet-stream")


def large_photo(photo: LibraryPhoto, longest_px: int = _LARGE_PX) -> bytes:
    """Return a photo, upright, as JPEG without EXIF. Raises: PhotoError.

    Args:
        photo: Of the library.
        longest_px: Largest side of the picture.
    """
    reduced = read_reduced(original(photo), lambda size_wh: min(1.0, longest_px / max(size_wh)))
    return _jpeg(reduced.rgb, longest_px)


@lru_cache(maxsize=512)
def close_up(photo: LibraryPhoto, box_xyxy: Box) -> bytes:
    """Return a face with a margin as JPEG with sides of at most 320 pixels. Raises: PhotoError."""
    side_px = max(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1], 1.0)
    reduced = read_reduced(original(photo), lambda _: min(1.0, _CLOSE_UP_PX / side_px))
    box = np.array(box_xyxy, np.float32) / np.float32(reduced.reduction)
    return _jpeg(cut_face(reduced.rgb, box), _CLOSE_UP_PX)


def _jpeg(rgb: UInt8Array, longest_px: int) -> bytes:
    height, width = rgb.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    encoded = BytesIO()
    Image.fromarray(scaled_down(rgb, size_wh)).save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue()
