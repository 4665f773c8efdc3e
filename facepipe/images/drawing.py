"""Faces drawn into a photo: boxes, landmarks and names that can be read at any size."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from facepipe.core.faces import Faces, FloatArray, Match, MatchStatus, UInt8Array

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom
IntArray = npt.NDArray[np.int64]
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
_TEXT_OF_PHOTO = (0.014, 0.034)  # and its bounds as shares of the photo's middle side,
_MAX_OF_FACE = 0.5  # of which the lower one gives way where the face is smaller than so few letters
_MIN_TEXT_PX = 11
_CROWDED_TEXT_PX = 8  # the smallest letters, only where larger ones would cover faces
_SMALLER = 0.8
_LINE_OF_FACE = 0.05  # thickest line as a share of the face's size
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
    """Return an annotated copy of a photo.

    Each face gets its box, its landmarks and a label: green with the name where a gallery knows it, yellow
    with a question mark where it is unsure, orange where it knows nobody, gray with the detector's score
    where no gallery was asked. Numbers after names are Euclidean distances. Lines and letters grow with photo
    and face. Labels stay inside the photo and keep off all faces and each other: above, below or beside their
    face, in smaller letters or shortened where that is what fits. Where nothing does, as little as can be of
    the faces is covered.

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
    boxes = np.array([_pixels(box) for box in faces.boxes_xyxy], np.int64).reshape(-1, 4)
    for row, (label, place) in _arranged(styles, boxes, canvas.size).items():
        _draw_label(pen, styles[row], label, place)
    return np.array(canvas, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class _Style:
    """How one face is drawn; sizes in pixels."""

    name: str
    number: str
    rgb: tuple[int, int, int]
    text_px: int
    line_px: int


def _style(image: UInt8Array, faces: Faces, row: int) -> _Style:
    middle_side = (image.shape[0] * image.shape[1]) ** 0.5
    min_px, max_px = (share * middle_side for share in _TEXT_OF_PHOTO)
    size_px = float(faces.sizes_px[row])
    min_px = min(min_px, _MAX_OF_FACE * size_px)
    text_px = round(max(_MIN_TEXT_PX, min(max_px, max(min_px, _TEXT_OF_FACE * size_px))))
    line_px = max(1, round(min(text_px / 8, _LINE_OF_FACE * size_px)))
    if faces.matches is None:
        return _Style("", f"{faces.scores[row]:.2f}", _NOT_ASKED_RGB, text_px, line_px)
    match = faces.matches[row]
    number = "" if match.distance_l2 is None else f"{match.distance_l2:.2f}"
    return _Style(_label(match), number, _RGB[match.status], text_px, line_px)


def _label(match: Match) -> str:
    """Return the label without what can't be printed, and shortened where it is long."""
    letters = "".join(letter if letter.isprintable() else " " for letter in match.label)
    mark = "?" if match.status is MatchStatus.UNSURE else ""
    return letters if len(letters) <= _MAX_LETTERS else f"{letters[: _MAX_LETTERS - 3]}...{mark}"


def _draw_outline(pen: ImageDraw.ImageDraw, style: _Style, box: FloatArray, points: FloatArray) -> None:
    left, top, right, bottom = (float(edge) for edge in box)
    pen.rectangle((left, top, right, bottom), outline=style.rgb, width=style.line_px)
    radius = style.line_px
    for x, y in points.tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=style.rgb, outline=_INK_RGB)


@dataclass(frozen=True, slots=True)
class _Label:
    """Text in a font, with the margin around it; sizes in pixels."""

    text: str
    font: Font
    text_px: int
    padding: int

    @property
    def size_wh(self) -> tuple[int, int]:
        right = self.font.getbbox(self.text)[2]
        return int(right) + 2 * self.padding, round(1.2 * self.text_px) + 2 * self.padding


Placed = tuple[_Label, Rectangle]


def _draw_label(pen: ImageDraw.ImageDraw, style: _Style, label: _Label, place: Rectangle) -> None:
    pen.rectangle(place, fill=style.rgb)
    _, top, _, bottom = label.font.getbbox(label.text)
    middle = place[1] + label.size_wh[1] / 2 - (top + bottom) / 2
    pen.text((place[0] + label.padding, middle), label.text, fill=_INK_RGB, font=label.font)


def _arranged(styles: Sequence[_Style], boxes: IntArray, size_wh: tuple[int, int]) -> dict[int, Placed]:
    """By face, its label and where it goes.

    Where labels of any width don't all find room, each is kept to the room beside the next face in its row.
    """
    wide = _Arrangement(boxes, size_wh)
    wide.add_all(styles, np.full(len(boxes), size_wh[0]))
    if not any(wide.covered):
        return wide.placed
    narrow = _Arrangement(boxes, size_wh)
    narrow.add_all(styles, _room_in_row(boxes, size_wh[0]))
    return min(wide, narrow, key=lambda arrangement: arrangement.covered).placed


def _room_in_row(boxes: IntArray, photo_px: int) -> IntArray:
    """int64 (n,): from each face's middle to the middle of the next one that stands beside it, in pixels."""
    centers = (boxes[:, 0] + boxes[:, 2]) // 2
    room = np.full(len(boxes), photo_px)
    for row, box in enumerate(boxes):
        beside = (boxes[:, 1] <= box[3]) & (boxes[:, 3] >= box[1])
        beside[row] = False
        apart = np.abs(centers[beside] - centers[row])
        room[row] = max(int(apart.min(initial=photo_px)), int(box[2] - box[0] + 1))
    return room


