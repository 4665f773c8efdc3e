"""TIFF photos of kinds that Pillow misreads or doesn't know: deep samples in planes, floats, and the like."""

from __future__ import annotations

import logging
import math
import zlib
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from facepipe.errors import PhotoError
from facepipe.faces import UInt8Array

if TYPE_CHECKING:
    from tifffile import FileHandle, TiffPage

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 262, 277, 284, 339
_BIG_ENDIAN = b"MM"
_SUBFILE, _SUB_IMAGES, _ORIENTATION = 254, 330, 274
_WHITE_IS_ZERO, _CMYK = 0, 5
_COLOURS = {_WHITE_IS_ZERO: 1, 1: 1, 2: 3, _CMYK: 4}
"""Samples of a colour, by the photometric interpretations that are read here."""
_PREMULTIPLIED, _ALPHAS = 1, (1, 2)
_MOST_EXTRA_SAMPLES = 4
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_NO_PREDICTOR, _DIFFERENCES = 1, 2
_BLOCK_SAMPLES = 1 << 20


def is_tiff(stream: BufferedReader | BytesIO) -> bool:
    """Whether a file begins as a TIFF does."""
    stream.seek(0)
    signature = stream.read(4)
    stream.seek(0)
    return signature in _SIGNATURES


def is_misread(photo: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow, which has opened a photo, would give wrong pixels for it without an error."""
    tags = photo.tag_v2
    bits, samples = max(tags.get(_BITS, (1,))), tags.get(_SAMPLES, 1)
    unsigned, signed = (number in tags.get(_SAMPLE_FORMAT, (1,)) for number in (1, 2))
    in_planes = samples > 1 and tags.get(_PLANES, 1) == 2
    compressed = photo.info.get("compression") != "raw"
    return (
        (in_planes and (samples == 2 or (not compressed and (bits > 8 or samples > 3))))
        or (bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
        or (bits == 32 and (unsigned or (compressed and tags.prefix == _BIG_ENDIAN)))
        or (bits < 32 and signed)
        or bits == 12
        or _is_raw_preview(tags)
    )


def _is_raw_preview(tags: Any) -> bool:
    """Whether the first picture of a TIFF is a reduced one beside others, as in cameras' raw files."""
    return bool(tags.get(_SUBFILE, 0) & 1) and _SUB_IMAGES in tags


def read_tiff(
    stream: BufferedReader | BytesIO, name: str, max_pixels: int, too_large: str
) -> tuple[UInt8Array, int]:
    """Read the first picture of a TIFF without Pillow.

    Gray, RGB and CMYK of integers or floats, with or without alpha, which is laid over white. Compressed
    samples are read where they are deflated.

    Args:
        stream: The file.
        name: How messages name it.
        max_pixels: Photos of more pixels are refused.
        too_large: The message then.

    Returns:
        RGB uint8 (H, W, 3) as stored, and the EXIF orientation.

    Raises:
        PhotoError: A kind that is not read, too large, or damaged.
    """
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it writes to the user's stderr
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        page = tiff.pages.first
        if page.imagewidth * page.imagelength > max_pixels:
            raise PhotoError(too_large)
        tags = {tag.code: tag.value for tag in page.tags}
        if _is_raw_preview(tags):
            raise PhotoError(f"{name}: a camera's raw file, which is not read; export the photo as JPEG")
        if not _is_known(page):
            raise PhotoError(
                f"{name}: a TIFF of {_kind(page)} is not read; export it as TIFF or PNG of 8 bits a channel"
            )
        _require_whole(page, tiff.filehandle)
        stored = page.asarray().reshape(page.shaped)  # planes, depth, height, width, samples of a plane
        samples = np.moveaxis(stored[:, 0], 0, -2).reshape(page.imagelength, page.imagewidth, -1)
        return _rgb(page, samples), tags.get(_ORIENTATION, 1)


def _is_known(page: TiffPage) -> bool:
    colours = _COLOURS.get(page.photometric, 0)
    return (
        colours > 0
        and page.dtype is not None
        and page.dtype.kind in "uif"
        and page.bitspersample == 8 * page.dtype.itemsize
        and colours <= page.samplesperpixel <= colours + _MOST_EXTRA_SAMPLES
        and page.imagedepth == 1
        and page.fillorder == 1
        and page.compression in (_UNCOMPRESSED, *_DEFLATE)
        and page.predictor in (_NO_PREDICTOR, _DIFFERENCES)
    )


def _kind(page: TiffPage) -> str:
    """`3 samples of 32 bits (float32), RGB, in planes, LZW`."""
    words = [f"{page.samplesperpixel} samples of {page.bitspersample} bits ({page.dtype or 'no known type'})"]
    words.append(getattr(page.photometric, "name", f"photometric interpretation {page.photometric}"))
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        words.append("in planes")
    if page.compression != _UNCOMPRESSED:
        words.append(getattr(page.compression, "name", f"compression {page.compression}"))
    return ", ".join(words)


def _require_whole(page: TiffPage, file: FileHandle) -> None:
    """Check that every strip or tile is there, and inflates to no more than its size.

    Raises:
        ValueError: The message says what is wrong.
    """
    size = math.prod(page.chunks) * page.bitspersample // 8
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("strips or tiles are missing")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        data = file.read(count)
        if not data or len(data) < count:
            raise ValueError("a strip or tile is cut off")
        if page.compression in _DEFLATE:
            inflating = zlib.decompressobj()
            inflating.decompress(data, size)
            if inflating.unconsumed_tail:
                raise ValueError("a strip or tile inflates to more than its size")


def _rgb(page: TiffPage, samples: npt.NDArray[np.generic]) -> UInt8Array:
    colours = _COLOURS[page.photometric]
    pixels = eight_bit(samples[..., :colours])
    if page.photometric == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    if page.photometric == _CMYK:
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB"))
    rgb = np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), np.uint8)
    alphas = page.extrasamples[:1]
    if not alphas or alphas[0] not in _ALPHAS:
        return rgb
    alpha = eight_bit(samples[..., colours : colours + 1]).astype(np.float32) / 255
    share = 1.0 if alphas[0] == _PREMULTIPLIED else alpha
    return np.rint(np.minimum(rgb * share + 255 * (1 - alpha), 255)).astype(np.uint8)


def eight_bit(samples: npt.NDArray[np.generic]) -> UInt8Array:
    """Samples (H, W, ...) of any depth as uint8.

    Integers of up to 16 bits are scaled over their full range, all else over the smallest usual range that
    holds the brightest sample: 1 (of floats only), 255, 65535, 2^32 - 1 (of signed integers, 2^31 - 1). What
    is negative or not finite is 0.
    """
    full_scale = _full_scale(samples)
    rows = max(1, _BLOCK_SAMPLES // samples[0].size)
    result = np.empty(samples.shape, np.uint8)
    for top in range(0, len(samples), rows):
        block = np.nan_to_num(samples[top : top + rows].astype(np.float64), posinf=0.0, neginf=0.0)
        result[top : top + rows] = np.rint(block.clip(min=0) * (255 / full_scale))
    return result


def _full_scale(samples: npt.NDArray[np.generic]) -> float:
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    sign_bits = int(kind == "i")
    if kind != "f" and bits <= 16:
        return float(2 ** (bits - sign_bits) - 1)
    usual = [*(1.0, 255.0, 65535.0)[kind != "f" :], 2.0 ** (32 - sign_bits) - 1]
    brightest = float(np.max(samples, where=np.isfinite(samples), initial=0))
    return next((top for top in usual if brightest <= top), brightest)
