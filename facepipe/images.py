"""Photos in and out: any common file becomes upright RGB, and every failure names the file and the cure."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from facepipe.errors import FacepipeError, OutputError, PhotoError, UsageError
from facepipe.faces import UInt8Array
from facepipe.files import atomic_write_bytes
from facepipe.products import PICTURE_SOFTWARE
from facepipe.salvage import is_open_ended, salvaged
from facepipe.tiff import eight_bit, is_misread, is_tiff, read_tiff

DEFAULT_MAX_PIXELS = 200_000_000
"""Largest photo read unless asked otherwise, in pixels: the sensors of phones today end there."""

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
PHOTO_SUFFIXES = frozenset(
    (*_JPEG_SUFFIXES, ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", *_HEIF_SUFFIXES)
)
"""Suffixes, in lower case, of the files taken from folders and globs."""

PhotoSource = str | os.PathLike[str] | bytes
Result = TypeVar("Result")

# Only what is named here is ever decoded: Pillow's other plugins (EPS runs a program) stay out of reach.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
_WRITE_OPTIONS: dict[str, tuple[str, dict[str, int]]] = {
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_EXIF_ORIENTATION = 0x0112
_EXIF_SOFTWARE = 0x0131
_UPRIGHT: dict[int, Callable[[UInt8Array], npt.NDArray[np.generic]]] = {
    2: lambda rgb: cv2.flip(rgb, 1),
    3: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_180),
    4: lambda rgb: cv2.flip(rgb, 0),
    5: lambda rgb: cv2.transpose(rgb),
    6: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_CLOCKWISE),
    7: lambda rgb: cv2.rotate(cv2.transpose(rgb), cv2.ROTATE_180),
    8: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_FIRST_ON_ITS_SIDE = 5  # EXIF orientations from here on swap width and height
_STRIP_PIXELS = 1 << 20
_PILLOW_GLOBALS = threading.RLock()


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
        max_pixels: Photos of more pixels are refused from their header, before anything is decoded.

    Returns:
        RGB uint8 (H, W, 3), contiguous and writable, origin at the top-left corner of the upright photo.

    Raises:
        PhotoError: The photo can't be read; the message begins with the file's name.
    """
    return read_reduced(source, None, max_pixels=max_pixels).rgb


@dataclass(frozen=True, slots=True)
class ReducedPhoto:
    """A photo that may have been decoded at a fraction of its size.

    Attributes:
        rgb: RGB uint8 (h, w, 3), upright.
        full_size_wh: Width and height of the whole upright photo, in pixels.
    """

    rgb: UInt8Array
    full_size_wh: tuple[int, int]

    @property
    def reduction(self) -> float:
        """Pixels of the whole photo per pixel of `rgb`, along its longer side: 1 (not reduced) or more."""
        height, width = self.rgb.shape[:2]
        return float(max(self.full_size_wh) / max(height, width))


