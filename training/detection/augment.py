"""Augmentation: a window of the photo with a face, scaled to the input, colour-jittered, mirrored, turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, UInt8Array, mirror_boxes, mirror_landmarks
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.images.reading import scaled_down

PADDING_RGB = (124, 116, 104)
"""ImageNet's mean colour: about zero once preprocessed, as is the padding of the detector when it serves."""

GRAY_RGB = (128, 128, 128)
"""Around letterboxed photos, as in published code."""

_WINDOW_TRIES = 20
_LEVEL_TRIES = 250
"""As published. Each is a draw and a comparison with the boxes."""


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Settings of the augmentation that turns a photo into a training crop.

    Attributes:
        size_px: Side of the square crop that the network sees; a multiple of 32.
        scale_range: Smallest and largest factor from photo pixels to crop pixels, drawn log-uniformly.
        whole_photo_share: Share of crops that show the largest square of the photo, or a square around all
            of it, instead of a window of drawn scale: big faces are seen whole.
        widest_window: Largest side of a window, in longer sides of the photo: the wider, the more padding.
            Far above 2, crops show small photos on an empty ground, as the focus map has to know them.
        crop_levels: Sides of crops as shares of the photo's shorter side, one of which is drawn, in place of
            `scale_range` and `whole_photo_share`: "0.3, 0.45, 0.6, 0.8, 1" are those of published trainers.
            Such a crop holds a whole face, or else is a square around the photo.
        letterbox: Photos that do not fill their crop lie in its centre on gray, as in the setting
            "letterbox640_gray" of `facepipe evaluate detector`, instead of anywhere on ImageNet's mean.
        turn_share: Share of crops that are turned in their plane: landmarks learn to follow tilted heads.
        turn_degrees: Largest turn to either side, drawn evenly.
        colour_share: Share of crops with distorted brightness, contrast, saturation and hue.
        gray_share: Share of crops turned gray.
        min_face_px: Faces with a shorter side below this, in crop pixels, are ignored, not background.
    """

    size_px: int = 320
    scale_range: tuple[float, float] = (0.4, 2.0)
    whole_photo_share: float = 0.25
    widest_window: float = 2.0
    crop_levels: tuple[float, ...] = ()
    letterbox: bool = False
    turn_share: float = 0.0
    turn_degrees: float = 40.0
    colour_share: float = 0.5
    gray_share: float = 0.05
    min_face_px: float = 5.0

    def __post_init__(self) -> None:
        if self.size_px < 32 or self.size_px % 32:
            raise UsageError(f"augment.size_px: expected a multiple of 32, got {self.size_px}")
        low, high = self.scale_range
        if not 0 < low <= high:
            raise UsageError(f"augment.scale_range: expected two positive rising numbers, got {low}, {high}")
        if self.widest_window < 1:
            raise UsageError(f"augment.widest_window: expected a number from 1, got {self.widest_window}")
        if not all(0 < level <= 1 for level in self.crop_levels):
            raise UsageError(f"augment.crop_levels: expected shares up to 1, got {self.crop_levels}")
        if not 0 <= self.turn_degrees <= 90:
            raise UsageError(f"augment.turn_degrees: expected 0..90, got {self.turn_degrees}")
        for name in ("whole_photo_share", "turn_share", "colour_share", "gray_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augment.{name}: expected 0..1, got {getattr(self, name)}")
        if self.min_face_px < 0:
            raise UsageError(f"augment.min_face_px: expected a number from 0, got {self.min_face_px}")

    @property
    def padding_rgb(self) -> tuple[int, int, int]:
        """Colour around a photo that does not fill its crop."""
        return GRAY_RGB if self.letterbox else PADDING_RGB


@dataclass(frozen=True, slots=True)
class TrainingCrop:
    """One augmented crop.

    Attributes:
        pixels: RGB uint8 (size, size, 3).
        boxes_xyxy: float32 (n, 4) crop pixels, inside the crop.
        landmarks: float32 (n, 5, 2); NaN where unknown; points may lie outside.
        ignored_xyxy: float32 (m, 4): faces that are neither targets nor background.
    """

    pixels: UInt8Array
    boxes_xyxy: FloatArray
    landmarks: FloatArray
    ignored_xyxy: FloatArray


class Window(NamedTuple):
    """A part of the photo, in its pixels; it may reach over the photo's edge."""

    left: int
    top: int
    width: int
    height: int


