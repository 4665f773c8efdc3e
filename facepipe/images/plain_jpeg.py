"""Ordinary JPEGs, decoded straight into an array: the pixels that Pillow gives, in half of the time.

Both decode by libjpeg-turbo. Pillow's pictures have four bytes a pixel, and are copied twice on their way to
NumPy.
"""

from __future__ import annotations

from io import BufferedReader, BytesIO

import numpy as np
import simplejpeg
from PIL import Image

from facepipe.core.faces import UInt8Array
from facepipe.images.jpeg import read_frame

_FORMATS = ("JPEG", "MPO")
_MODES = ("RGB", "L")
"""Pillow's, of the JPEGs whose colours are YCbCr, RGB or gray. CMYK is left to Pillow."""
_LEAST_SIDE_PX = 8
"""Longer side of pictures that are reduced here. The decoder has scales in steps of an eighth, and takes the
smallest that leaves the pixels asked for: of smaller pictures, those of several scales have the same."""


def decode_plain_jpeg(
    photo: Image.Image, stream: BufferedReader | BytesIO, reduction: int
) -> UInt8Array | None:
    """Decode a JPEG that Pillow has opened, and found nothing wrong with.

    Args:
        photo: Its header.
        stream: Its file.
        reduction: 1, 2, 4 or 8: how many times fewer pixels a side Pillow was asked for, by `draft`.

    Returns:
        RGB uint8 (h, w, 3), as stored; None where Pillow is to decode it: another format, coding or colour
        space, or data in which the decoder meets anything unexpected. What that is, and whether it matters,
        is Pillow's to find out.
    """
    if photo.format not in _FORMATS or photo.mode not in _MODES:
        return None
    frame = read_frame(stream)
    if frame is None or not frame.is_common or (reduction > 1 and max(frame.size_wh) < _LEAST_SIDE_PX):
        return None
    stream.seek(0)
    width, height = photo.size
    try:
        rgb = simplejpeg.decode_jpeg(
            stream.read(), "RGB", min_factor=reduction, min_width=width, min_height=height, strict=True
        )
    except ValueError:
        return None
    return np.asarray(rgb, np.uint8) if rgb.shape == (height, width, 3) else None