def read_reduced(
    source: PhotoSource,
    needed_scale: Callable[[tuple[int, int]], float] | None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> ReducedPhoto:
    """`read_image` for whoever needs fewer pixels: of a width and height, `needed_scale` (up to 1) a side.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough: its blocks are
    scaled before they become pixels, which takes a fraction of the time and memory. All else comes whole.

    Raises:
        PhotoError: As `read_image`.
    """
    name = printable(source)
    with _failures_named(name), _opened(source, name) as stream:
        return _read_whole(
            stream, name, max_pixels, lambda file: _decode(file, name, needed_scale, max_pixels)
        )


def from_pillow(photo: Image.Image) -> UInt8Array:
    """A Pillow image as `read_image` gives its file: upright RGB uint8 (H, W, 3), contiguous and writable."""
    return _upright(_rgb(photo), _orientation(photo))


def photo_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a photo file's bytes, 64 hex digits: the same photo under another name has the same.

    Raises:
        PhotoError: The file can't be read.
    """
    name = printable(path)
    with _failures_named(name), _opened(path, name) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_orientation(source: PhotoSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """EXIF orientation of a photo, 1..8: how `read_image` turns the stored picture upright.

    1, no turn, where the photo has none. That of a HEIC photo is in its EXIF data too, though the decoder
    turns its pixels.

    Raises:
        PhotoError: As `read_image`; damaged pixels are no reason.
    """
    name = printable(source)
    with _failures_named(name), _opened(source, name) as stream:
        orientation = _read_whole(
            stream, name, max_pixels, lambda file: _stored_orientation(file, name, max_pixels)
        )
    return orientation if orientation in _UPRIGHT else 1


def scaled_down(rgb: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    """A photo in fewer pixels: bilinear, a half at a time, so that every pixel counts.

    Averaging what lies under each pixel takes six times as long, and no more faces are found in it
    (docs/experiments.md).

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
    """The EXIF block by which a picture is known again as one of facepipe's."""
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = PICTURE_SOFTWARE
    return exif


# Opening, and naming failures


def printable(source: PhotoSource) -> str:
    """How a message names a photo: parts of its path that are not valid Unicode are escaped."""
    if isinstance(source, bytes):
        return "photo from memory"
    return os.fspath(source).encode("utf-8", "backslashreplace").decode("utf-8")


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


# Decoding


def _read_whole(
    stream: BufferedReader | BytesIO,
    name: str,
    max_pixels: int,
    read: Callable[[BufferedReader | BytesIO], Result],
) -> Result:
    """Read a photo, or what is salvaged of one that has all its pixels but a damaged end or extras."""
    try:
        if is_open_ended(stream):
            raise OSError("it has no end")
        return read(stream)
    except (PhotoError, MemoryError):
        raise
    except Exception:
        whole = salvaged(stream, lambda file: _decode(BytesIO(file), name, None, max_pixels).rgb)
        if whole is None:
            raise
    return read(BytesIO(whole))


def _stored_orientation(stream: BufferedReader | BytesIO, name: str, max_pixels: int) -> int:
    if _is_heif(stream):
        return _heif_orientation(stream, name)
    photo = _open_photo(stream, name, max_pixels)
    if photo is None:
        return read_tiff(stream, name, max_pixels, _too_large(name, max_pixels))[1]
    with _own_rules(max_pixels):
        return _orientation(photo)


def _decode(
    stream: BufferedReader | BytesIO,
    name: str,
    needed_scale: Callable[[tuple[int, int]], float] | None,
    max_pixels: int,
) -> ReducedPhoto:
    photo = _open_photo(stream, name, max_pixels)
    if photo is None:
        rgb, orientation = read_tiff(stream, name, max_pixels, _too_large(name, max_pixels))
        return _reduced(rgb, orientation, (rgb.shape[1], rgb.shape[0]))
    size_wh = photo.size
    if needed_scale is not None and (scale := needed_scale(size_wh)) < 1:
        photo.draft(photo.mode, (math.ceil(size_wh[0] * scale), math.ceil(size_wh[1] * scale)))
    if photo.format == "TIFF":
        with _own_rules(max_pixels):  # Pillow checks size and warns again while it loads this one format
            photo.load()
    photo.load()
    rgb = _rgb(photo)
    with _own_rules(max_pixels):
        orientation = _orientation(photo)
    return _reduced(rgb, orientation, size_wh)


def _reduced(rgb: UInt8Array, orientation: int, size_wh: tuple[int, int]) -> ReducedPhoto:
    on_its_side = orientation in _UPRIGHT and orientation >= _FIRST_ON_ITS_SIDE
    return ReducedPhoto(_upright(rgb, orientation), size_wh[::-1] if on_its_side else size_wh)


def _upright(rgb: UInt8Array, orientation: int) -> UInt8Array:
    if orientation not in _UPRIGHT:
        return rgb
    return np.ascontiguousarray(_UPRIGHT[orientation](rgb), dtype=np.uint8)


def _too_large(name: str, max_pixels: int) -> str:
    return (
        f"{name}: more than {max_pixels:,} pixels; shrink it or, if you trust it, "
        "raise the limit (max_pixels, --max-megapixels)"
    )


def _open_photo(stream: BufferedReader | BytesIO, name: str, max_pixels: int) -> Image.Image | None:
    """The photo, its header read; None for a TIFF that Pillow doesn't read, or not rightly."""
    try:
        with _own_rules(max_pixels):
            photo: Image.Image = Image.open(stream, formats=_PILLOW_FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError(_too_large(name, max_pixels)) from error
    except UnidentifiedImageError:
        if is_tiff(stream):
            return None
        if not _is_heif(stream):
            raise
        return _open_heif(stream, name, max_pixels)
    if photo.width * photo.height > max_pixels:
        raise PhotoError(_too_large(name, max_pixels))
    return None if isinstance(photo, TiffImageFile) and is_misread(photo) else photo


def _is_heif(stream: BufferedReader | BytesIO) -> bool:
    stream.seek(0)
    header = stream.read(12)
    stream.seek(0)
    return header[4:8] == b"ftyp" and header[8:12] in _HEIF_BRANDS


def _open_heif(stream: BufferedReader | BytesIO, name: str, max_pixels: int) -> Image.Image:
    heif = _heif_file(stream, name)
    if heif.size[0] * heif.size[1] > max_pixels:
        raise PhotoError(_too_large(name, max_pixels))
    photo: Image.Image = heif.to_pillow()
    return photo


def _heif_orientation(stream: BufferedReader | BytesIO, name: str) -> int:
    header = Image.new("L", (1, 1))
    header.info["exif"] = _heif_file(stream, name).info.get("exif") or b""
    return _orientation(header)


def _heif_file(stream: BufferedReader | BytesIO, name: str) -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        from facepipe.installation import extra_command

        raise PhotoError(f"{name}: to read HEIC photos, {extra_command('heic')}") from error
    return pillow_heif.open_heif(stream)


@contextmanager
def _own_rules(max_pixels: int) -> Iterator[None]:
    """Our size limit in place of Pillow's, and its warnings off, while a header is read.

    Both are globals of the process, so one thread at a time has them, for as short as can be.
    """
    with _PILLOW_GLOBALS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow refuses what is above twice this number
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = theirs


def _orientation(photo: Image.Image) -> int:
    try:
        value = photo.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata round good pixels: any class of error, and no reason to refuse
        return 1
    return value if isinstance(value, int) else 1


def _rgb(photo: Image.Image) -> UInt8Array:
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        return cv2.cvtColor(eight_bit(np.asarray(photo)), cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)
    if photo.has_transparency_data:
        layer = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return _pixels(photo if photo.mode == "RGB" else photo.convert("RGB"))


def _pixels(photo: Image.Image) -> UInt8Array:
    """An RGB photo's pixels. In strips: Pillow hands over bytes, which take twice as long in one piece."""
    rgb = np.empty((photo.height, photo.width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // photo.width)
    for top in range(0, photo.height, rows):
        bottom = min(top + rows, photo.height)
        rgb[top:bottom] = np.asarray(photo.crop((0, top, photo.width, bottom)))
    return rgb
