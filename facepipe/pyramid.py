"""A photo in several sizes, and the parts of them that a detector looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.images.reading import scaled_down
from facepipe.retinaface.focus import CELL_PX, FINER_BY, FINER_CELL_PX, Region

PAD_TO = 32
"""Sides of a network's input are multiples of this, in pixels."""
_COARSEST_LONG_SIDE = 448
"""A photo longer than this is also analyzed in quarter size: its faces may exceed the largest anchor."""
_LARGEST_FACE_PX = 192
"""Shorter side, in pixels of a level, up to which its faces are taken; the coarser level finds larger ones.

Large anchors see few examples in training and take bare skin for faces: on photos of single people the split
removes three of four false alarms above 0.6 and loses no face."""
_OVERLAP = 0.75
"""A coarser level begins this much below the finer one's end, so that no face falls between them."""


@dataclass(frozen=True, slots=True)
class Level:
    """One photo at one scale.

    Attributes:
        image: RGB uint8 (h, w, 3).
        photo_size_wh: Of the frame that faces are given in.
        min_face_side_px, max_face_side_px: Shorter sides of the faces that are to be found here.
    """

    image: UInt8Array
    photo_size_wh: tuple[int, int]
    min_face_side_px: float = 0.0
    max_face_side_px: float = math.inf

    def whole(self) -> Look:
        """Return a look at all of it."""
        height, width = self.image.shape[:2]
        return Look(self, 0, 0, width, height)

    def part(self, region: Region) -> Look:
        """Return a look at a region of the focus map of the next coarser level."""
        height, width = self.image.shape[:2]
        right, bottom = region.right * FINER_CELL_PX, region.bottom * FINER_CELL_PX
        # Sides of levels are rounded: the last cell may end before this one does.
        right, bottom = (
            side if side - end < FINER_CELL_PX else end for side, end in ((width, right), (height, bottom))
        )
        return Look(self, region.left * FINER_CELL_PX, region.top * FINER_CELL_PX, right, bottom)

    def to_photo(self, faces: Faces) -> LevelDetections:
        """Return all candidates of this level in pixels of the photo, with those that are its own to find."""
        own = (faces.sizes_px >= self.min_face_side_px) & (faces.sizes_px <= self.max_face_side_px)
        # Sides are rounded to whole pixels one by one, so that each axis has a scale of its own.
        height, width = self.image.shape[:2]
        back = np.array([self.photo_size_wh[0] / width, self.photo_size_wh[1] / height], np.float32)
        in_photo = Faces(faces.boxes_xyxy * np.tile(back, 2), faces.scores, faces.landmarks * back)
        return LevelDetections(in_photo, own, width / self.photo_size_wh[0])


@dataclass(frozen=True, slots=True)
class Look:
    """A part of a level that goes through the network.

    Attributes:
        level: See `Level`.
        left, top, right, bottom: In pixels of the level; inside it, ends excluded.
    """

    level: Level
    left: int
    top: int
    right: int
    bottom: int

    @property
    def image(self) -> UInt8Array:
        """RGB uint8 (h, w, 3)."""
        return self.level.image[self.top : self.bottom, self.left : self.right]

    @property
    def padded_size(self) -> tuple[int, int]:
        """Width and height of the network's input."""
        return padded(self.right - self.left), padded(self.bottom - self.top)

    def cells_of(self, focus: FloatArray) -> FloatArray:
        """Cut the padding off the focus map (rows, columns) of this look."""
        height, width = self.image.shape[:2]
        return focus[: -(-height // CELL_PX), : -(-width // CELL_PX)]

    def to_photo(self, faces: Faces) -> LevelDetections:
        """See `Level.to_photo`; `faces` are in pixels of this part."""
        origin = np.array([self.left, self.top], np.float32)
        moved = Faces(faces.boxes_xyxy + np.tile(origin, 2), faces.scores, faces.landmarks + origin)
        return self.level.to_photo(moved)


@dataclass(frozen=True, slots=True)
class LevelDetections:
    """Candidates of one photo at one scale, and which of them are faces that are to be found there."""

    faces: Faces
    own: BoolArray
    scale: float


def pyramid(photo: UInt8Array, size_wh: tuple[int, int], scale: float, several: bool) -> list[Level]:
    """Return a photo at every scale it needs, finest first.

    Args:
        photo: RGB uint8 (h, w, 3).
        size_wh: Of the frame that faces are given in.
        scale: Of the finest level, up to 1.
        several: Whether large faces are looked for in quarters of the size.
    """
    height, width = photo.shape[:2]
    long_side = max(width, height)
    image = photo if scale == 1.0 else _resized(photo, width * scale, height * scale)
    levels = [Level(image, size_wh)]
    while several and long_side * scale > _COARSEST_LONG_SIDE:
        scale /= FINER_BY
        image = _resized(image, width * scale, height * scale)
        levels[-1] = replace(levels[-1], max_face_side_px=_LARGEST_FACE_PX)
        min_side_px = _OVERLAP * _LARGEST_FACE_PX / FINER_BY
        levels.append(Level(image, size_wh, min_face_side_px=min_side_px))
    return levels


def padded(side: int) -> int:
    """Round a side up to what the network takes."""
    return max(1, -(-side // PAD_TO)) * PAD_TO


def _resized(image: UInt8Array, width: float, height: float) -> UInt8Array:
    return scaled_down(image, (max(1, round(width)), max(1, round(height))))
