"""XMP sidecars with face regions, as photo managers read them; whatever else a sidecar holds stays in it.

The form is that of the Metadata Working Group ("Guidelines for Handling Image Metadata", 2.0, section 5.9):
normalised areas by their centre, in the frame of the upright photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facepipe.errors import MissingExtraError, OutputError
from facepipe.faces import Faces
from facepipe.files import atomic_write_bytes

Element = Any
"""Of lxml, which has no types."""

_X = "adobe:ns:meta/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_REGIONS = "http://www.metadataworkinggroup.com/schemas/regions/"
_AREA = "http://ns.adobe.com/xmp/sType/Area#"
_DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_OURS = "https://facepipe.invalid/xmp/1.0/"
_PREFIXES = {"rdf": _RDF, "mwg-rs": _REGIONS, "stArea": _AREA, "stDim": _DIMENSIONS, "facepipe": _OURS}
_SAME_PLACE = 0.5
"""Share of a foreign region's sides by which the centre of a face may be off and still be that face."""


@dataclass(frozen=True, slots=True)
class Region:
    """A named area: centre and sides as shares of the photo's width and height."""

    name: str
    x: float
    y: float
    w: float
    h: float


def sidecar_path(photo: Path) -> Path:
    """`photo.jpg.xmp`: the whole name, so that `photo.png` beside it has one of its own."""
    return photo.with_name(f"{photo.name}.xmp")


def named_regions(faces: Faces, size_wh: tuple[int, int]) -> list[Region]:
    """The faces that have a name, in a photo of that size."""
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

    Args:
        photo: Need not exist.
        size_wh: Width and height of the upright photo in pixels.
        faces: With matches.

    Returns:
        The sidecar; None where there was nothing to write, and none to take anything from.

    Raises:
        OutputError: The sidecar that is there is no XMP, or speaks of a photo of another shape, or can't be
            written; it is left as it is.
        MissingExtraError: lxml is not installed.
    """
    sidecar = sidecar_path(photo)
    regions = named_regions(faces, size_wh)
    if not regions and not sidecar.exists():
        return None
    root = _parse(sidecar) if sidecar.exists() else _new_root()
    before = _bytes(root)
    _put(root, regions, size_wh, sidecar)
    after = _bytes(root)
    if sidecar.exists() and after == before:
        return sidecar
    try:
        atomic_write_bytes(sidecar, after)
    except OSError as error:
        raise OutputError(
            f"{sidecar}: can't be written ({error.strerror}); make its folder writable"
        ) from error
    return sidecar


def _put(root: Element, regions: list[Region], size_wh: tuple[int, int], sidecar: Path) -> None:
    holder = _regions_element(root)
    if holder is None:
        if not regions:
            return
        holder = _new_regions(root, size_wh)
    bag = _bag(holder)
    for item in bag.findall(_tag(_RDF, "li")):
        if _is_ours(item):
            bag.remove(item)
    foreign = [region for region in map(_read_region, bag) if region is not None]
    if len(bag) and not _same_shape(holder, size_wh):
        raise OutputError(
            f"{sidecar}: its face regions are of a photo of another shape; turn the photo back, or move the "
            "sidecar away"
        )
    for region in regions:
        if not any(_is_at(region, other) for other in foreign):
            bag.append(_region_item(region))
    if not len(bag):
        _drop(holder)


# Reading


def _parse(sidecar: Path) -> Element:
    etree = _etree()
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=False)
    try:
        root = etree.fromstring(sidecar.read_bytes(), parser)
    except (OSError, etree.XMLSyntaxError) as error:
        raise OutputError(f"{sidecar}: can't be read as XMP ({error}); move it away") from error
    if root.find(f".//{_tag(_RDF, 'RDF')}") is None and root.tag != _tag(_RDF, "RDF"):
        raise OutputError(f"{sidecar}: this is no XMP; move it away")
    return root


def _rdf(root: Element) -> Element:
    rdf = root if root.tag == _tag(_RDF, "RDF") else root.find(f".//{_tag(_RDF, 'RDF')}")
    assert rdf is not None
    return rdf


def _regions_element(root: Element) -> Element | None:
    return _rdf(root).find(f"{_tag(_RDF, 'Description')}/{_tag(_REGIONS, 'Regions')}")


def _bag(holder: Element) -> Element:
    """The list of regions, made where there is none. Structures come in two spellings: attributes of the
    element (parseType Resource) or of a Description inside."""
    etree = _etree()
    bag: Element | None = holder.find(f".//{_tag(_REGIONS, 'RegionList')}/{_tag(_RDF, 'Bag')}")
    if bag is not None:
        return bag
    inside = holder.find(_tag(_RDF, "Description"))
    structure = holder if inside is None else inside
    old = structure.find(_tag(_REGIONS, "RegionList"))
    listed = etree.SubElement(structure, _tag(_REGIONS, "RegionList")) if old is None else old
    return etree.SubElement(listed, _tag(_RDF, "Bag"))


def _value(element: Element, namespace: str, name: str) -> str | None:
    """A simple property, whether it is spelled as an attribute or as an element, here or one level below."""
    for part in element.iter():
        found: str | None = part.get(_tag(namespace, name))
        if found is not None:
            return found
        if part.tag == _tag(namespace, name) and part.text:
            return str(part.text)
    return None


def _is_ours(item: Element) -> bool:
    return _value(item, _OURS, "Written") is not None


def _read_region(item: Element) -> Region | None:
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


def _same_shape(holder: Element, size_wh: tuple[int, int]) -> bool:
    width, height = _value(holder, _DIMENSIONS, "w"), _value(holder, _DIMENSIONS, "h")
    try:
        theirs = float(width or "") / float(height or "")
    except (ValueError, ZeroDivisionError):
        return True  # they do not say
    return abs(theirs / (size_wh[0] / size_wh[1]) - 1) < 0.02


# Writing


def _new_root() -> Element:
    etree = _etree()
    root = etree.Element(_tag(_X, "xmpmeta"), nsmap={"x": _X})
    root.set(_tag(_X, "xmptk"), "facepipe")
    etree.SubElement(root, _tag(_RDF, "RDF"), nsmap={"rdf": _RDF})
    return root


def _new_regions(root: Element, size_wh: tuple[int, int]) -> Element:
    etree = _etree()
    description = etree.SubElement(_rdf(root), _tag(_RDF, "Description"), nsmap=_PREFIXES)
    description.set(_tag(_RDF, "about"), "")
    holder = etree.SubElement(description, _tag(_REGIONS, "Regions"))
    holder.set(_tag(_RDF, "parseType"), "Resource")
    dimensions = etree.SubElement(holder, _tag(_REGIONS, "AppliedToDimensions"))
    for name, value in (("w", str(size_wh[0])), ("h", str(size_wh[1])), ("unit", "pixel")):
        dimensions.set(_tag(_DIMENSIONS, name), value)
    return holder


def _region_item(region: Region) -> Element:
    etree = _etree()
    item = etree.Element(_tag(_RDF, "li"), nsmap=_PREFIXES)
    structure = etree.SubElement(item, _tag(_RDF, "Description"))
    structure.set(_tag(_REGIONS, "Name"), region.name)
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
        from lxml import etree  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("writing XMP sidecars", "xmp") from error
    return etree
