"""Faces drawn into a photo: boxes, landmarks and names that can be read at any size."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from facepipe.faces import Faces, FloatArray, Match, MatchStatus, UInt8Array

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_KNOWN_RGB = (0, 214, 90)
_UNSURE_RGB = (255, 230, 80)
_UNKNOWN_RGB = (255, 160, 0)
_NOT_ASKED_RGB = (200, 200, 200)
_RGB = {
    MatchStatus.NAMED: _KNOWN_RGB,
    MatchStatus.UNSURE: _UNSURE_RGB,
    MatchStatus.UNKNOWN: _UNKNOWN_RGB,
}
_INK_RGB = (0, 0, 0)

_TEXT_OF_FACE = 0.22  # letter height as a share of the face's size
_TEXT_OF_PHOTO = (0.014, 0.034)  # and its bounds as shares of the photo's middle side
_MIN_TEXT_PX = 11
_MAX_LETTERS = 24

# Pillow's own font has ASCII only. Of these, the first on the system that has every letter is used.
_SYSTEM_FONTS = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "segoeui.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
)
_NO_CHARACTER = "\U0010ffff"


def draw_faces(image: UInt8Array, faces: Faces) -> UInt8Array:
    """An annotated copy of a photo.

    Each face gets its box, its landmarks and a label: green with the name where a gallery knows it, yellow
    with a question mark where it is unsure, orange where it knows nobody, gray with the detector's score
    where no gallery was asked. Numbers after names are Euclidean distances. Lines and letters grow with photo
    and face. Labels stay inside the photo, are shortened where they don't fit, and keep off each other where
    there is room.

    Names are written in any script that a common font on this system has; accents that no font has are left
    off, other letters show as boxes. Names longer than 24 letters are shortened.

    Args:
        image: RGB uint8 (H, W, 3); not changed.
        faces: What to draw, in pixels of the photo.

    Returns:
        RGB uint8 (H, W, 3).
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    styles = [_style(image, faces, row) for row in range(len(faces))]
    for style, box, points in zip(styles, faces.boxes_xyxy, faces.landmarks, strict=True):
        _draw_outline(pen, style, box, points)
    taken = [_pixels(box) for box in faces.boxes_xyxy]
    for style, box in zip(styles, faces.boxes_xyxy, strict=True):
        _draw_label(pen, canvas.size, style, box, taken)
    return np.array(canvas, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class _Style:
    """How one face is drawn; sizes in pixels."""

    name: str
    number: str
    rgb: tuple[int, int, int]
    text_px: int

    @property
    def line_px(self) -> int:
        return max(1, round(self.text_px / 8))


def _style(image: UInt8Array, faces: Faces, row: int) -> _Style:
    middle_side = (image.shape[0] * image.shape[1]) ** 0.5
    least, most = (share * middle_side for share in _TEXT_OF_PHOTO)
    text_px = round(max(_MIN_TEXT_PX, min(most, max(least, _TEXT_OF_FACE * float(faces.sizes_px[row])))))
    if faces.matches is None:
        return _Style("", f"{faces.scores[row]:.2f}", _NOT_ASKED_RGB, text_px)
    match = faces.matches[row]
    number = "" if match.distance_l2 is None else f"{match.distance_l2:.2f}"
    return _Style(_label(match), number, _RGB[match.status], text_px)


def _label(match: Match) -> str:
    """The label without what can't be printed, and shortened where it is long."""
    letters = "".join(letter if letter.isprintable() else " " for letter in match.label)
    mark = "?" if match.status is MatchStatus.UNSURE else ""
    return letters if len(letters) <= _MAX_LETTERS else f"{letters[: _MAX_LETTERS - 3]}...{mark}"


def _draw_outline(pen: ImageDraw.ImageDraw, style: _Style, box: FloatArray, points: FloatArray) -> None:
    left, top, right, bottom = (float(edge) for edge in box)
    pen.rectangle((left, top, right, bottom), outline=style.rgb, width=style.line_px)
    radius = style.line_px
    for x, y in points.tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=style.rgb, outline=_INK_RGB)


def _draw_label(
    pen: ImageDraw.ImageDraw, size_wh: tuple[int, int], style: _Style, box: FloatArray, taken: list[Rectangle]
) -> None:
    padding = style.line_px + 1
    text, font = _fitted(style, size_wh[0] - 2 * padding)
    if not text:
        return
    _, top, right, bottom = font.getbbox(text)
    width, height = int(right) + 2 * padding, round(1.2 * style.text_px) + 2 * padding
    place = _place(box, (width, height), size_wh, taken)
    taken.append(place)
    pen.rectangle(place, fill=style.rgb)
    middle = place[1] + height / 2 - (top + bottom) / 2
    pen.text((place[0] + padding, middle), text, fill=_INK_RGB, font=font)


def _place(
    box: FloatArray, label_wh: tuple[int, int], size_wh: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Above the face or below it, flush left or right: the first free of these, moved into the photo."""
    left, top, right, bottom = _pixels(box)
    width, height = label_wh
    columns = [max(0, min(x, size_wh[0] - width)) for x in (left, right + 1 - width)]
    rows = [y for y in (top - height, bottom + 1) if 0 <= y <= size_wh[1] - height]
    rows = rows or [max(0, min(top, size_wh[1] - height))]
    places = [(x, y, x + width - 1, y + height - 1) for y in rows for x in columns]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _pixels(box: FloatArray) -> Rectangle:
    left, top, right, bottom = (round(float(edge)) for edge in box)
    return left, top, right, bottom


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _fitted(style: _Style, width_px: int) -> tuple[str, Font]:
    """The label, its name shortened to a width, and its font; an empty label where nothing fits."""
    name, font = style.name, _font_with(style.name, style.text_px)
    if font is None:
        name, font = _without_accents(name), ImageFont.load_default(style.text_px)
    shortened = (name, *(f"{name[:n]}..." for n in range(len(name) - 1, 0, -1)), "")
    labels = (f"{start} {style.number}".strip() for start in shortened)
    return next((label for label in labels if font.getlength(label) <= width_px), ""), font


def _font_with(text: str, text_px: int) -> Font | None:
    if text.isascii():
        return ImageFont.load_default(text_px)
    fonts = (font for name in _SYSTEM_FONTS if (font := _system_font(name, text_px)) is not None)
    return next((font for font in fonts if _has_letters(font, text)), None)


@lru_cache(maxsize=64)
def _system_font(name: str, text_px: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, text_px)
    except OSError:
        return None


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    missing = bytes(font.getmask(_NO_CHARACTER))
    return all(bytes(font.getmask(letter)) != missing for letter in set(text) if not letter.isspace())


def _without_accents(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
