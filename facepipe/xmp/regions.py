"""Face regions: areas of an image with a name, in the two forms that photo managers write.

The first form is that of the Metadata Working Group ("Guidelines for Handling Image Metadata", 2.0, section
5.9): normalised areas by their centre. The second is Microsoft's (`MP:RegionInfo`): normalised rectangles by
their corner. Both are in the frame of the stored image, before EXIF orientation is applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from facepipe.core.faces import Faces
from facepipe.core.overwriting import NAMESPACE
from facepipe.xmp.packets import Element, items, properties, structure, tag, value

REGIONS = "http://www.metadataworkinggroup.com/schemas/regions/"
AREA = "http://ns.adobe.com/xmp/sType/Area#"
DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
OURS = NAMESPACE
_MP = "http://ns.microsoft.com/photo/1.2/"
_MP_REGION_INFO = "http://ns.microsoft.com/photo/1.2/t/RegionInfo#"
_MP_REGION = "http://ns.microsoft.com/photo/1.2/t/Region#"
_SAME_SHAPE = 0.02
"""Relative difference of two aspect ratios, by rounding of dimensions, that is no difference."""


class _Turn(NamedTuple):
    """From the upright photo to the stored image: first swap x and y, then mirror."""

    swap: bool
    mirror_x: bool
    mirror_y: bool


_TO_STORED = {
    1: _Turn(False, False, False),
    2: _Turn(False, True, False),
    3: _Turn(False, True, True),
    4: _Turn(False, False, True),
    5: _Turn(True, False, False),
    6: _Turn(True, False, True),
    7: _Turn(True, True, True),
    8: _Turn(True, True, False),
}
"""By EXIF orientation."""
_INVERSE = {6: 8, 8: 6}
"""Orientations that are not their own inverse."""


@dataclass(frozen=True, slots=True)
class Region:
    """A named area: centre and sides as shares of the image's width and height."""

    name: str
    x: float
    y: float
    w: float
    h: float

    def in_stored_frame(self, orientation: int) -> Region:
        """The area of the upright photo in the frame of the stored image, which has this EXIF orientation."""
        turn = _TO_STORED[orientation]
        x, y, w, h = (self.y, self.x, self.h, self.w) if turn.swap else (self.x, self.y, self.w, self.h)
        return Region(self.name, 1 - x if turn.mirror_x else x, 1 - y if turn.mirror_y else y, w, h)

    def in_upright_frame(self, orientation: int) -> Region:
        """The area of a stored image of this EXIF orientation in the frame of the upright photo."""
        return self.in_stored_frame(_INVERSE.get(orientation, orientation))

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, as shares."""
        return self.x - self.w / 2, self.y - self.h / 2, self.x + self.w / 2, self.y + self.h / 2

    def is_valid(self) -> bool:
        """Return whether it is an area with its centre in the image, and no larger than the image."""
        inside = 0 <= self.x <= 1 and 0 <= self.y <= 1  # false for what is no number
        return inside and 0 < self.w <= 1 and 0 < self.h <= 1


@dataclass(frozen=True, slots=True)
class Regions:
    """The faces that others have named in one list of regions.

    Attributes:
        regions: In the stored frame, with names as they are written; areas need not be valid.
        applied_to_wh: Width and height of the image that they were drawn in; None where it is not stated.
    """

    regions: tuple[Region, ...]
    applied_to_wh: tuple[float, float] | None = None


def named_regions(faces: Faces, size_wh: tuple[int, int]) -> list[Region]:
    """Return the faces that have a name, in a photo of that size."""
    width, height = size_wh
    regions = []
    for match, (left, top, right, bottom) in zip(faces.matches or (), faces.boxes_xyxy.tolist(), strict=True):
        if match.name is not None:
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            regions.append(Region(match.name, *centre, (right - left) / width, (bottom - top) / height))
    return regions


def stored_size(size_wh: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of the stored image of an upright photo of that size."""
    return size_wh[::-1] if _TO_STORED[orientation].swap else size_wh


def is_same_shape(applied_to_wh: tuple[float, float], stored_wh: tuple[int, int]) -> bool:
    """Return whether regions of an image of the one size fit one of the other: it may have been resized."""
    theirs = applied_to_wh[0] / applied_to_wh[1]
    return abs(theirs / (stored_wh[0] / stored_wh[1]) - 1) < _SAME_SHAPE


# Reading


def read_regions(root: Element) -> list[Regions]:
    """Return the named face regions of a packet, of both forms, but those that facepipe wrote.

    Regions of another type than Face, and those without a name, are passed over.
    """
    groups = [_mwg_regions(holder) for holder in properties(root, REGIONS, "Regions")]
    groups += [Regions(tuple(_mp_regions(holder))) for holder in properties(root, _MP, "RegionInfo")]
    return [group for group in groups if group.regions]


def region_of_item(item: Element) -> Region | None:
    """The face that an item of the Metadata Working Group's list marks; None: a pet, or a focus point.

    Sides and centre that are missing or no numbers are NaN.
    """
    if (value(item, REGIONS, "Type") or "Face") != "Face":
        return None
    x, y, w, h = (_number(value(item, AREA, name)) for name in "xywh")
    return Region(value(item, REGIONS, "Name") or "", x, y, w, h)


def is_ours(item: Element) -> bool:
    """Return whether facepipe wrote the item of a list of regions."""
    return value(item, OURS, "Written") is not None


def applied_to(holder: Element) -> tuple[float, float] | None:
    """Width and height of the image that an element `mwg-rs:Regions` is for, where they are stated."""
    for dimensions in structure(holder).findall(tag(REGIONS, "AppliedToDimensions")):
        width, height = (_number(value(dimensions, DIMENSIONS, name)) for name in "wh")
        if width > 0 and height > 0:
            return width, height
    return None


def _mwg_regions(holder: Element) -> Regions:
    found = []
    for listed in structure(holder).findall(tag(REGIONS, "RegionList")):
        others = (region_of_item(item) for item in items(listed) if not is_ours(item))
        found += [region for region in others if region is not None and region.name]
    return Regions(tuple(found), applied_to(holder))


def _mp_regions(holder: Element) -> Iterator[Region]:
    for listed in structure(holder).findall(tag(_MP_REGION_INFO, "Regions")):
        for item in items(listed):
            name = value(item, _MP_REGION, "PersonDisplayName")
            if name:
                yield _mp_region(name, value(item, _MP_REGION, "Rectangle"))


def _mp_region(name: str, rectangle: str | None) -> Region:
    numbers = [_number(text) for text in (rectangle or "").split(",")]
    left, top, w, h = numbers if len(numbers) == 4 else (math.nan,) * 4
    return Region(name, left + w / 2, top + h / 2, w, h)


def _number(text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
