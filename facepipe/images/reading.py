"""Photos in and out: any common file becomes upright RGB, and every failure names the file and the cure."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from facepipe.core.errors import FacepipeError, OutputError, PhotoError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.core.files import atomic_write_bytes
from facepipe.core.overwriting import PICTURE_SOFTWARE
from facepipe.core.plain_text import text_of
from facepipe.images.decoding import (
    NeededScale,
    ReducedPhoto,
    decoded,
    picture_count,
    stored_orientation,
    stored_xmp,
    upright_size,
)
from facepipe.images.decoding_memory import PhotoMemory, allowed_bytes
from facepipe.images.pixels import is_orientation, orientation_of, rgb_of, upright

DEFAULT_MAX_PIXELS = 200_000_000
"""Largest photo read unless asked otherwise, in pixels: the sensors of phones today end there."""

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
PHOTO_SUFFIXES = frozenset(
    (*_JPEG_SUFFIXES, ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", *_HEIF_SUFFIXES)
)
"""Suffixes, in lower case, of the files taken from folders and globs."""

PhotoSource = str | os.PathLike[str] | bytes
_WRITE_OPTIONS: dict[str, tuple[str, dict[str, int]]] = {
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
_EXIF_SOFTWARE = 0x0131


def read_image(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8Array:
    """Read a photo: JPEG, PNG, WebP, BMP, TIFF, GIF (first frame), AVIF; HEIC with the [heic] extra.

    EXIF orientation is applied. Transparent parts are laid over white. Gray and 1-bit photos become three
    equal channels. 16 bits are scaled to 8 over their full range; 32-bit integers and floats over the
    smallest usual range (1, 255, 65535, 2^32 - 1) that holds their brightest pixel. CMYK is converted by
    formula and ICC profiles are left aside. A photo that is cut off is an error, never half a picture; one
    that has all its pixels is read though its end or its extras are damaged. A TIFF of a kind that is not
    read is an error too (floats and 16 bits in planes are read where they are not compressed, or deflated).

    Args:
        source: A file, or the bytes of one.
        max_pixels: Photos of more pixels are refused from their header, before anything is decoded. So are
            those that take more memory than an RGB photo of so many pixels, and all threads of the process
            together take no more: they wait for each other.

    Returns:
        RGB uint8 (H, W, 3), contiguous and writable, origin at the top-left corner of the upright photo.

    Raises:
        PhotoError: The photo can't be read; the message begins with the file's name.
    """
    return read_reduced(source, None, max_pixels=max_pixels).rgb


def read_reduced(
    source: PhotoSource,
    needed_scale: NeededScale | None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    memory: PhotoMemory | None = None,
    name: str | None = None,
) -> ReducedPhoto:
    """`read_image` for whoever needs fewer pixels: of a width and height, `needed_scale` (up to 1) a side.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough: its blocks are
    scaled before they become pixels, which takes a fraction of the time and memory. All else comes whole.

    Args:
        source: A file, or the bytes of one.
        needed_scale: Which share of each side is needed; None: all.
        max_pixels: As `read_image`.
        memory: Counts what the photo takes, and in the end what its pixels do, until the caller releases it;
            None: nothing is counted when they are returned.
        name: How messages name the photo; None: by its path.

    Raises:
        PhotoError: As `read_image`.
        MemoryBusyError: Only with a `memory` that does not wait.
    """
    name = name or printable(source)
    own = PhotoMemory(name, allowed_bytes(max_pixels))
    with own, _failures_named(name), _opened(source, name) as stream:
        taken = own if memory is None else memory
        photo = decoded(stream, needed_scale, max_pixels, taken)
        taken.take(photo.rgb.nbytes)
    return photo


def from_pillow(photo: Image.Image) -> UInt8Array:
    """A Pillow image as `read_image` gives its file: upright RGB uint8 (H, W, 3), contiguous and writable."""
    return upright(rgb_of(photo), orientation_of(photo))


def photo_sha256(source: PhotoSource, name: str | None = None) -> str:
    """SHA-256 of a photo file's bytes, 64 hex digits: the same photo under another name has the same.

    Args:
        source: A file, or the bytes of one.
        name: How messages name the photo; None: by its path.

    Raises:
        PhotoError: The file can't be read.
    """
    name = name or printable(source)
    with _failures_named(name), _opened(source, name) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_photo_bytes(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """Read a photo file as it is.

    Args:
        path: The file.
        max_bytes: Larger files are refused.

    Raises:
        PhotoError: As `read_image`, or the file is larger than `max_bytes`.
    """
    name = printable(path)
    with _failures_named(name), _opened(path, name) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise PhotoError(
            f"{name}: a file of more than {max_bytes // 1_000_000} MB is not sent to other machines; "
            "give them the folder at the same path, or analyze it without --ray"
        )
    return content


@contextmanager
def _opened_within(
    source: PhotoSource, max_pixels: int
) -> Iterator[tuple[BufferedReader | BytesIO, PhotoMemory]]:
    """Open a photo, with the memory that may be taken for one of at most so many pixels."""
    name = printable(source)
    with (
        PhotoMemory(name, allowed_bytes(max_pixels)) as memory,
        _failures_named(name),
        _opened(source, name) as stream,
    ):
        yield stream, memory


def read_orientation(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """EXIF orientation of a photo, 1..8: how `read_image` turns the stored picture upright.

    1, no turn, where the photo has none. That of a HEIC photo is in its EXIF data too, though the decoder
    turns its pixels.

    Raises:
        PhotoError: As `read_image`; damaged pixels are no reason.
    """
    with _opened_within(source, max_pixels) as (stream, memory):
        orientation = stored_orientation(stream, max_pixels, memory)
    return orientation if is_orientation(orientation) else 1


def read_xmp(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> list[bytes]:
    """XMP packets that are embedded in a photo, as they are stored; they may hold anything.

    Raises:
        PhotoError: As `read_image`, or a packet is damaged; damaged pixels are no reason.
    """
    with _opened_within(source, max_pixels) as (stream, memory):
        return stored_xmp(stream, max_pixels, memory)


def count_pictures(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """Number of pictures in a file: frames of an animation, or pages; 0 of a TIFF that Pillow doesn't read.

    Raises:
        PhotoError: As `read_image`; damaged pixels are no reason.
    """
    with _opened_within(source, max_pixels) as (stream, memory):
        return picture_count(stream, max_pixels, memory)


def read_size(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Width and height, in pixels, of the photo that `read_image` would return; from its header.

    Raises:
        PhotoError: As `read_image`; damaged pixels are no reason.
    """
    with _opened_within(source, max_pixels) as (stream, memory):
        return upright_size(stream, max_pixels, memory)


