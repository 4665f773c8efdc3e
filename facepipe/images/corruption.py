"""Pixels of faces damaged on purpose: bad light, blur, low resolution, JPEG, covered parts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array

_CONTRAST = 0.3
"""Largest relative change."""
_BRIGHTNESS = 25.0
"""Largest change, of 255 levels."""
_CAST = 0.06
"""Largest relative change of one colour channel."""
_BLUR_PX = (0.3, 2.0)
"""Standard deviation."""


@dataclass(frozen=True, slots=True)
class CorruptionConfig:
    """How pixels are damaged: the share of faces each kind befalls, and how badly.

    Attributes:
        light_share: Other contrast, brightness and colour cast.
        gray_share: No colour.
        blur_share: Out of focus.
        low_resolution_share: Shrunk to a side within `low_resolution_px`, drawn log-uniformly, and enlarged.
        low_resolution_px: Smallest and largest of these sides.
        jpeg_share: Compressed, at a quality within `jpeg_quality`, while it is small.
        jpeg_quality: Lowest and highest of these qualities, 1..100.
        mask_share: The lower part of the face covered.
        glasses_share: Two bars or one over the eyes.
    """

    light_share: float = 0.7
    gray_share: float = 0.08
    blur_share: float = 0.05
    low_resolution_share: float = 0.1
    low_resolution_px: tuple[int, int] = (20, 72)
    jpeg_share: float = 0.1
    jpeg_quality: tuple[int, int] = (15, 70)
    mask_share: float = 0.02
    glasses_share: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_share") and not 0 <= getattr(self, field.name) <= 1:
                raise UsageError(f"corruption.{field.name}: expected 0..1, got {getattr(self, field.name)}")
        for name in ("low_resolution_px", "jpeg_quality"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise UsageError(f"corruption.{name}: expected two rising numbers from 1, got {low}, {high}")


def corrupt(face: UInt8Array, config: CorruptionConfig, rng: np.random.Generator) -> UInt8Array:
    """Return a damaged copy of an RGB face (size, size, 3); the same `rng` state gives the same damage."""
    # All shares are drawn first: changing one of them leaves the others' choices alone.
    mask, glasses, light, gray, blur, low, jpeg = rng.random(7)
    face = face.copy()
    if mask < config.mask_share:
        _cover_mouth(face, rng)
    if glasses < config.glasses_share:
        _cover_eyes(face, rng)
    if light < config.light_share:
        face = _relit(face, rng)
    if gray < config.gray_share:
        face = _gray(face)
    if blur < config.blur_share:
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), float(rng.uniform(*_BLUR_PX))), np.uint8)
    side = face.shape[0]
    if low < config.low_resolution_share:
        bottom, top = np.log(config.low_resolution_px)
        face = _resized(face, round(float(np.exp(rng.uniform(bottom, top)))))
    if jpeg < config.jpeg_share:
        face = _compressed(face, int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1)))
    return face if face.shape[0] == side else _resized(face, side)


def _relit(face: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    contrast = 1 + rng.uniform(-_CONTRAST, _CONTRAST)
    gain = contrast * (1 + rng.uniform(-_CAST, _CAST, 3))
    offset = 128 * (1 - contrast) + rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    levels = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(face, levels[None]), np.uint8)


def _gray(face: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def _resized(face: UInt8Array, side: int) -> UInt8Array:
    how = cv2.INTER_AREA if side < face.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(face, (side, side), interpolation=how), np.uint8)


def _compressed(face: UInt8Array, quality: int) -> UInt8Array:
    # Red and blue change places on the way in, and change back on the way out.
    bgr = cv2.cvtColor(face, cv2.COLOR_RGB2BGR)
    written = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    read = np.asarray(cv2.imdecode(written, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), np.uint8)


def _cover_mouth(face: UInt8Array, rng: np.random.Generator) -> None:
    """A mask from between nose's root and tip down, in the aligned frame, slightly curved."""
    side = face.shape[0]
    top = side * rng.uniform(0.52, 0.66)
    across = np.linspace(0, side, 9)
    upper = top + side * rng.uniform(0, 0.1) * (2 * across / side - 1) ** 2
    outline = np.vstack([np.column_stack([across, upper]), [[side, side], [0, side]]])
    cv2.fillPoly(face, [outline.round().astype(np.int32)], _colour(rng))


def _cover_eyes(face: UInt8Array, rng: np.random.Generator) -> None:
    """Dark glasses: two boxes about the eyes of the aligned frame, joined by a bridge."""
    side = face.shape[0]
    middle, half_height = side * rng.uniform(0.42, 0.5), side * rng.uniform(0.06, 0.12)
    half_width, colour = side * rng.uniform(0.12, 0.17), tuple(v * 0.35 for v in _colour(rng))
    for eye in (0.34, 0.66):
        left, right = round(eye * side - half_width), round(eye * side + half_width)
        cv2.rectangle(
            face, (left, round(middle - half_height)), (right, round(middle + half_height)), colour, -1
        )
    cv2.line(face, (round(0.34 * side), round(middle)), (round(0.66 * side), round(middle)), colour, 2)


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = rng.uniform(0, 255, 3)
    return float(red), float(green), float(blue)
