"""TIFF photos of kinds that Pillow misreads or doesn't know: deep samples in planes, floats, and the like."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array

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
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 278, 322, 323
_BUFFERS, _BLOCK_BYTES, _RGBA_BYTES = 2, 40_000_000, 4
"""Of a strip or tile: as decoded, and with differences undone; a block in floats; some come as RGBA."""


def is_tiff(stream: BufferedReader | BytesIO) -> bool:
    """Return whether a file begins as a TIFF does."""
    stream.seek(0)
    signature = stream.read(4)
    stream.seek(0)
    return signature in _SIGNATURES


def is_misread(photo: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether Pillow, which has opened a photo, would give wrong pixels for it without an error."""
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
        or _is_raw_preview(tags.get(_SUBFILE, 0), tags)
    )


def _is_raw_preview(subfile: int, tags: Container[int]) -> bool:
    """Return whether the first picture of a TIFF is a reduced one beside others, as in cameras' raw files."""
    return bool(subfile & 1) and _SUB_IMAGES in tags


def libtiff_bytes(photo: TiffImagePlugin.TiffImageFile) -> int:
    """Return what libtiff takes beside the picture: strips and tiles are as large as the file has them."""
    tags = photo.tag_v2
    if photo.info.get("compression") == "raw":
        return 0
    rows = min(tags.get(_ROWS_PER_STRIP, photo.height), photo.height)
    pixels = tags.get(_TILE_WIDTH, photo.width) * tags.get(_TILE_LENGTH, rows)
    sample_bytes = -(-max(tags.get(_BITS, (1,))) // 8) * tags.get(_SAMPLES, 1)
    return int(pixels * max(sample_bytes, _RGBA_BYTES))


def _bytes_to_read(page: TiffPage) -> int:
    """Return all samples, and what is beside them: first the buffers of strips or tiles, then the result."""
    assert page.dtype is not None
    pixels, sample_bytes = page.imagewidth * page.imagelength, page.dtype.itemsize
    chunk_bytes = math.prod(page.chunks) * sample_bytes
    buffer_bytes = 0 if page.compression == _UNCOMPRESSED else _BUFFERS * chunk_bytes
    return int(pixels * page.samplesperpixel * sample_bytes + max(buffer_bytes, 3 * pixels)) + _BLOCK_BYTES


def read_tiff(
    stream: BufferedReader | BytesIO,
    name: str,
    max_pixels: int,
    too_large: str,
    reserve: Callable[[int], None],
) -> tuple[UInt8Array, int]:
    """Read the first picture of a TIFF without Pillow.

    Gray, RGB and CMYK of integers or floats, with or without alpha, which is laid over white. Compressed
    samples are read where they are deflated.

    Args:
        stream: The file.
        name: How messages name it.
        max_pixels: Photos of more pixels are refused.
        too_large: The message then.
        reserve: Called with the bytes of memory that reading takes, before they are used.

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
        if _is_raw_preview(page.tags.valueof(_SUBFILE, 0), page.tags):
            raise PhotoError(f"{name}: a camera's raw file, which is not read; export the photo as JPEG")
        if not _is_known(page):
            raise PhotoError(
                f"{name}: a TIFF of {_kind(page)} is not read; export it as TIFF or PNG of 8 bits a channel"
            )
        reserve(_bytes_to_read(page))
        _require_whole(page, tiff.filehandle)
        stored = page.asarray().reshape(page.shaped)  # planes, depth, height, width, samples of a plane
        samples = np.moveaxis(stored[:, 0], 0, -2).reshape(page.imagelength, page.imagewidth, -1)
        return _rgb(page, samples), page.tags.valueof(_ORIENTATION, 1)


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
        ValueError: With what is wrong.
    """
    size = math.prod(page.chunks) * page.bitspersample // 8
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("strips or tiles are missing")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not 0 < count <= file.size - offset:
            raise ValueError("a strip or tile is cut off")
        file.seek(offset)
        data = file.read(count)
        if page.compression in _DEFLATE:
            inflating = zlib.decompressobj()
            inflating.decompress(data, size)
            if inflating.unconsumed_tail:
                raise ValueError("a strip or tile inflates to more than its size")


def _rgb(page: TiffPage, samples: npt.NDArray[np.generic]) -> UInt8Array:
    """Samples (H, W, n) as RGB, block by block: alpha is mixed in floats, which take much memory."""
    count = _COLOURS[page.photometric]
    colours, alphas = samples[..., :count], samples[..., count : count + 1]
    kind = next(iter(page.extrasamples), None)
    scale, alpha_scale = (full_scale(part[rows] for rows in _row_blocks(part)) for part in (colours, alphas))
    rgb = np.empty((*samples.shape[:2], 3), np.uint8)
    for rows in _row_blocks(samples):
        rgb[rows] = _colours_as_rgb(eight_bit(colours[rows], scale), page.photometric)
        if kind in _ALPHAS:
            alpha = eight_bit(alphas[rows], alpha_scale)
            rgb[rows] = _over_white(rgb[rows], alpha, premultiplied=kind == _PREMULTIPLIED)
    return rgb


def _colours_as_rgb(pixels: UInt8Array, photometric: int) -> UInt8Array:
    if photometric == _WHITE_IS_ZERO:
        return 255 - pixels
    if photometric == _CMYK:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), "CMYK").convert("RGB"))
    return pixels


def _over_white(rgb: UInt8Array, alpha_8: UInt8Array, *, premultiplied: bool) -> UInt8Array:
    alpha = alpha_8.astype(np.float32) / 255
    share = 1.0 if premultiplied else alpha
    return np.rint(np.minimum(rgb * share + 255 * (1 - alpha), 255)).astype(np.uint8)


def eight_bit(samples: npt.NDArray[np.generic], scale: float) -> UInt8Array:
    """Samples (H, W, ...) of any depth as uint8: `scale` becomes 255, what is negative or not finite 0."""
    result = np.empty(samples.shape, np.uint8)
    for rows in _row_blocks(samples):
        block = np.nan_to_num(samples[rows].astype(np.float64), posinf=0.0, neginf=0.0)
        result[rows] = np.rint(block.clip(min=0) * (255 / scale))
    return result


def full_scale(blocks: Iterable[npt.NDArray[np.generic]]) -> float:
    """Return the sample value that is as bright as can be.

    Of integers of up to 16 bits it is the end of their range, of all else that of the smallest usual range
    that holds the brightest sample: 1 (of floats only), 255, 65535, 2^32 - 1 (of signed integers, 2^31 - 1).

    Args:
        blocks: All samples, in one array or several.
    """
    brightest, usual = 0.0, [1.0]
    for samples in blocks:
        kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
        sign_bits = int(kind == "i")
        if kind != "f" and bits <= 16:
            return float(2 ** (bits - sign_bits) - 1)
        usual = [*(1.0, 255.0, 65535.0)[kind != "f" :], 2.0 ** (32 - sign_bits) - 1]
        brightest = max(brightest, float(np.max(samples, where=np.isfinite(samples), initial=0)))
    return next((top for top in usual if brightest <= top), brightest)


def _row_blocks(samples: npt.NDArray[np.generic]) -> Iterator[slice]:
    """Rows of an array (H, W, ...) that together have few samples."""
    rows = max(1, _BLOCK_SAMPLES // max(1, samples[0].size))
    return (slice(top, top + rows) for top in range(0, len(samples), rows))
