"""Small pictures of photos and faces, for people to look at."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import scaled_down

_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""By the first bytes of a file."""


def small_jpeg(rgb: UInt8Array, longest_px: int, quality: int) -> bytes:
    """Encode a photo or a part of it, RGB uint8 (H, W, 3), as a JPEG.

    Args:
        rgb: The pixels.
        longest_px: The longer side of the result; smaller pictures keep their size.
        quality: 1..100.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, longest_px / max(width, height))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(np.ascontiguousarray(scaled_down(rgb, size_wh)))
    encoded = BytesIO()
    small.save(encoded, "JPEG", quality=quality, optimize=True)  # Huffman codes of its own: a quarter less
    return encoded.getvalue()


def media_type_of(picture: bytes) -> str:
    """Return the media type of a PNG, a JPEG or a WebP; anything else is bytes."""
    known = (kind for start, kind in _TYPES.items() if picture.startswith(start))
    return next(known, "application/octet-stream")


def data_url(picture: bytes) -> str:
    """Return a PNG, a JPEG or a WebP as a `data:` URL for HTML."""
    return f"data:{media_type_of(picture)};base64,{b64encode(picture).decode()}"
