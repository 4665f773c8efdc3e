"""XMP sidecars with face regions, as photo managers read them; whatever else a sidecar holds stays in it.

The form is that of the Metadata Working Group ("Guidelines for Handling Image Metadata", 2.0, section 5.9):
normalised areas by their centre, in the frame of the stored image, before EXIF orientation is applied.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from facepipe.core.errors import MissingExtraError, OutputError
from facepipe.core.faces import Faces
from facepipe.core.files import atomic_file, copy_rights, open_regular
from facepipe.images.reading import read_orientation

Element = Any
"""Of lxml, which has no types."""

_X = "adobe:ns:meta/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_REGIONS = "http://www.metadataworkinggroup.com/schemas/regions/"
_AREA = "http://ns.adobe.com/xmp/sType/Area#"
_DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_OURS = "https://facepipe.invalid/xmp/1.0/"
_PREFIXES = {"rdf": _RDF, "mwg-rs": _REGIONS, "stArea": _AREA, "stDim": _DIMENSIONS, "facepipe": _OURS}
_SAME_PLACE = 0.5
"""Share of a foreign region's sides by which the centre of a face may be off and still be that face."""
_SAME_SHAPE = 0.02
"""Relative difference of two aspect ratios, by rounding of dimensions, that is no difference."""
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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


def sidecar_path(photo: Path) -> Path:
    """`photo.jpg.xmp`: the whole name, so that `photo.png` beside it has one of its own."""
    return photo.with_name(f"{photo.name}.xmp")


def named_regions(faces: Faces, size_wh: tuple[int, int]) -> list[Region]:
    """Return the faces that have a name, in a photo of that size."""
    width, height = size_wh
    regions = []
    for match, (left, top, right, bottom) in zip(faces.matches or (), faces.boxes_xyxy.tolist(), strict=True):
        if match.name is not None:
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            regions.append(Region(match.name, *centre, (right - left) / width, (bottom - top) / height))
    return regions


def write_sidecar(photo: Path, size_wh: tuple[int, int], faces: Faces) -> Path | None:
    """Write the named faces into the photo's sidecar, beside it.

    Regions that facepipe wrote before are replaced. A face that somebody else marked is left as it is, and
    not marked a second time. All else in the sidecar is kept.

    A new sidecar may be read and written by whoever may read and write the photo; one that is there keeps its
    permissions, and one that is a link stays it: the file that it leads to is replaced.

    The EXIF orientation is the photo's own: it is the one that was applied before faces were found. Where
    the photo is gone it is the sidecar's `tiff:Orientation`, and 1 where that has none.

    Args:
        photo: Need not exist.
        size_wh: Width and height of the upright photo in pixels.
        faces: With matches, in pixels of the upright photo.

    Returns:
        The sidecar; None where there was nothing to write, and none to take anything from.

    Raises:
        OutputError: The sidecar that is there is no XMP, or has regions of an image of another shape, or
            can't be written; it is left as it is.
        PhotoError: The photo can't be read.
        MissingExtraError: lxml is not installed.
    """
    sidecar = sidecar_path(photo)
    exists = os.path.lexists(sidecar)
    regions = named_regions(faces, size_wh)
    if not regions and not exists:
        return None
    root = _parse(sidecar) if exists else _new_root()
    before = _bytes(root)
    orientation = _orientation(photo, root, max_pixels=size_wh[0] * size_wh[1])
    stored_wh = size_wh[::-1] if _TO_STORED[orientation].swap else size_wh
    _put(root, [region.in_stored_frame(orientation) for region in regions], stored_wh, sidecar)
    after = _bytes(root)
    if exists and after == before:
        return sidecar
    try:
        rights = os.stat(sidecar) if exists else _rights_of(photo)
        with atomic_file(Path(os.path.realpath(sidecar, strict=exists))) as stream:  # a link stays
            if rights is not None:
                copy_rights(rights, stream)
            stream.write(after)
    except OSError as error:
        raise OutputError(
            f"{sidecar}: can't be written ({error.strerror}); make its folder writable, or its name shorter"
        ) from error
    return sidecar


def _rights_of(photo: Path) -> os.stat_result | None:
    try:
        return os.stat(photo)
    except OSError:  # gone
        return None


