"""What the tests of `facepipe.images.reading` share: one picture in every format."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC")


def encode(picture: Image.Image, image_format: str, **options: object) -> bytes:
    stream = BytesIO()
    if image_format == "HEIC":
        pillow_heif.from_pillow(picture).save(stream, quality=90, **options)
    else:
        picture.save(stream, image_format, **options)
    return stream.getvalue()


def difference(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@cache
def encoded(image_format: str) -> bytes:
    """scikit-image's astronaut as a file."""
    from skimage import data

    load: Any = data.astronaut
    return encode(Image.fromarray(load()), image_format)
