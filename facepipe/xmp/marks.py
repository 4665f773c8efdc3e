"""Who is where in a photo by what others have written: into the photo, and into files beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.errors import GalleryError, PhotoError
from facepipe.core.faces import BoolArray
from facepipe.gallery.names import clean_name, mended_name
from facepipe.images.reading import DEFAULT_MAX_PIXELS, printable, read_orientation, read_size, read_xmp
from facepipe.xmp.packets import XmpError, parse, parse_file
from facepipe.xmp.picasa import PicasaFaces, read_picasa
from facepipe.xmp.regions import Region, Regions, is_same_shape, read_regions, stored_size
from facepipe.xmp.sidecars import sidecar_path

SAME_PLACE_IOU = 0.5
"""Two regions that overlap so far mark the same face: programs draw them with and without hair."""
MOST_MARKS = 1_000
"""Named faces of a photo; that of a school has some hundreds."""


class Doubt(Enum):
    """Why a mark is not believed. The values are stable codes for reports."""

    TWO_NAMES = "two_names"
    NAME_TWICE = "name_twice"
    OTHER_SHAPE = "other_shape"
    UNKNOWN_FRAME = "unknown_frame"
    BAD_AREA = "bad_area"
    BAD_NAME = "bad_name"


@dataclass(frozen=True, slots=True)
class Mark:
    """A face that somebody has named.

    Attributes:
        name: As a gallery stores it.
        region: In the stored frame.
        doubt: Why it is not believed; None: it is.
        sentence: The same for people to read.
    """

    name: str
    region: Region
    doubt: Doubt | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class MarkedPhoto:
    """A photo and the faces that others have named in it.

    Attributes:
        path: Of the photo.
        orientation: Of its EXIF data, 1..8.
        marks: Each face and name once.
        errors: What can't be read: the photo itself, or a file beside it.
    """

    path: Path
    orientation: int
    marks: tuple[Mark, ...]
    errors: tuple[str, ...] = ()


def read_marks(photo: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> MarkedPhoto:
    """Read the named face regions of a photo: its own, those of its sidecars and Picasa's.

    Sidecars are `photo.jpg.xmp` and `photo.xmp`; Picasa has a file `.picasa.ini` in each folder.

    A face that is marked several times with one name, as programs do that write several forms, counts once.
    The pixels are not read.

    Args:
        photo: The file.
        max_pixels: See `facepipe.images.reading.read_image`.

    Raises:
        MissingExtraError: lxml is not installed.
    """
    errors: list[str] = []
    try:
        packets = read_xmp(photo, max_pixels=max_pixels)
        found = list(_regions_of(photo, packets, errors))
        picasa = _picasa_faces(photo, errors)
        if not found and not picasa.regions:
            return MarkedPhoto(photo, 1, (), tuple(errors))
        orientation = read_orientation(photo, max_pixels=max_pixels)
        stored_wh = stored_size(read_size(photo, max_pixels=max_pixels), orientation)
    except PhotoError as error:
        return MarkedPhoto(photo, 1, (), (*errors, str(error)))
    marks = [mark for regions in found for mark in _marks_of(regions, stored_wh)]
    marks += _picasa_marks(picasa, orientation)
    if len(marks) > MOST_MARKS:
        errors.append(f"{printable(photo)}: {len(marks):,} named faces; at most {MOST_MARKS:,} are read")
        marks = []
    return MarkedPhoto(photo, orientation, tuple(_reconciled(marks)), tuple(errors))


def _regions_of(photo: Path, packets: Iterable[bytes], errors: list[str]) -> Iterator[Regions]:
    for packet in packets:
        try:
            yield from read_regions(parse(packet))
        except XmpError as error:
            errors.append(f"{printable(photo)}: its XMP {error}; its sidecars are read all the same")
    for sidecar in dict.fromkeys((sidecar_path(photo), photo.with_suffix(".xmp"))):
        if os.path.lexists(sidecar):
            try:
                yield from read_regions(parse_file(sidecar))
            except XmpError as error:
                errors.append(f"{printable(sidecar)}: {error}; move it away")


def _picasa_faces(photo: Path, errors: list[str]) -> PicasaFaces:
    try:
        return read_picasa(photo)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        errors.append(f"{printable(photo.parent)}: its .picasa.ini can't be read ({reason}); move it away")
        return PicasaFaces()


def _picasa_marks(picasa: PicasaFaces, orientation: int) -> Iterator[Mark]:
    """Picasa's marks of photos that it shows as they are stored; the frame of others is nowhere described."""
    is_upright = orientation == 1 and not picasa.is_turned
    for mark in map(_marked, picasa.regions):
        if mark.doubt is None and not is_upright:
            sentence = "where it is in a turned photo is not known; let Picasa write faces to XMP"
            mark = replace(mark, doubt=Doubt.UNKNOWN_FRAME, sentence=sentence)
        yield mark