def _put(root: Element, regions: list[Region], stored_wh: tuple[int, int], sidecar: Path) -> None:
    holder = _regions_element(root)
    ours = [] if holder is None else list(filter(_is_ours, holder.iter(_tag(_RDF, "li"))))
    if not regions and not ours:
        return
    for item in ours:
        item.getparent().remove(item)
    if holder is None:
        holder = _new_regions(root)
    items = _list_of_regions(holder)
    if not regions:
        if len(items):
            _indent(holder)
        else:
            _drop(holder)
        return
    if not len(items):
        _set_dimensions(holder, stored_wh)
    _require_same_shape(holder, stored_wh, sidecar)
    others = [region for region in map(_read_region, items) if region is not None]
    for region in regions:
        if not any(_is_at(region, other) for other in others):
            items.append(_region_item(region))
    _indent(holder)


# Reading


def _parse(sidecar: Path) -> Element:
    etree = _etree()
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=False)
    try:
        with open_regular(sidecar) as stream:
            root = etree.fromstring(stream.read(), parser)
    except (OSError, etree.XMLSyntaxError) as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{sidecar}: can't be read as XMP ({reason}); move it away") from error
    if root.find(f".//{_tag(_RDF, 'RDF')}") is None and root.tag != _tag(_RDF, "RDF"):
        raise OutputError(f"{sidecar}: this is no XMP; move it away")
    return root


def _rdf(root: Element) -> Element:
    rdf = root if root.tag == _tag(_RDF, "RDF") else root.find(f".//{_tag(_RDF, 'RDF')}")
    assert rdf is not None
    return rdf


def _regions_element(root: Element) -> Element | None:
    return _rdf(root).find(f"{_tag(_RDF, 'Description')}/{_tag(_REGIONS, 'Regions')}")


def _structure(holder: Element) -> Element:
    """What has the fields of a structure: the element itself (parseType Resource) or a Description in it."""
    inside = holder.find(_tag(_RDF, "Description"))
    return holder if inside is None else inside


def _list_of_regions(holder: Element) -> Element:
    """The container of the list of regions: a Bag, Seq or Alt, whichever is there; a new Bag where none is.

    Further containers, with which readers find no region at all, are removed where they are empty: facepipe
    once put a Bag beside a Seq.
    """
    etree, structure = _etree(), _structure(holder)
    listed = structure.find(_tag(_REGIONS, "RegionList"))
    if listed is None:
        listed = etree.SubElement(structure, _tag(_REGIONS, "RegionList"))
    kinds = {_tag(_RDF, kind) for kind in ("Bag", "Seq", "Alt")}
    first, *others = [child for child in listed if child.tag in kinds] or [
        etree.SubElement(listed, _tag(_RDF, "Bag"))
    ]
    for other in others:
        if not len(other):
            listed.remove(other)
    return first


def _value(element: Element, namespace: str, name: str) -> str | None:
    """A simple property, whether it is spelled as an attribute or as an element, here or one level below."""
    for part in element.iter():
        found: str | None = part.get(_tag(namespace, name))
        if found is not None:
            return found
        if part.tag == _tag(namespace, name) and part.text:
            return str(part.text)
    return None


def _orientation(photo: Path, root: Element, max_pixels: int) -> int:
    if os.path.lexists(photo):
        return read_orientation(photo, max_pixels=max_pixels)
    stored = _value(_rdf(root), _TIFF, "Orientation")
    return next((orientation for orientation in _TO_STORED if str(orientation) == stored), 1)


def _is_ours(item: Element) -> bool:
    return _value(item, _OURS, "Written") is not None


def _read_region(item: Element) -> Region | None:
    """The face that an item of the list marks; None where it marks a pet, a focus point, or no area."""
    if (_value(item, _REGIONS, "Type") or "Face") != "Face":
        return None
    values = [_value(item, _AREA, name) for name in "xywh"]
    try:
        x, y, w, h = (float(value) for value in values if value is not None)
    except ValueError:
        return None
    return Region(_value(item, _REGIONS, "Name") or "", x, y, w, h)


def _is_at(region: Region, other: Region) -> bool:
    return (
        abs(region.x - other.x) < _SAME_PLACE * max(region.w, other.w)
        and abs(region.y - other.y) < _SAME_PLACE * max(region.h, other.h)
    )  # fmt: skip


