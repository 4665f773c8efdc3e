"""From the bytes of a photo file to upright pixels: formats, limits, and what is salvaged."""

from __future__ import annotations

import math
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from facepipe.core.errors import FacepipeError, PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.decoded_size import decoding_bytes, heif_bytes, opening_bytes, require_little_work
from facepipe.images.decoding_memory import PhotoMemory
from facepipe.images.pixels import is_on_its_side, orientation_of, rgb_of, taken_at, upright
from facepipe.images.plain_jpeg import decode_plain_jpeg
from facepipe.images.salvage import MOST_FILE_BYTES, is_open_ended, salvaged
from facepipe.images.stored_xmp import xmp_packets
from facepipe.images.tiff import is_misread, is_tiff, read_tiff

Stream = BufferedReader | BytesIO
NeededScale = Callable[[tuple[int, int]], float]
Reserve = Callable[[int], None]
Result = TypeVar("Result")

# Only what is named here is ever decoded: Pillow's other plugins (EPS runs a program) stay out of reach.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_SALVAGE_COPIES, _SALVAGE_PICTURES = 4, 2
_PILLOW_GLOBALS = threading.RLock()


@dataclass(frozen=True, slots=True)
class ReducedPhoto:
    """A photo that may have been decoded at a fraction of its size.

    Attributes:
        rgb: RGB uint8 (h, w, 3), upright.
        full_size_wh: Width and height of the whole upright photo, in pixels.
        taken_at: When it was taken; see `facepipe.images.pixels.taken_at`.
    """

    rgb: UInt8Array
    full_size_wh: tuple[int, int]
    taken_at: str | None = None

    @property
    def reduction(self) -> float:
        """Pixels of the whole photo per pixel of `rgb`, along its longer side: 1 (not reduced) or more."""
        height, width = self.rgb.shape[:2]
        return float(max(self.full_size_wh) / max(height, width))


def decoded(
    stream: Stream, needed_scale: NeededScale | None, max_pixels: int, memory: PhotoMemory
) -> ReducedPhoto:
    """Decode a photo; see `facepipe.images.reading.read_reduced`.

    Raises:
        Exception: Nearly every class, on damaged files.
    """
    return _read_whole(
        stream, max_pixels, memory, lambda file: _decode(file, needed_scale, max_pixels, memory, memory.take)
    )


def stored_orientation(stream: Stream, max_pixels: int, memory: PhotoMemory) -> int:
    """EXIF orientation of a photo, and whatever else is stored there; 1 where there is none.

    Raises:
        Exception: As `decoded`; damaged pixels are no reason.
    """
    return _read_whole(stream, max_pixels, memory, lambda file: _orientation(file, max_pixels, memory))


def upright_size(stream: Stream, max_pixels: int, memory: PhotoMemory) -> tuple[int, int]:
    """Width and height of a photo after EXIF orientation is applied, from its header where that has them.

    Raises:
        Exception: As `decoded`; damaged pixels are no reason.
    """
    return _read_whole(stream, max_pixels, memory, lambda file: _upright_size(file, max_pixels, memory))


def stored_xmp(stream: Stream, max_pixels: int, memory: PhotoMemory) -> list[bytes]:
    """XMP packets of a photo; none of a TIFF that Pillow doesn't read.

    Raises:
        Exception: As `decoded`; damaged pixels are no reason.
    """
    if _is_heif(stream):
        packet = _heif_file(stream, memory.name).info.get("xmp")
        return [packet] if packet else []
    photo = _open_photo(stream, max_pixels, memory.name, memory.take)
    return [] if photo is None else xmp_packets(photo, stream)


def picture_count(stream: Stream, max_pixels: int, memory: PhotoMemory) -> int:
    """Number of pictures in a file: frames, or pages; 0 of a TIFF that Pillow doesn't read.

    A JPEG has one: what follows it are previews and depth maps.

    Raises:
        Exception: As `decoded`; damaged pixels are no reason.
    """
    if _is_heif(stream):
        return len(_heif_file(stream, memory.name))
    photo = _open_photo(stream, max_pixels, memory.name, memory.take)
    if photo is None:
        return 0
    with _own_rules(max_pixels):
        return 1 if photo.format in ("JPEG", "MPO") else int(getattr(photo, "n_frames", 1))


def _read_whole(
    stream: Stream, max_pixels: int, memory: PhotoMemory, read: Callable[[Stream], Result]
) -> Result:
    """Read a photo, or what is salvaged of one that has all its pixels but a damaged end or extras."""
    size = stream.seek(0, os.SEEK_END)
    try:
        if size <= MOST_FILE_BYTES:
            memory.take(size)
            if is_open_ended(stream):
                raise OSError("it has no end")
        return read(stream)
    except (FacepipeError, MemoryError):
        raise
    except Exception as error:
        if _SALVAGE_COPIES * size > min(memory.limit_bytes, MOST_FILE_BYTES):
            raise
        _forget_pixels(error)
        memory.take(_SALVAGE_COPIES * size)

        def reserve(need_bytes: int) -> None:
            memory.take(_SALVAGE_PICTURES * need_bytes + _SALVAGE_COPIES * size)

        whole = salvaged(stream, lambda file: _decode(BytesIO(file), None, max_pixels, memory, reserve).rgb)
        if whole is None:
            raise
    return read(BytesIO(whole))


