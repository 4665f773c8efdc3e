"""Every format, mode and orientation of photo becomes the same upright RGB."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from image_helpers import FORMATS, difference, encode, encoded
from PIL import Image, ImageCms

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.finding import find_photos
from facepipe.images.reading import read_image, read_size, scaled_down

Recipe = Callable[[Image.Image], tuple[Image.Image, str]]


@pytest.fixture(scope="module")
def picture(astronaut: UInt8Array) -> Image.Image:
    return Image.fromarray(astronaut)


# Formats and modes


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_upright_rgb(astronaut: UInt8Array, name: str) -> None:
    rgb = read_image(encoded(name))
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable
    assert difference(rgb, astronaut) < 4


def profiled_lab(picture: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


COLOUR_MODES: dict[str, tuple[Callable[[Image.Image], Image.Image], str, float]] = {
    "RGBA opaque": (lambda p: p.convert("RGBA"), "PNG", 0),
    "RGBA WebP": (lambda p: p.convert("RGBA"), "WEBP", 4),
    "palette": (lambda p: p.quantize(256), "PNG", 8),
    "palette BMP": (lambda p: p.quantize(256), "BMP", 8),
    "palette with alpha TIFF": (lambda p: p.quantize(256).convert("PA"), "TIFF", 8),
    "CMYK JPEG (Adobe, inverted)": (lambda p: p.convert("CMYK"), "JPEG", 4),
    "CMYK TIFF": (lambda p: p.convert("CMYK"), "TIFF", 0),
    "YCbCr TIFF": (lambda p: p.convert("YCbCr"), "TIFF", 2),
}


@pytest.mark.parametrize("name", COLOUR_MODES)
def test_colour_modes(picture: Image.Image, astronaut: UInt8Array, name: str) -> None:
    convert, image_format, tolerance = COLOUR_MODES[name]
    assert difference(read_image(encode(convert(picture), image_format)), astronaut) <= tolerance


def test_a_mode_this_pillow_cannot_convert_is_a_photo_error_or_right(
    picture: Image.Image, astronaut: UInt8Array
) -> None:
    file = encode(profiled_lab(picture), "TIFF")
    try:
        rgb = read_image(file)
    except PhotoError as error:
        assert "export it again" in str(error)  # noqa: PT017
    else:
        assert difference(rgb, astronaut) < 2


def gray_16(gray: UInt8Array) -> npt.NDArray[np.uint16]:
    return gray.astype(np.uint16) * 257


GRAY_MODES: dict[str, tuple[Callable[[UInt8Array], Image.Image], str]] = {
    "L": (Image.fromarray, "PNG"),
    "L GIF": (Image.fromarray, "GIF"),
    "LA": (lambda g: Image.fromarray(g).convert("LA"), "PNG"),
    "16 bit": (lambda g: Image.fromarray(gray_16(g)), "PNG"),
    "16 bit TIFF": (lambda g: Image.fromarray(gray_16(g)), "TIFF"),
    "16 bit big-endian TIFF": (lambda g: Image.fromarray(gray_16(g)).convert("I").convert("I;16B"), "TIFF"),
    "32-bit integers up to 65535": (lambda g: Image.fromarray(gray_16(g).astype(np.int32)), "TIFF"),
    "32-bit integers up to 255": (lambda g: Image.fromarray(g.astype(np.int32)), "TIFF"),
    "floats up to 1": (lambda g: Image.fromarray(g.astype(np.float32) / 255), "TIFF"),
    "floats up to 255": (lambda g: Image.fromarray(g.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", GRAY_MODES)
def test_gray_modes_become_three_equal_channels(picture: Image.Image, name: str) -> None:
    gray = np.array(picture.convert("L"))
    make, image_format = GRAY_MODES[name]
    rgb = read_image(encode(make(gray), image_format))
    for channel in range(3):
        assert np.array_equal(rgb[..., channel], gray)


def test_16_bit_is_rounded_over_the_full_range() -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    rgb = read_image(encode(Image.fromarray(values), "PNG"))
    assert rgb[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


def test_not_finite_and_negative_floats_are_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -3, 0.5, 1]], np.float32)
    rgb = read_image(encode(Image.fromarray(values), "TIFF"))
    assert rgb[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255]


def test_one_bit_is_black_and_white(picture: Image.Image) -> None:
    bits = picture.convert("1")
    rgb = read_image(encode(bits, "PNG"))
    assert np.array_equal(rgb[..., 0] == 255, np.array(bits))
    assert set(np.unique(rgb)) == {0, 255}


def half_transparent(picture: Image.Image) -> tuple[Image.Image, str]:
    layer = picture.convert("RGBA")
    layer.paste((10, 20, 30, 0), (0, 0, 512, 256))
    return layer, "PNG"


def gray_with_alpha(picture: Image.Image) -> tuple[Image.Image, str]:
    return half_transparent(picture)[0].convert("LA"), "PNG"


def transparent_palette(picture: Image.Image) -> tuple[Image.Image, str]:
    palette = Image.new("P", (512, 512), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, 512, 256))
    palette.info["transparency"] = bytes([0, 255])
    return palette, "PNG"


def transparent_gif(picture: Image.Image) -> tuple[Image.Image, str]:
    palette, _ = transparent_palette(picture)
    palette.info["transparency"] = 0
    return palette, "GIF"


def transparent_colour(picture: Image.Image) -> tuple[Image.Image, str]:
    opaque = picture.copy()
    opaque.paste((1, 2, 3), (0, 0, 512, 256))
    opaque.info["transparency"] = (1, 2, 3)
    return opaque, "PNG"


@pytest.mark.parametrize(
    "recipe",
    [half_transparent, gray_with_alpha, transparent_palette, transparent_gif, transparent_colour],
    ids=lambda recipe: recipe.__name__,
)
def test_transparent_parts_lie_over_white(picture: Image.Image, recipe: Recipe) -> None:
    layer, image_format = recipe(picture)
    options = {"transparency": layer.info["transparency"]} if "transparency" in layer.info else {}
    rgb = read_image(encode(layer, image_format, **options))
    assert (rgb[:256] == 255).all()
    assert (rgb[256:] != 255).mean() > 0.9


def test_half_transparency_is_blended() -> None:
    rgb = read_image(encode(Image.new("RGBA", (2, 2), (0, 100, 200, 51)), "PNG"))
    assert np.abs(rgb.astype(int) - (204, 224, 244)).max() <= 1


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_of_several_frames_is_read(picture: Image.Image, image_format: str) -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (64, 48), (30, 200, 30))
    rgb = read_image(encode(first, image_format, save_all=True, append_images=[second]))
    assert rgb.shape == (48, 64, 3)
    assert np.abs(rgb.astype(int) - (200, 30, 30)).mean() < 6


@pytest.mark.parametrize(
    "size_wh", [(511, 300), (320, 320), (256, 256), (200, 201), (128, 128), (96, 61), (1, 1)]
)
def test_scaled_down_is_near_the_average_of_what_lies_under_each_pixel(
    astronaut: UInt8Array, size_wh: tuple[int, int]
) -> None:
    averaged = cv2.resize(astronaut, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
    small = scaled_down(astronaut, size_wh)
    assert small.shape == averaged.shape
    assert difference(small, averaged) < 4
    skipping = cv2.resize(astronaut, size_wh, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    assert difference(small, averaged) < 0.5 * difference(skipping, averaged)


@pytest.mark.parametrize("side", [997, 1001, 1023, 1024])
def test_scaled_down_keeps_places(side: int) -> None:
    """Of sizes that have no half too."""
    photo = np.zeros((side, side, 3), np.uint8)
    photo[880:920, 600:640] = 255
    small = scaled_down(photo, (240, 240))[..., 0].astype(np.float64)
    rows, columns = np.indices(small.shape) + 0.5
    place = np.array([(columns * small).sum(), (rows * small).sum()]) / small.sum() * side / 240
    np.testing.assert_allclose(place, (620, 900), atol=1.5)


def test_nothing_is_scaled_down_to_nothing(astronaut: UInt8Array) -> None:
    with pytest.raises(ValueError, match="at least 1 x 1"):
        scaled_down(astronaut, (0, 16))


def test_a_photo_of_that_size_stays(astronaut: UInt8Array) -> None:
    assert scaled_down(astronaut, (512, 512)) is astronaut


def test_one_pixel() -> None:
    assert read_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).tolist() == [[[9, 8, 7]]]


def test_photos_wider_and_taller_than_a_strip_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.images.pixels._STRIP_PIXELS", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 150, 3), np.uint8)
    assert np.array_equal(read_image(encode(Image.fromarray(pixels), "PNG")), pixels)
    assert np.array_equal(read_image(encode(Image.fromarray(pixels[:, :7]), "PNG")), pixels[:, :7])


# Orientation

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(picture: Image.Image, image_format: str, orientation: int) -> None:
    upright = picture.crop((100, 0, 400, 200))
    turn = TURNED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(upright if turn is None else upright.transpose(turn), image_format, exif=exif.tobytes())
    assert difference(read_image(file), np.array(upright)) < 4


def test_heic_rotation_is_applied_once(picture: Image.Image) -> None:
    upright = picture.crop((100, 0, 400, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(upright.transpose(Image.Transpose.ROTATE_90), "HEIC", exif=exif.tobytes())
    assert difference(read_image(file), np.array(upright)) < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_photo_nor_warn(
    picture: Image.Image, astronaut: UInt8Array, exif: bytes
) -> None:
    file = encode(picture, "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(read_image(file), astronaut) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_the_size_is_that_of_the_upright_photo(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = encode(Image.new("RGB", (64, 32)), image_format, exif=exif.tobytes())
    assert read_size(photo) == read_image(photo).shape[1::-1]


def test_the_size_is_in_the_header() -> None:
    photo = encode(Image.effect_noise((640, 320), 50), "PNG")
    assert read_size(photo[: len(photo) // 2]) == (640, 320)
    with pytest.raises(PhotoError, match="more than 1,000 pixels"):
        read_size(photo, max_pixels=1000)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_meaningless_orientations_are_ignored(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture.crop((0, 0, 300, 200))
    assert read_image(encode(upright, "PNG", exif=exif.tobytes())).shape == (200, 300, 3)


# Real photos


def test_real_photos_are_read_as_an_independent_decoder_reads_them(shared_data: Path) -> None:
    import cv2

    paths = find_photos([shared_data / "photos" / "people" / "enroll"])
    assert len(paths) == 80
    for path in paths[::8]:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        expected = decoded[..., ::-1].astype(np.uint8)
        assert difference(read_image(path), expected) < 2