def _require_same_shape(holder: Element, stored_wh: tuple[int, int], sidecar: Path) -> None:
    width, height = _value(holder, _DIMENSIONS, "w"), _value(holder, _DIMENSIONS, "h")
    try:
        theirs = float(width or "") / float(height or "")
    except (ValueError, ZeroDivisionError):
        return  # it does not have their dimensions
    if abs(theirs / (stored_wh[0] / stored_wh[1]) - 1) >= _SAME_SHAPE:
        raise OutputError(
            f"{sidecar}: its face regions are for an image of {width} x {height}, but this one is stored as "
            f"{stored_wh[0]} x {stored_wh[1]}; check them in the program that wrote them"
        )


# Writing


def _new_root() -> Element:
    etree = _etree()
    root = etree.Element(_tag(_X, "xmpmeta"), nsmap={"x": _X})
    root.set(_tag(_X, "xmptk"), "facepipe")
    etree.SubElement(root, _tag(_RDF, "RDF"), nsmap={"rdf": _RDF})
    return root


def _new_regions(root: Element) -> Element:
    etree = _etree()
    rdf = _rdf(root)
    description = etree.SubElement(rdf, _tag(_RDF, "Description"), nsmap=_PREFIXES)
    description.set(_tag(_RDF, "about"), "")
    holder = etree.SubElement(description, _tag(_REGIONS, "Regions"))
    holder.set(_tag(_RDF, "parseType"), "Resource")
    description.text, holder.tail, description.tail = _line(holder), _line(description), _line(rdf)
    previous = description.getprevious()
    if previous is None:
        rdf.text = _line(description)
    else:
        previous.tail = _line(description)
    return holder


def _set_dimensions(holder: Element, stored_wh: tuple[int, int]) -> None:
    etree, structure = _etree(), _structure(holder)
    for old in structure.findall(_tag(_REGIONS, "AppliedToDimensions")):
        structure.remove(old)
    dimensions = etree.Element(_tag(_REGIONS, "AppliedToDimensions"), nsmap=_PREFIXES)
    for name, value in (("w", str(stored_wh[0])), ("h", str(stored_wh[1])), ("unit", "pixel")):
        dimensions.set(_tag(_DIMENSIONS, name), value)
    structure.insert(0, dimensions)


def _region_item(region: Region) -> Element:
    etree = _etree()
    item = etree.Element(_tag(_RDF, "li"), nsmap=_PREFIXES)
    structure = etree.SubElement(item, _tag(_RDF, "Description"))
    structure.set(_tag(_REGIONS, "Name"), _NOT_IN_XML.sub("\ufffd", region.name))
    structure.set(_tag(_REGIONS, "Type"), "Face")
    area = etree.SubElement(structure, _tag(_REGIONS, "Area"))
    for name, value in (("x", region.x), ("y", region.y), ("w", region.w), ("h", region.h)):
        area.set(_tag(_AREA, name), f"{value:.6f}")
    area.set(_tag(_AREA, "unit"), "normalized")
    extensions = etree.SubElement(structure, _tag(_REGIONS, "Extensions"))
    extensions.set(_tag(_OURS, "Written"), "facepipe")
    return item


def _drop(holder: Element) -> None:
    """Without a region left, there are no regions; a Description that held nothing else goes too."""
    description = holder.getparent()
    assert description is not None
    description.remove(holder)
    if not len(description) and set(description.attrib) <= {_tag(_RDF, "about")}:
        rdf = description.getparent()
        assert rdf is not None
        rdf.remove(description)
        if not len(rdf):
            rdf.text = None


def _indent(holder: Element) -> None:
    """Lay out the regions, and nothing else, so that the same regions are the same bytes."""
    _etree().indent(holder, level=len(list(holder.iterancestors())))


def _line(element: Element) -> str:
    """A new line with the indentation of an element."""
    return "\n" + "  " * len(list(element.iterancestors()))


def _bytes(root: Element) -> bytes:
    tree = root.getroottree()
    written: bytes = _etree().tostring(tree, encoding="utf-8", pretty_print=True)
    return written


def _tag(namespace: str, name: str) -> str:
    return f"{{{namespace}}}{name}"


def require_lxml() -> None:
    """Fail before the work where sidecars can't be written.

    Raises:
        MissingExtraError: lxml is not installed.
    """
    _etree()


def _etree() -> Any:
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtraError("writing XMP sidecars", "xmp") from error
    return etree