def _marks_of(regions: Regions, stored_wh: tuple[int, int]) -> Iterator[Mark]:
    applied_wh = regions.applied_to_wh
    for region in regions.regions:
        mark = _marked(region)
        if mark.doubt is None and applied_wh is not None and not is_same_shape(applied_wh, stored_wh):
            shapes = "{:g} x {:g}, but the photo is stored as {} x {}".format(*applied_wh, *stored_wh)
            mark = replace(mark, doubt=Doubt.OTHER_SHAPE, sentence=f"its region is for an image of {shapes}")
        yield mark


def _marked(region: Region) -> Mark:
    """A mark with a name that can be stored: white space of XML's lines in it becomes a space."""
    name = " ".join(region.name.split())
    try:
        name = clean_name(name)
    except GalleryError as error:
        return Mark(_similar_name(name), region, Doubt.BAD_NAME, str(error))
    if not region.is_valid():
        return Mark(name, region, Doubt.BAD_AREA, "its area is not within the photo")
    return Mark(name, region)


def _similar_name(name: str) -> str:
    try:
        return mended_name(name, ())
    except GalleryError:
        return "?"


def _reconciled(marks: list[Mark]) -> list[Mark]:
    """Each face and name once; those that contradict each other are doubted."""
    at_same_place = _at_same_place(marks)
    kept: list[int] = []
    for row, mark in enumerate(marks):
        same = (other for other in kept if marks[other].name == mark.name)
        if not any(at_same_place[row, other] or _have_same_doubt(mark, marks[other]) for other in same):
            kept.append(row)
    counts = Counter(marks[row].name for row in kept if marks[row].doubt is None)
    at_place = {row: [marks[at] for at in kept if at_same_place[row, at]] for row in kept}
    return [_checked(marks[row], at_place[row], counts) for row in kept]


def _at_same_place(marks: list[Mark]) -> BoolArray:
    """bool (n, n): which marks, both believed, mark one face."""
    sides = np.array([mark.region.sides for mark in marks], np.float64).reshape(-1, 4)
    are_believed = np.array([mark.doubt is None for mark in marks], np.bool_)
    same: BoolArray = (iou(sides[:, None], sides) >= SAME_PLACE_IOU) & are_believed[:, None] & are_believed
    return same


def _have_same_doubt(mark: Mark, other: Mark) -> bool:
    return mark.doubt is not None and mark.doubt is other.doubt


def _checked(mark: Mark, at_its_place: list[Mark], counts: Counter[str]) -> Mark:
    if mark.doubt is not None:
        return mark
    for other in at_its_place:
        if other.name != mark.name:
            return replace(mark, doubt=Doubt.TWO_NAMES, sentence=f"the same face is named {other.name!r} too")
    if counts[mark.name] > 1:
        return replace(mark, doubt=Doubt.NAME_TWICE, sentence="the photo has two faces of this name")
    return mark