def _forget_pixels(error: BaseException | None) -> None:
    """Free the pictures that an error's frames hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _orientation(stream: Stream, max_pixels: int, memory: PhotoMemory) -> int:
    if _is_heif(stream):
        return _heif_orientation(stream, memory)
    photo = _open_photo(stream, max_pixels, memory.name, memory.take)
    if photo is None:
        return read_tiff(stream, memory.name, max_pixels, _too_large(memory.name, max_pixels), memory.take)[1]
    with _own_rules(max_pixels):
        return orientation_of(photo)


def _upright_size(stream: Stream, max_pixels: int, memory: PhotoMemory) -> tuple[int, int]:
    if _is_heif(stream):  # whose decoder turns the pixels
        width, height = _heif_file(stream, memory.name).size
        return width, height
    photo = _open_photo(stream, max_pixels, memory.name, memory.take)
    if photo is None:
        too_large = _too_large(memory.name, max_pixels)
        rgb, orientation = read_tiff(stream, memory.name, max_pixels, too_large, memory.take)
        size_wh = rgb.shape[1], rgb.shape[0]
    elif photo.format == "TIFF":  # Pillow turns this one format itself, its size from the start
        size_wh, orientation = photo.size, 1
    else:
        size_wh = photo.size
        with _own_rules(max_pixels):
            orientation = orientation_of(photo)
    return size_wh[::-1] if is_on_its_side(orientation) else size_wh


def _decode(
    stream: Stream,
    needed_scale: NeededScale | None,
    max_pixels: int,
    memory: PhotoMemory,
    reserve: Reserve,
) -> ReducedPhoto:
    name = memory.name
    photo = _open_photo(stream, max_pixels, name, reserve)
    if photo is None:
        rgb, orientation = read_tiff(stream, name, max_pixels, _too_large(name, max_pixels), reserve)
        size_wh, time = (rgb.shape[1], rgb.shape[0]), None
    else:
        size_wh = photo.size
        reduction = 1 if needed_scale is None else _reduce(photo, needed_scale(size_wh))
        reserve(decoding_bytes(photo, stream))
        require_little_work(photo, stream, name)
        plain = decode_plain_jpeg(photo, stream, reduction)
        rgb = _loaded(photo, max_pixels) if plain is None else plain
        del plain
        with _own_rules(max_pixels):
            orientation, time = orientation_of(photo), taken_at(photo)
        del photo  # its pixels make room for those that are turned
    full_size_wh = size_wh[::-1] if is_on_its_side(orientation) else size_wh
    return ReducedPhoto(upright(rgb, orientation), full_size_wh, time)


def _reduce(photo: Image.Image, scale: float) -> int:
    """Have a JPEG decoded at a half, a quarter or an eighth of its size, where that leaves this scale.

    Returns:
        How many times fewer pixels a side it will have; 1: it will be whole.
    """
    if scale >= 1:
        return 1
    width, height = photo.size
    drafted = photo.draft(photo.mode, (math.ceil(width * scale), math.ceil(height * scale)))
    return 1 if drafted is None else round(width / drafted[1][2])


def _loaded(photo: Image.Image, max_pixels: int) -> UInt8Array:
    """Decode by Pillow: RGB uint8 (h, w, 3), as stored."""
    if photo.format == "TIFF":
        with _own_rules(max_pixels):  # Pillow checks size and warns again while it loads this one format
            photo.load()
    photo.load()
    return rgb_of(photo)


def _too_large(name: str, max_pixels: int) -> str:
    return (
        f"{name}: more than {max_pixels:,} pixels; shrink it or, if you trust it, "
        "raise the limit (max_pixels, --max-megapixels)"
    )


def _open_photo(stream: Stream, max_pixels: int, name: str, reserve: Reserve) -> Image.Image | None:
    """Return the photo, its header read; None for a TIFF that Pillow doesn't read, or not rightly."""
    pixels, need_bytes = opening_bytes(stream, max_pixels)
    if pixels > max_pixels:
        raise PhotoError(_too_large(name, max_pixels))
    reserve(need_bytes)
    stream.seek(0)
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
        return _open_heif(stream, name, max_pixels, reserve)
    if photo.width * photo.height > max_pixels:
        raise PhotoError(_too_large(name, max_pixels))
    return None if isinstance(photo, TiffImageFile) and is_misread(photo) else photo


def _is_heif(stream: Stream) -> bool:
    stream.seek(0)
    header = stream.read(12)
    stream.seek(0)
    return header[4:8] == b"ftyp" and header[8:12] in _HEIF_BRANDS


def _open_heif(stream: Stream, name: str, max_pixels: int, reserve: Reserve) -> Image.Image:
    heif = _heif_file(stream, name)
    if heif.size[0] * heif.size[1] > max_pixels:
        raise PhotoError(_too_large(name, max_pixels))
    reserve(heif_bytes(heif, stream))
    photo: Image.Image = heif.to_pillow()
    return photo


def _heif_orientation(stream: Stream, memory: PhotoMemory) -> int:
    header = Image.new("L", (1, 1))
    header.info["exif"] = _heif_file(stream, memory.name).info.get("exif") or b""
    return orientation_of(header)


def _heif_file(stream: Stream, name: str) -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        from facepipe.core.installation import extra_command

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
