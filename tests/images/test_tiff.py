"""TIFF in every variant: the right pixels, or an error that names the kind."""

from __future__ import annotations

import itertools
import re
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from image_helpers import difference, encode
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image, read_size

HEIGHT, WIDTH = 48, 80
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4}
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")


def picture(channels: int) -> UInt8Array:
    """uint8 (48, 80, channels), no two channels alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [x * 3, y * 5, x + 2 * y, 255 - 2 * x, 128 + x // 2]
    stacked = np.stack(planes[:channels], axis=-1)
    stacked[0, 0] = 255  # full scale, by which floats and wide integers are told
    return stacked.astype(np.uint8)


def stored(pixels: UInt8Array, dtype: str) -> npt.NDArray[np.generic]:
    """The same brightness over the dtype's full range; floats from 0 to 1."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (pixels / 255).astype(kind)
    return np.rint(pixels.astype(np.float64) * (np.iinfo(kind).max / 255)).astype(kind)


def expected(pixels: UInt8Array, photometric: str, alpha: bool) -> UInt8Array:
    colour = pixels[..., : COLOURS[photometric]].astype(np.float64)
    if photometric == "miniswhite":
        colour = 255 - colour
    if photometric == "separated":
        colour = (255 - colour[..., :3]) * (255 - colour[..., 3:]) / 255
    if alpha:
        share = pixels[..., -1:] / 255
        colour = colour * share + 255 * (1 - share)
    return np.rint(np.broadcast_to(colour, (HEIGHT, WIDTH, 3))).astype(np.uint8)


def tiff(samples: npt.NDArray[np.generic], photometric: str, planar: str, **options: Any) -> bytes:
    """Of samples (h, w, channels)."""
    if samples.shape[2] == 1:
        samples, planar = samples[..., 0], ""
    if planar == "separate":
        samples = np.ascontiguousarray(np.moveaxis(samples, -1, 0))
    stream = BytesIO()
    if planar:
        options["planarconfig"] = planar
    tifffile.imwrite(stream, samples, photometric=photometric, **options)
    return stream.getvalue()


STORED: list[tuple[str, str, bool, str]] = [
    (dtype, photometric, alpha, planar)
    for dtype, photometric, alpha, planar in itertools.product(
        DTYPES, COLOURS, (False, True), ("contig", "separate")
    )
    if not (photometric == "separated" and alpha)
    and not (COLOURS[photometric] + alpha == 1 and planar == "separate")
]


@pytest.mark.parametrize(("dtype", "photometric", "alpha", "planar"), STORED)
def test_every_layout_gives_the_pixels_that_were_stored(
    dtype: str, photometric: str, alpha: bool, planar: str
) -> None:
    pixels = picture(COLOURS[photometric] + alpha)
    extra = {"extrasamples": ["unassalpha"]} if alpha else {}
    for tile, compression, order in itertools.product((None, (32, 32)), (None, "zlib"), "<>"):
        file = tiff(
            stored(pixels, dtype),
            photometric,
            planar,
            tile=tile,
            compression=compression,
            byteorder=order,
            **extra,
        )
        second_reader = tifffile.imread(BytesIO(file))
        layers = np.moveaxis(second_reader, 0, -1) if planar == "separate" else second_reader
        assert np.array_equal(layers.reshape(HEIGHT, WIDTH, -1), stored(pixels, dtype))
        wrong = np.abs(read_image(file).astype(int) - expected(pixels, photometric, alpha)).max()
        assert wrong <= 2, (tile, compression, order)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_premultiplied_alpha_and_samples_without_a_meaning(
    dtype: str, planar: str, compression: str | None
) -> None:
    pixels = picture(5)
    alpha = pixels[..., 3:4]
    premultiplied = np.rint(pixels[..., :3] * (alpha / 255)).astype(np.uint8)
    samples = stored(np.concatenate([premultiplied, alpha], axis=-1), dtype)
    file = tiff(samples, "rgb", planar, extrasamples=["assocalpha"], compression=compression)
    wrong = np.abs(read_image(file).astype(int) - expected(pixels[..., :4], "rgb", alpha=True))
    assert wrong.max() <= 2
    for count in (1, 2):
        samples, extra = stored(pixels[..., : 3 + count], dtype), ["unspecified"] * count
        file = tiff(samples, "rgb", planar, extrasamples=extra, compression=compression)
        assert np.abs(read_image(file).astype(int) - pixels[..., :3]).max() <= 1


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_differences_are_added_up(dtype: str, predictor: bool) -> None:
    file = tiff(stored(picture(3), dtype), "rgb", "separate", compression="zlib", predictor=predictor)
    assert np.abs(read_image(file).astype(int) - picture(3)).max() <= 1


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "group4"]
)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA", "PA", "YCbCr"])
def test_what_pillow_writes_is_read(mode: str, compression: str) -> None:
    source = Image.fromarray(picture(3))
    if mode == "I;16":
        photo = Image.fromarray(stored(picture(1)[..., 0], "uint16"))
    else:
        photo = source.quantize(64).convert("PA") if mode == "PA" else source.convert(mode)
    if (compression == "jpeg" and mode in ("1", "P", "PA", "I;16", "RGBA", "LA")) or (
        compression == "group4" and mode != "1"
    ):
        pytest.skip("not written so")
    gray = np.repeat(picture(1), 3, axis=-1) if mode == "I;16" else np.asarray(photo.convert("RGB"))
    assert difference(read_image(encode(photo, "TIFF", compression=compression)), gray) <= (
        9 if compression == "jpeg" else 1
    )