def scaled_down(rgb: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    """Return a photo in fewer pixels: bilinear, a half at a time, so that every pixel counts.

    Averaging what lies under each pixel takes six times as long, and no more faces are found in it
    (docs/research/experiments.md).

    Args:
        rgb: uint8 (H, W, 3).
        size_wh: Width and height wanted, of at least a pixel and not above the photo's.

    Returns:
        uint8 (h, w, 3).
    """
    if min(size_wh) < 1:
        raise ValueError(f"expected a size of at least 1 x 1, got {size_wh}")
    while (present_wh := rgb.shape[1::-1]) != size_wh:
        step_wh = [
            max(wanted, (present + 1) // 2) for wanted, present in zip(size_wh, present_wh, strict=True)
        ]
        rgb = np.asarray(cv2.resize(rgb, step_wh, interpolation=cv2.INTER_LINEAR), np.uint8)
    return rgb


def write_image(path: str | os.PathLike[str], rgb: UInt8Array) -> None:
    """Write RGB uint8 (H, W, 3) in the format of the suffix: .jpg, .png, .webp, .bmp or .tif.

    The file appears whole or not at all. JPEG and WebP are written at quality 95.

    Raises:
        UsageError: The suffix is of no format that is written.
        OutputError: The file can't be written; the message begins with its name.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITE_OPTIONS:
        raise UsageError(f"{printable(path)}: can't write this format; use one of {' '.join(_WRITE_OPTIONS)}")
    image_format, options = _WRITE_OPTIONS[target.suffix.lower()]
    encoded = BytesIO()
    try:
        Image.fromarray(rgb).save(encoded, image_format, exif=_made_here(), **options)
        atomic_write_bytes(target, encoded.getvalue())
    except ValueError as error:  # an encoder's limits
        raise OutputError(f"{printable(path)}: can't be written ({error}); use .png") from error
    except OSError as error:
        reason = error.strerror or str(error)
        message = (
            f"{printable(path)}: can't be written ({reason}); choose a folder that exists and is writable"
        )
        raise OutputError(message) from error


def _made_here() -> Image.Exif:
    """Return the EXIF block by which pictures of facepipe are recognised."""
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = PICTURE_SOFTWARE
    return exif


# Opening, and naming failures


def printable(source: PhotoSource) -> str:
    """Return how a message names a photo: parts of its path that are not valid Unicode are escaped."""
    if isinstance(source, bytes):
        return "photo from memory"
    return text_of(source)


@contextmanager
def _opened(source: PhotoSource, name: str) -> Iterator[BufferedReader | BytesIO]:
    with BytesIO(source) if isinstance(source, bytes) else _opened_file(source, name) as stream:
        if not stream.read(1):
            raise PhotoError(f"{name}: the file is empty; copy it again from where it came")
        stream.seek(0)
        yield stream


def _opened_file(path: str | os.PathLike[str], name: str) -> BufferedReader | BytesIO:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise PhotoError(f"{name}: this is a folder; name a photo in it")
    if not stat.S_ISREG(mode):  # reading a pipe could wait for ever
        raise PhotoError(f"{name}: not an ordinary file; save the photo to disk first")
    return open(path, "rb")  # by ourselves, not by a decoder: any file name works everywhere


@contextmanager
def _failures_named(name: str) -> Iterator[None]:
    try:
        yield
    except FacepipeError:
        raise
    except Exception as error:  # decoders raise nearly every class of error on damaged files
        raise PhotoError(f"{name}: {_cure(error)}") from error


def _cure(error: Exception) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "no such file; check the path"
        case PermissionError():
            return "no permission to read it; change its permissions or copy it to a folder of yours"
        case UnidentifiedImageError():
            return (
                "not a photo in a known format, or damaged at its start; give a JPEG, PNG, WebP, BMP, "
                "TIFF, GIF, AVIF or HEIC file"
            )
        case MemoryError():
            return "not enough memory to decode it; give a smaller copy"
        case OSError(errno=int()):
            return f"can't be read ({error.strerror}); copy it to another place"
        case _:
            reason = str(error).strip() or type(error).__name__
            return f"the photo is damaged or cut off ({reason}); copy or export it again"
