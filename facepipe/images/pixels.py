"""Pillow's pictures, of any mode, as upright RGB arrays; in strips, to keep no second picture in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from facepipe.core.faces import UInt8Array
from facepipe.images.tiff import eight_bit, full_scale

_EXIF_ORIENTATION, _EXIF_DETAILS, _EXIF_TAKEN_AT, _EXIF_CHANGED_AT = 0x0112, 0x8769, 0x9003, 0x0132
_EXIF_TIME = "%Y:%m:%d %H:%M:%S"
_UPRIGHT: dict[int, Callable[[UInt8Array], npt.NDArray[np.generic]]] = {
    2: lambda rgb: cv2.flip(rgb, 1),
    3: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_180),
    4: lambda rgb: cv2.flip(rgb, 0),
    5: lambda rgb: cv2.transpose(rgb),
    6: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_CLOCKWISE),
    7: lambda rgb: rgb[::-1, ::-1].swapaxes(0, 1),  # rare: slower, but without a third picture in memory
    8: lambda rgb: cv2.rotate(rgb, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_FIRST_ON_ITS_SIDE = 5  # EXIF orientations from here on swap width and height
_STRIP_PIXELS = 1 << 20


def orientation_of(photo: Image.Image) -> int:
    """EXIF orientation, 1..8 and whatever else is stored there; 1 where there is none."""
    try:
        value = photo.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata round good pixels: any class of error, and no reason to refuse
        return 1
    return value if isinstance(value, int) else 1


def taken_at(photo: Image.Image) -> str | None:
    """When a photo was taken, by EXIF: ISO 8601 by the camera's clock, without a zone; None: not known."""
    try:
        exif = photo.getexif()
        text = exif.get_ifd(_EXIF_DETAILS).get(_EXIF_TAKEN_AT) or exif.get(_EXIF_CHANGED_AT)
        return datetime.strptime(str(text).strip("\0 "), _EXIF_TIME).isoformat()
    except MemoryError:
        raise
    except Exception:  # as in `orientation_of`
        return None


def is_orientation(value: int) -> bool:
    """Return whether a value turns a picture."""
    return value in _UPRIGHT


def is_on_its_side(orientation: int) -> bool:
    """Return whether turning a picture upright swaps its width and height."""
    return is_orientation(orientation) and orientation >= _FIRST_ON_ITS_SIDE


def upright(rgb: UInt8Array, orientation: int) -> UInt8Array:
    """RGB uint8 (H, W, 3), turned as the EXIF orientation wants it."""
    if not is_orientation(orientation):
        return rgb
    return np.ascontiguousarray(_UPRIGHT[orientation](rgb), dtype=np.uint8)


def rgb_of(photo: Image.Image) -> UInt8Array:
    """Convert a picture of any mode to RGB uint8 (H, W, 3), as stored; what is transparent over white."""
    if photo.mode in ("I", "F") or photo.mode.startswith("I;16"):
        scale = full_scale(np.asarray(strip) for _, strip in _strips(photo))
        return _converted(photo, lambda strip: _gray_rgb(eight_bit(np.asarray(strip), scale)))
    if photo.has_transparency_data:
        return _converted(photo, lambda strip: np.asarray(_over_white(strip)))
    return _converted(photo, lambda strip: np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB")))


def _converted(photo: Image.Image, convert: Callable[[Image.Image], npt.NDArray[np.generic]]) -> UInt8Array:
    """A picture converted strip by strip. Faster, too: in one piece Pillow's bytes take twice as long."""
    rgb = np.empty((photo.height, photo.width, 3), np.uint8)
    for rows, strip in _strips(photo):
        rgb[rows] = convert(strip)
    return rgb


def _strips(photo: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    rows = max(1, _STRIP_PIXELS // photo.width)
    for top in range(0, photo.height, rows):
        bottom = min(top + rows, photo.height)
        yield slice(top, bottom), photo.crop((0, top, photo.width, bottom))


def _gray_rgb(gray: UInt8Array) -> npt.NDArray[np.generic]:
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def _over_white(photo: Image.Image) -> Image.Image:
    layer = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