def test_exif_orientation_is_applied_to_planes_too() -> None:
    file = tiff(stored(picture(3), "uint16"), "rgb", "separate", extratags=[(274, "H", 1, 6, True)])
    assert np.array_equal(read_image(file), np.rot90(picture(3), -1))
    assert read_size(file) == read_image(file).shape[1::-1]


# What is not read


def packed_12_bit() -> bytes:
    """Gray of 12 bits a sample, two in three bytes."""
    stream = BytesIO()
    tifffile.imwrite(stream, np.full((HEIGHT, WIDTH * 3 // 2), 0x5A, np.uint8), photometric="minisblack")
    stream.seek(0)
    with tifffile.TiffFile(stream, mode="r+") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(WIDTH)
        tags["BitsPerSample"].overwrite(12)
    return stream.getvalue()


def raw_file_of_a_camera() -> bytes:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(picture(3)[:16, :16], photometric="rgb", subfiletype=1, subifds=1)
        file.write(stored(picture(1)[..., 0], "uint16"), photometric="minisblack")
    return stream.getvalue()


def with_tag(file: bytes, name: str, value: int) -> bytes:
    stream = BytesIO(file)
    with tifffile.TiffFile(stream, mode="r+") as opened:
        opened.pages.first.tags[name].overwrite(value)
    return stream.getvalue()


REFUSED = {
    "12 bits": (packed_12_bit(), "12 bits .* is not read; export it as TIFF or PNG of 8 bits"),
    "CIELAB of 16 bits": (tiff(stored(picture(3), "uint16"), "cielab", "contig"), "CIELAB is not read"),
    "complex numbers": (tiff(picture(1).astype(np.complex64), "minisblack", ""), "complex64.* is not read"),
    "floats, LZW": (
        with_tag(tiff(stored(picture(3), "float32"), "rgb", "separate"), "Compression", 5),
        r"3 samples of 32 bits \(float32\), RGB, in planes, LZW is not read",
    ),
    "a camera's raw file": (
        raw_file_of_a_camera(),
        "a camera's raw file, which is not read; export the photo",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_not_read_are_named(kind: str) -> None:
    file, told = REFUSED[kind]
    with pytest.raises(PhotoError, match=told):
        read_image(file)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(
    ("dtype", "planar"), [("uint16", "separate"), ("float32", "contig"), ("uint32", "contig")]
)
def test_half_a_picture_is_an_error(dtype: str, planar: str, share: float, compression: str | None) -> None:
    random = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    file = tiff(stored(random, dtype), "rgb", planar, compression=compression, rowsperstrip=8)
    with pytest.raises(PhotoError, match="damaged"):
        read_image(file[: int(len(file) * share)])


def test_the_size_limit_holds_and_nothing_is_inflated_beyond_a_strip() -> None:
    file = tiff(stored(picture(3), "float32"), "rgb", "contig", compression="zlib")
    assert read_image(file, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(PhotoError, match=re.escape(f"more than {HEIGHT * WIDTH - 1:,} pixels")):
        read_image(file, max_pixels=HEIGHT * WIDTH - 1)
    bomb = zlib.compress(bytes(HEIGHT * WIDTH * 3 * 4 + 1))
    with tifffile.TiffFile(BytesIO(file)) as opened:
        offset, count = opened.pages.first.dataoffsets[0], opened.pages.first.databytecounts[0]
    assert len(bomb) < count
    with pytest.raises(PhotoError, match="inflates to more than its size"):
        read_image(file[:offset] + bomb.ljust(count, b"\0") + file[offset + count :])


def test_damaged_bytes_give_a_photo_or_a_photo_error() -> None:
    random = np.random.default_rng(1)
    files = [tiff(stored(picture(3), dtype), "rgb", "separate") for dtype in ("uint16", "float32")]
    for file in files * 40:
        noisy = bytearray(file)
        for at in random.integers(4, 400, 3):
            noisy[at] = random.integers(0, 256)
        try:
            assert read_image(bytes(noisy), max_pixels=1_000_000).ndim == 3
        except PhotoError as error:
            assert str(error).startswith("photo from memory: ")  # noqa: PT017
