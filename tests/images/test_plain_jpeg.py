"""Ordinary JPEGs have the very pixels that Pillow gives them, and damaged ones the very same end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import encode, encoded
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.decoding import ReducedPhoto
from facepipe.images.pixels import rgb_of
from facepipe.images.plain_jpeg import decode_plain_jpeg
from facepipe.images.reading import read_image, read_reduced

SIZES_WH = ((1, 1), (9, 2), (16, 16), (31, 33), (250, 187))
QUALITIES = (5, 90, 100)
SAMPLINGS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "4:1:1": {"subsampling": "4:1:1"},
    "RGB": {"keep_rgb": True},
    "gray": {},
    "restarts": {"restart_marker_blocks": 3},
}
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def picture(astronaut: UInt8Array) -> Image.Image:
    return Image.fromarray(astronaut)


@contextmanager
def only_pillow() -> Iterator[None]:
    with mock.patch("facepipe.images.decoding.decode_plain_jpeg", return_value=None):
        yield


def both(file: bytes, reduction: int) -> tuple[UInt8Array, UInt8Array | None]:
    """A JPEG by Pillow, and by us."""
    photo = Image.open(BytesIO(file))
    width, height = photo.size
    drafted = photo.draft(photo.mode, (max(1, width // reduction), max(1, height // reduction)))
    assert drafted is not None
    ours = decode_plain_jpeg(photo, BytesIO(file), round(width / drafted[1][2]))
    return rgb_of(photo), ours


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_pixels_are_those_of_pillow(picture: Image.Image, name: str, progressive: bool) -> None:
    source = picture.convert("L") if name == "gray" else picture
    for size_wh, quality in itertools.product(SIZES_WH, QUALITIES):
        options = {"quality": quality, "progressive": progressive, **SAMPLINGS[name]}
        file = encode(source.resize(size_wh), "JPEG", **options)
        for reduction in (1, 2, 4, 8):
            theirs, ours = both(file, reduction)
            assert ours is not None
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("factors", ["440", "411"])
def test_pixels_of_rare_samplings_are_those_of_pillow(astronaut: UInt8Array, factors: str) -> None:
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factors}")
    done, file = cv2.imencode(".jpg", astronaut[:99, :101], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling])
    assert done
    for reduction in (1, 2, 4, 8):
        theirs, ours = both(file.tobytes(), reduction)
        assert ours is not None
        assert np.array_equal(ours, theirs)


def test_tiny_pictures_are_reduced_by_pillow(picture: Image.Image) -> None:
    file = encode(picture.resize((7, 5)), "JPEG")
    assert both(file, 1)[1] is not None
    assert both(file, 2)[1] is None


def test_cmyk_and_other_formats_are_left_to_pillow(picture: Image.Image) -> None:
    cmyk = encode(picture.convert("CMYK"), "JPEG")
    assert both(cmyk, 1)[1] is None
    png = encoded("PNG")
    assert decode_plain_jpeg(Image.open(BytesIO(png)), BytesIO(png), 1) is None


def test_arithmetic_codes_are_left_to_pillow(picture: Image.Image) -> None:
    file = encode(picture, "JPEG")
    arithmetic = file.replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert decode_plain_jpeg(Image.open(BytesIO(file)), BytesIO(file), 1) is not None
    assert decode_plain_jpeg(Image.open(BytesIO(arithmetic)), BytesIO(arithmetic), 1) is None


@pytest.mark.parametrize("lost", [1, 2, 3, 1000])
def test_a_photo_that_is_cut_off_is_left_to_pillow(picture: Image.Image, lost: int) -> None:
    file = encode(picture, "JPEG")[:-lost]
    assert decode_plain_jpeg(Image.open(BytesIO(file)), BytesIO(file), 1) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = encode(picture.resize((60, 40)), "JPEG", exif=exif)
    rgb = read_image(file)
    with only_pillow():
        assert np.array_equal(rgb, read_image(file))
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable
    assert rgb.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))


def outcome(file: bytes, scale: float) -> tuple[object, ...] | str:
    try:
        photo: ReducedPhoto = read_reduced(file, lambda _: scale)
    except PhotoError as error:
        return str(error)
    return photo.rgb.shape, photo.rgb.tobytes(), photo.full_size_wh, photo.taken_at


@st.composite
def damaged_jpegs(draw: st.DrawFn) -> bytes:
    """A photo with some bytes changed, cut off or appended, or none."""
    size_wh = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    mode = draw(st.sampled_from(("RGB", "L", "CMYK")))
    picture = Image.open(BytesIO(encoded("JPEG"))).resize(size_wh).convert(mode)
    file = bytearray(encode(picture, "JPEG", quality=80, progressive=draw(st.booleans())))
    places = st.tuples(st.integers(2, len(file) - 1), st.integers(0, 255))
    for place, value in draw(st.lists(places, max_size=4)):
        file[place] = value
    if draw(st.booleans()):
        del file[draw(st.integers(2, len(file))) :]
    return bytes(file) + draw(st.binary(max_size=20))


@settings(max_examples=150, deadline=None)
@given(damaged_jpegs(), st.sampled_from((1.0, 0.5, 0.25)))
def test_damaged_photos_have_the_same_pixels_or_error_as_with_pillow_alone(file: bytes, scale: float) -> None:
    ours = outcome(file, scale)
    with only_pillow():
        assert ours == outcome(file, scale)
