"""Named faces in an XMP packet, beside what others have written there, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from facepipe.xmp.packets import (
    RDF,
    Element,
    containers,
    drop_property,
    etree,
    indent,
    new_property,
    properties,
    structure,
    tag,
    xml_text,
)
from facepipe.xmp.regions import (
    AREA,
    DIMENSIONS,
    OURS,
    REGIONS,
    Region,
    applied_to,
    is_ours,
    is_same_shape,
    region_of_item,
)
from facepipe.xmp.tags import has_tags, put_tags

_PREFIXES = {"mwg-rs": REGIONS, "stArea": AREA, "stDim": DIMENSIONS, "facepipe": OURS}
_SAME_PLACE = 0.5
"""Share of a foreign region's sides by which the centre of a face may be off and still be that face."""


class OtherShapeError(ValueError):
    """The regions of a packet are for an image of another shape."""


def put_faces(
    root: Element, regions: Sequence[Region], stored_wh: tuple[int, int], *, tags: bool
) -> list[Region]:
    """Give a packet these face regions, in place of those that facepipe wrote before.

    A face that somebody else has marked is left to them.

    Args:
        root: Of the packet.
        regions: In the stored frame.
        stored_wh: Width and height of the stored image in pixels.
        tags: Whether the names become keywords too; they do in any case where facepipe wrote some before.

    Returns:
        The regions that are written: those of faces that nobody else has marked.

    Raises:
        OtherShapeError: The packet has regions of others for an image of another shape.
    """
    written = _put_regions(root, regions, stored_wh)
    if tags or has_tags(root):
        put_tags(root, [region.name for region in written])
    return written


def holds_ours(root: Element) -> bool:
    """Return whether facepipe has written regions or keywords into a packet."""
    holders = properties(root, REGIONS, "Regions")
    return has_tags(root) or any(is_ours(item) for holder in holders for item in holder.iter(tag(RDF, "li")))


def _put_regions(root: Element, regions: Sequence[Region], stored_wh: tuple[int, int]) -> list[Region]:
    holder = next(iter(properties(root, REGIONS, "Regions")), None)
    ours = [] if holder is None else list(filter(is_ours, holder.iter(tag(RDF, "li"))))
    if not regions and not ours:
        return []
    for item in ours:
        item.getparent().remove(item)
    if holder is None:
        holder = new_property(root, REGIONS, "Regions", _PREFIXES)
        holder.set(tag(RDF, "parseType"), "Resource")
    listed = _list_of_regions(holder)
    if not regions and not len(listed):
        drop_property(holder)
        return []
    written = _append_regions(holder, listed, regions, stored_wh) if regions else []
    indent(holder)
    return written


def _append_regions(
    holder: Element, listed: Element, regions: Sequence[Region], stored_wh: tuple[int, int]
) -> list[Region]:
    if not len(listed):
        _set_dimensions(holder, stored_wh)
    theirs_wh = applied_to(holder)
    if theirs_wh is not None and not is_same_shape(theirs_wh, stored_wh):
        raise OtherShapeError(
            f"its face regions are for an image of {theirs_wh[0]:g} x {theirs_wh[1]:g}, but this one is "
            f"stored as {stored_wh[0]} x {stored_wh[1]}; check them in the program that wrote them"
        )
    others = [region for region in map(region_of_item, listed) if region is not None]
    written = [region for region in regions if not any(_is_at(region, other) for other in others)]
    for region in written:
        listed.append(_region_item(region))
    return written


def _is_at(region: Region, other: Region) -> bool:
    return (
        abs(region.x - other.x) < _SAME_PLACE * max(region.w, other.w)
        and abs(region.y - other.y) < _SAME_PLACE * max(region.h, other.h)
    )  # fmt: skip


def _list_of_regions(holder: Element) -> Element:
    """The container of the list of regions: a Bag, Seq or Alt, whichever is there; a new Bag where none is.

    Further containers, with which readers find no region at all, are removed where they are empty: facepipe
    once put a Bag beside a Seq.
    """
    lxml, fields = etree(), structure(holder)
    listed = fields.find(tag(REGIONS, "RegionList"))
    if listed is None:
        listed = lxml.SubElement(fields, tag(REGIONS, "RegionList"))
    first, *others = containers(listed) or [lxml.SubElement(listed, tag(RDF, "Bag"))]
    for other in others:
        if not len(other):
            listed.remove(other)
    return first


def _set_dimensions(holder: Element, stored_wh: tuple[int, int]) -> None:
    fields = structure(holder)
    for old in fields.findall(tag(REGIONS, "AppliedToDimensions")):
        fields.remove(old)
    dimensions = etree().Element(tag(REGIONS, "AppliedToDimensions"), nsmap=_PREFIXES)
    for name, value in (("w", str(stored_wh[0])), ("h", str(stored_wh[1])), ("unit", "pixel")):
        dimensions.set(tag(DIMENSIONS, name), value)
    fields.insert(0, dimensions)


def _region_item(region: Region) -> Element:
    lxml = etree()
    item = lxml.Element(tag(RDF, "li"), nsmap={"rdf": RDF, **_PREFIXES})
    fields = lxml.SubElement(item, tag(RDF, "Description"))
    fields.set(tag(REGIONS, "Name"), xml_text(region.name))
    fields.set(tag(REGIONS, "Type"), "Face")
    area = lxml.SubElement(fields, tag(REGIONS, "Area"))
    for name, value in (("x", region.x), ("y", region.y), ("w", region.w), ("h", region.h)):
        area.set(tag(AREA, name), f"{value:.6f}")
    area.set(tag(AREA, "unit"), "normalized")
    extensions = lxml.SubElement(fields, tag(REGIONS, "Extensions"))
    extensions.set(tag(OURS, "Written"), "facepipe")
    return item
