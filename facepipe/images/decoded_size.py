"""The memory and work that decoding a photo takes, read from its header: small files can hold large photos.

Bytes a pixel were measured with the libraries that Pillow brings, and are rounded up.
"""

from __future__ import annotations

import os
from io import BufferedReader, BytesIO
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from facepipe.core.errors import PhotoError
from facepipe.images.jpeg import FrameHeader, read_frame, scanned_samples
from facepipe.images.tiff import is_tiff, libtiff_bytes

MOST_SCANNED_SAMPLES = 2_000_000_000
"""Of all scans of a JPEG together, some 8 s of work: a progressive one of 200 megapixels has 1.6e9."""

MOST_RLE_PIXELS = 25_000_000
"""Of a run-length encoded BMP, which Pillow decodes in Python: 2 s."""

_RESULT_BYTES = 3
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Of Pillow's pixel, by mode; of other modes 4."""
_STRIP_BYTES = 40_000_000
"""Of the strip that is converted at a time, in floats at the worst."""
_WEBP_BYTES = 17
"""Of a pixel: two canvases, a copy as bytes, Pillow's picture or what lossless files take to decode."""
_WEBP_CODES, _WEBP_CODE_BYTES = 1 << 16, 6_000
"""Sets of Huffman codes in a lossless WebP: at most so many, one for each 16 pixels, and so large."""
_AVIF_BYTES = 20
_HEIF_BYTES, _DEEP_HEIF_BYTES = 10, 20
_RLE_BYTES, _RLE_ROWS = 6, 256
_UNKNOWN_COEFFICIENTS = 8


def opening_bytes(stream: BufferedReader | BytesIO, max_pixels: int) -> tuple[int, int]:
    """Return what opening a photo takes, before its size is known to Pillow.

    Returns:
        Pixels of the photo, 0 where its decoder reports them without taking memory; and bytes.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(30)
    if header.startswith(b"BM") or is_tiff(stream):
        return 0, 0
    if header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        pixels = _webp_pixels(header)
        codes = 0 if header[12:16] == b"VP8 " else min(_WEBP_CODES, pixels // 16 + 1)
        return pixels, _WEBP_BYTES * pixels + _WEBP_CODE_BYTES * codes + 2 * size + _strip_bytes(pixels)
    if header.startswith(b"GIF"):  # its first frame may have as many pixels as are allowed
        return 0, size + max_pixels
    return 0, 2 * size


def decoding_bytes(photo: Image.Image, stream: BufferedReader | BytesIO) -> int:
    """Return what decoding takes of a photo that Pillow has opened: picture, decoder, and result."""
    pixels, size = photo.width * photo.height, stream.seek(0, os.SEEK_END)
    stored = _STORED_BYTES.get(photo.mode, 4)
    picture_bytes = (stored + _RESULT_BYTES) * pixels + _strip_bytes(pixels)
    if photo.format == "WEBP":
        return opening_bytes(stream, 0)[1]
    if photo.format == "AVIF":
        return _AVIF_BYTES * pixels + 2 * size + _strip_bytes(pixels)
    if photo.format in ("JPEG", "MPO"):
        decoder_bytes = stored * pixels + _coefficient_bytes(photo, stream)
        return max(picture_bytes, decoder_bytes) + size
    if isinstance(photo, TiffImageFile):
        return max(picture_bytes, stored * pixels + libtiff_bytes(photo))
    if _is_run_length_encoded(photo):
        return _RLE_BYTES * pixels + _RLE_ROWS * (photo.width + 1)
    return (
        picture_bytes
        + (0 if photo.format in ("BMP", "DIB") else size)
        + (pixels if photo.format == "GIF" else 0)
    )


def heif_bytes(heif: Any, stream: BufferedReader | BytesIO) -> int:
    """Return what decoding takes of a photo that pillow-heif has opened."""
    pixels: int = heif.size[0] * heif.size[1]
    bytes_per_pixel = _HEIF_BYTES if heif.info.get("bit_depth", 0) == 8 else _DEEP_HEIF_BYTES
    return bytes_per_pixel * pixels + 2 * stream.seek(0, os.SEEK_END) + _strip_bytes(pixels)


def require_little_work(photo: Image.Image, stream: BufferedReader | BytesIO, name: str) -> None:
    """Check that decoding takes seconds, not minutes.

    Raises:
        PhotoError: It would take too long; the message begins with `name`.
    """
    if _is_run_length_encoded(photo) and photo.width * photo.height > MOST_RLE_PIXELS:
        raise _too_much_work(name, f"a run-length encoded BMP of more than {MOST_RLE_PIXELS:,} pixels")
    frame = read_frame(stream) if photo.format in ("JPEG", "MPO") else None
    if frame is not None and frame.several_scans and scanned_samples(stream, frame) > MOST_SCANNED_SAMPLES:
        raise _too_much_work(name, f"its scans go through more than {MOST_SCANNED_SAMPLES:,} samples")


def _too_much_work(name: str, reason: str) -> PhotoError:
    return PhotoError(f"{name}: decoding it would take too long ({reason}); export it again")


def _webp_pixels(header: bytes) -> int:
    """Pixels of a WebP's canvas; 0 where the header is damaged."""
    match header[12:16]:
        case b"VP8X":
            wide, high = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8L":
            sides = int.from_bytes(header[21:25], "little")
            wide, high = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        case _:
            wide, high = (int.from_bytes(header[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return wide * high


def _coefficient_bytes(photo: Image.Image, stream: BufferedReader | BytesIO) -> int:
    frame: FrameHeader | None = read_frame(stream)
    return _UNKNOWN_COEFFICIENTS * photo.width * photo.height if frame is None else frame.coefficient_bytes


def _is_run_length_encoded(photo: Image.Image) -> bool:
    tiles: list[Any] = getattr(photo, "tile", [])
    return any(tile[0] == "bmp_rle" for tile in tiles)


def _strip_bytes(pixels: int) -> int:
    return min(_STRIP_BYTES, 40 * pixels)
