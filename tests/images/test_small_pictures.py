"""Small pictures of photos and faces."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from facepipe.core.faces import UInt8Array
from facepipe.images.small_pictures import data_url, media_type_of, small_jpeg


@pytest.mark.parametrize(
    ("size_wh", "expected_wh"),
    [
        ((400, 200), (96, 48)),
        ((50, 100), (48, 96)),
        ((40, 30), (40, 30)),
        ((5000, 1), (96, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_a_picture_has_at_most_so_many_pixels(size_wh: tuple[int, int], expected_wh: tuple[int, int]) -> None:
    content = small_jpeg(np.full((size_wh[1], size_wh[0], 3), (200, 100, 50), np.uint8), 96, 90)
    picture = Image.open(BytesIO(content))
    assert (picture.format, picture.size) == ("JPEG", expected_wh)
    np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), (200, 100, 50), atol=3)


def test_lower_quality_takes_fewer_bytes(astronaut: UInt8Array) -> None:
    sizes = [len(small_jpeg(astronaut, 224, quality)) for quality in (85, 40)]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_browsers_are_told_the_type(kind: str) -> None:
    stream = BytesIO()
    Image.new("RGB", (2, 2)).save(stream, kind)
    assert media_type_of(stream.getvalue()) == f"image/{kind}"
    assert (
        data_url(stream.getvalue())
        == f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    )


def test_other_bytes_are_bytes() -> None:
    assert media_type_of(b"none") == "application/octet-stream"