def augment(
    pixels: UInt8Array, photo: LabelledPhoto, config: AugmentConfig, rng: np.random.Generator
) -> TrainingCrop:
    """Draw one crop, its faces in crop pixels; the same `rng` state gives the same crop."""
    size_px = config.size_px
    choose = _choose_level if config.crop_levels else _choose_window
    window = choose(pixels.shape[1], pixels.shape[0], photo.boxes_xyxy, config, rng)
    if config.letterbox:
        window = _centred(window, pixels.shape[1], pixels.shape[0])
    offset = np.array([window.left, window.top], np.float32)
    scale = np.array([size_px / window.width, size_px / window.height], np.float32)
    crop = _cut(pixels, window, config, rng)
    boxes = (photo.boxes_xyxy - np.tile(offset, 2)) * np.tile(scale, 2)
    points = (photo.landmarks - offset) * scale
    ignored = (photo.ignored_xyxy - np.tile(offset, 2)) * np.tile(scale, 2)
    if rng.random() < 0.5:
        crop = np.asarray(cv2.flip(crop, 1), np.uint8)
        boxes, ignored = mirror_boxes(boxes, size_px), mirror_boxes(ignored, size_px)
        points = mirror_landmarks(points, size_px)
    if config.turn_share and rng.random() < config.turn_share:
        degrees = float(rng.uniform(-config.turn_degrees, config.turn_degrees))
        crop = turn_crop(crop, degrees, config.padding_rgb)
        points = turn_points(points, size_px, degrees)
        boxes, ignored = turn_boxes(boxes, size_px, degrees), turn_boxes(ignored, size_px, degrees)
    return _training_crop(crop, boxes, points, ignored, config.min_face_px)


def turn_crop(
    crop: UInt8Array, degrees: float, padding_rgb: tuple[int, int, int] = PADDING_RGB
) -> UInt8Array:
    """Turn a square image counter-clockwise about its centre; the corners are padded."""
    size = crop.shape[0]
    turned = cv2.warpAffine(crop, _turn(size, degrees), (size, size), borderValue=padding_rgb)
    return np.asarray(turned, np.uint8)


def turn_points(points: FloatArray, size_px: int, degrees: float) -> FloatArray:
    """Turn points (..., 2) as `turn_crop` turns the image."""
    matrix = _turn(size_px, degrees).astype(np.float32)
    turned: FloatArray = points @ matrix[:, :2].T + matrix[:, 2]
    return turned


def turn_boxes(boxes_xyxy: FloatArray, size_px: int, degrees: float) -> FloatArray:
    """Boxes (n, 4) around the turned ellipses of the boxes: around turned corners they would be too large."""
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2
    centres = turn_points((boxes_xyxy[:, :2] + half).astype(np.float32), size_px, degrees)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = np.hypot(half * np.float32(cos), half[:, ::-1] * np.float32(sin))
    return np.concatenate([centres - turned, centres + turned], axis=1).astype(np.float32)


def _turn(size_px: int, degrees: float) -> npt.NDArray[np.float64]:
    centre = (size_px / 2, size_px / 2)
    return np.asarray(cv2.getRotationMatrix2D(centre, degrees, 1.0), np.float64)


def _color_jitter(crop: UInt8Array, config: AugmentConfig, rng: np.random.Generator) -> UInt8Array:
    """Distort brightness, contrast, saturation and hue, or remove colour, each in its share of cases."""
    if rng.random() < config.gray_share:
        gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        crop = np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), np.uint8)
    if rng.random() >= config.colour_share:
        return crop
    contrast, brightness = rng.uniform(0.6, 1.4), rng.uniform(-32, 32)
    levels = np.clip((np.arange(256) - 128) * contrast + 128 + brightness, 0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(cv2.LUT(crop, levels), cv2.COLOR_RGB2HSV)
    saturation = np.clip(np.arange(256) * rng.uniform(0.6, 1.4), 0, 255).astype(np.uint8)
    hue = ((np.arange(256) + rng.integers(-9, 10)) % 180).astype(np.uint8)  # OpenCV halves degrees
    table = np.stack([hue, saturation, np.arange(256, dtype=np.uint8)], axis=-1)[None]
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB), np.uint8)


def _choose_window(
    width: int, height: int, boxes: FloatArray, config: AugmentConfig, rng: np.random.Generator
) -> Window:
    longest = max(width, height)
    for _ in range(_WINDOW_TRIES):
        side = _choose_side(width, height, config, rng)
        if len(boxes) == 0:
            return Window(_anywhere(width, side, rng), _anywhere(height, side, rng), side, side)
        face = boxes[rng.integers(len(boxes))]
        left = _around(face[0], face[2], width, side, rng)
        top = _around(face[1], face[3], height, side, rng)
        if _has_trainable_face(boxes, left, top, side, config.min_face_px * side / config.size_px):
            return Window(left, top, side, side)
    return Window(_anywhere(width, longest, rng), _anywhere(height, longest, rng), longest, longest)