class _Arrangement:
    """Labels about faces, one after the other.

    Args:
        boxes: int64 (n, 4), of the faces.
        size_wh: Of the photo.

    Attributes:
        placed: By face, its label and where it is.
        covered: Pixels of other faces, of labels, and of their own faces that labels cover.
    """

    def __init__(self, boxes: IntArray, size_wh: tuple[int, int]) -> None:
        self._boxes, self._size_wh = boxes, size_wh
        self._labels = np.zeros((0, 4), np.int64)
        self.placed: dict[int, Placed] = {}
        self.covered = (0, 0, 0)

    def add_all(self, styles: Sequence[_Style], widths_px: IntArray) -> None:
        """Find a place for the label of every face, no wider than asked for."""
        for face, (style, width_px) in enumerate(zip(styles, widths_px, strict=True)):
            found = self._find(face, _labels(style, int(width_px)))
            if found is not None:
                cost, (_, place) = found[0], found[1]
                self.placed[face] = found[1]
                self.covered = tuple(map(sum, zip(self.covered, cost, strict=True)))  # type: ignore[assignment]
                self._labels = np.vstack([self._labels, np.array(place, np.int64)])

    def _find(self, face: int, labels: Iterable[_Label]) -> tuple[tuple[int, int, int], Placed] | None:
        """The first label and place that cover nothing, else those that cover least; None: no label."""
        best = None
        for label in labels:
            for place in _places(self._boxes[face], label.size_wh, self._size_wh):
                found = self._cost(face, place), (label, place)
                if not any(found[0]):
                    return found
                if best is None or found[0] < best[0]:
                    best = found
        return best

    def _cost(self, face: int, place: Rectangle) -> tuple[int, int, int]:
        faces = _common_px(self._boxes, place)
        own = int(faces[face])
        return int(faces.sum()) - own, int(_common_px(self._labels, place).sum()), own


def _labels(style: _Style, width_px: int) -> Iterator[_Label]:
    """Yield the whole label, then in smaller letters, without its number, and shortened to a width."""
    sizes = [style.text_px]
    while sizes[-1] > _CROWDED_TEXT_PX:
        sizes.append(max(_CROWDED_TEXT_PX, round(sizes[-1] * _SMALLER)))
    for number in dict.fromkeys((style.number, "" if style.name else style.number)):
        for text_px in sizes:
            padding = max(1, round(text_px / 6))
            text, font, is_whole = _fitted(style.name, number, text_px, width_px - 2 * padding)
            if text and (is_whole or text_px == sizes[-1]):
                yield _Label(text, font, text_px, padding)


def _places(box: IntArray, label_wh: tuple[int, int], size_wh: tuple[int, int]) -> list[Rectangle]:
    """Above the face, below it, beside it and, last, over its own edges; all moved into the photo."""
    left, top, right, bottom = (int(edge) for edge in box)
    width, height = label_wh
    columns = [max(0, min(x, size_wh[0] - width)) for x in (left, right + 1 - width)]
    rows = [max(0, min(y, size_wh[1] - height)) for y in (top, bottom + 1 - height)]
    corners = [(x, y) for y in (top - height, bottom + 1) if 0 <= y <= size_wh[1] - height for x in columns]
    corners += [(x, y) for x in (right + 1, left - width) if 0 <= x <= size_wh[0] - width for y in rows]
    corners += [(x, y) for y in rows for x in columns]
    return [(x, y, x + width - 1, y + height - 1) for x, y in corners]


def _common_px(boxes: IntArray, place: Rectangle) -> IntArray:
    """int64 (n,): how many pixels a place shares with boxes (n, 4); all edges count as inside."""
    low = np.maximum(boxes[:, :2], place[:2])
    high = np.minimum(boxes[:, 2:], place[2:])
    shared: IntArray = np.prod(np.clip(high - low + 1, 0, None), axis=1)
    return shared


def _pixels(box: FloatArray) -> Rectangle:
    left, top, right, bottom = (round(float(edge)) for edge in box)
    return left, top, right, bottom


def _fitted(name: str, number: str, text_px: int, width_px: int) -> tuple[str, Font, bool]:
    """The label with its name shortened to a width, its font, and whether it is whole; empty: none fits."""
    font = _font_with(name, text_px)
    if font is None:
        name, font = _without_accents(name), _own_font(text_px)
    shortened = (name, *(f"{name[:n]}..." for n in range(len(name) - 1, 0, -1)), "")
    labels = [f"{start} {number}".strip() for start in shortened]
    text = next((label for label in labels if font.getlength(label) <= width_px), "")
    return text, font, text == labels[0]


def _font_with(text: str, text_px: int) -> Font | None:
    if text.isascii():
        return _own_font(text_px)
    fonts = (font for name in _SYSTEM_FONTS if (font := _system_font(name, text_px)) is not None)
    return next((font for font in fonts if _has_letters(font, text)), None)


@lru_cache(maxsize=64)
def _own_font(text_px: int) -> Font:
    return ImageFont.load_default(text_px)


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