def _choose_level(
    width: int, height: int, boxes: FloatArray, config: AugmentConfig, rng: np.random.Generator
) -> Window:
    """Draw windows of `crop_levels` anywhere in the photo until one holds a whole face."""
    for _ in range(_LEVEL_TRIES):
        side = max(1, int(min(width, height) * config.crop_levels[rng.integers(len(config.crop_levels))]))
        left, top = _anywhere(width, side, rng), _anywhere(height, side, rng)
        whole = (boxes[:, :2] >= (left, top)).all(axis=1) & (boxes[:, 2:] <= (left + side, top + side)).all(
            axis=1
        )
        if len(boxes) == 0 or whole.any():
            return Window(left, top, side, side)
    return Window(0, 0, max(width, height), max(width, height))


def _centred(window: Window, width: int, height: int) -> Window:
    """Return a window with the photo in its centre along each side that is longer than the photo's."""
    left = (width - window.width) // 2 if window.width > width else window.left
    top = (height - window.height) // 2 if window.height > height else window.top
    return window._replace(left=left, top=top)


def _choose_side(width: int, height: int, config: AugmentConfig, rng: np.random.Generator) -> int:
    if rng.random() < config.whole_photo_share:
        return min(width, height) if rng.random() < 0.5 else max(width, height)
    low, high = np.log(config.scale_range[0]), np.log(config.scale_range[1])
    side = config.size_px / float(np.exp(rng.uniform(low, high)))
    return max(8, round(min(side, config.widest_window * max(width, height))))


def _anywhere(length: int, side: int, rng: np.random.Generator) -> int:
    """Draw where a window starts: it lies inside the photo, or holds all of a smaller photo."""
    return int(rng.integers(min(0, length - side), max(0, length - side) + 1))


def _around(low: float, high: float, length: int, side: int, rng: np.random.Generator) -> int:
    """Draw where a window starts that holds the face's centre, inside the photo where that is possible."""
    centre = (low + high) / 2
    first, last = centre - side + 1, centre
    if side <= length:
        first, last = max(first, 0), min(last, length - side)
    else:
        first, last = max(first, length - side), min(last, 0)
    return round(float(rng.uniform(min(first, last), max(first, last))))


def _has_trainable_face(boxes: FloatArray, left: int, top: int, side: int, min_face_px: float) -> bool:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - (left, top)
    inside = ((centres >= 0) & (centres < side)).all(axis=1)
    return bool((inside & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min_face_px)).any())


def _cut(pixels: UInt8Array, window: Window, config: AugmentConfig, rng: np.random.Generator) -> UInt8Array:
    """Cut out a window, scale it to the crop's size and jitter its colours, but not those of the padding."""
    size = config.size_px
    height, width = pixels.shape[:2]
    x0, y0 = max(window.left, 0), max(window.top, 0)
    x1, y1 = min(window.left + window.width, width), min(window.top + window.height, height)
    scale_x, scale_y = size / window.width, size / window.height
    to_x0, to_y0 = round((x0 - window.left) * scale_x), round((y0 - window.top) * scale_y)
    to_x0, to_y0 = min(to_x0, size - 1), min(to_y0, size - 1)
    to_w = max(1, min(size - to_x0, round((x1 - x0) * scale_x)))
    to_h = max(1, min(size - to_y0, round((y1 - y0) * scale_y)))
    part = _color_jitter(_scaled(pixels[y0:y1, x0:x1], (to_w, to_h)), config, rng)
    if part.shape[0] == part.shape[1] == size:
        return part
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = config.padding_rgb
    canvas[to_y0 : to_y0 + to_h, to_x0 : to_x0 + to_w] = part
    return canvas


def _scaled(part: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    if size_wh[0] <= part.shape[1] and size_wh[1] <= part.shape[0]:
        return scaled_down(part, size_wh)
    return np.asarray(cv2.resize(part, size_wh, interpolation=cv2.INTER_LINEAR), np.uint8)


def _training_crop(
    crop: UInt8Array, boxes: FloatArray, points: FloatArray, ignored: FloatArray, min_face_px: float
) -> TrainingCrop:
    size = crop.shape[0]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres < size)).all(axis=1)
    large_enough = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= max(min_face_px, 1.0)
    trainable = inside & large_enough
    left_out = np.clip(np.concatenate([boxes[~trainable], ignored]), 0, size)
    visible = (left_out[:, 2:] - left_out[:, :2] > 0).all(axis=1)
    return TrainingCrop(crop, np.clip(boxes[trainable], 0, size), points[trainable], left_out[visible])
