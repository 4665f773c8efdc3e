"""XMP packets: RDF in XML, parsed without opening entities or other files, and within bounds."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facepipe.core.errors import MissingExtraError
from facepipe.core.files import open_regular

Element = Any
"""Of lxml, which has no types."""

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
LARGEST_PACKET_BYTES = 16_000_000
"""Regions of thousands of faces take a thousandth of it."""
_X = "adobe:ns:meta/"
_CONTAINERS = ("Bag", "Seq", "Alt")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmpError(ValueError):
    """What was given is no XMP; the message says why, without the file's name."""


def parse_file(path: Path) -> Element:
    """Parse a sidecar; see `parse`.

    Raises:
        XmpError: It is no XMP, or no ordinary file that can be read.
        MissingExtraError: lxml is not installed.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(LARGEST_PACKET_BYTES + 1)
    except OSError as error:
        raise XmpError(f"can't be read as XMP ({' '.join(str(error).split())})") from error
    return parse(data)


def parse(data: bytes) -> Element:
    """Return the root of an XMP packet, in which there is an RDF element.

    Raises:
        XmpError: It is no XMP, or larger than `LARGEST_PACKET_BYTES`.
        MissingExtraError: lxml is not installed.
    """
    if len(data) > LARGEST_PACKET_BYTES:
        raise XmpError(f"can't be read as XMP (more than {LARGEST_PACKET_BYTES:,} bytes)")
    lxml = etree()
    parser = lxml.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=False)
    try:
        root = lxml.fromstring(data.rstrip(b"\0") if data.startswith(b"<") else data, parser)
    except lxml.XMLSyntaxError as error:
        raise XmpError(f"can't be read as XMP ({' '.join(str(error).split())})") from error
    if root.find(f".//{tag(RDF, 'RDF')}") is None and root.tag != tag(RDF, "RDF"):
        raise XmpError("this is no XMP")
    return root


def new_root() -> Element:
    """Return the root of an empty packet."""
    lxml = etree()
    root = lxml.Element(tag(_X, "xmpmeta"), nsmap={"x": _X})
    root.set(tag(_X, "xmptk"), "facepipe")
    lxml.SubElement(root, tag(RDF, "RDF"), nsmap={"rdf": RDF})
    return root


def to_bytes(root: Element) -> bytes:
    """Return the packet as it is written."""
    written: bytes = etree().tostring(root.getroottree(), encoding="utf-8", pretty_print=True)
    return written


def canonical(root: Element) -> bytes:
    """Return what two packets share that differ in spelling only, or in white space round them."""
    written: bytes = etree().tostring(root, method="c14n", with_comments=False)
    return written


def is_empty(root: Element) -> bool:
    """Return whether a packet has no property."""
    return not len(rdf_of(root))


def content(root: Element) -> bytes:
    """Return what two packets share that differ in spelling or layout only."""
    copied = copy.deepcopy(root)
    for part in copied.iter():
        part.text, part.tail = _unless_blank(part.text), _unless_blank(part.tail)
    return canonical(copied)


def _unless_blank(text: str | None) -> str | None:
    return text if text is None or text.strip() else None


def rdf_of(root: Element) -> Element:
    """Return the RDF element of a packet."""
    rdf = root if root.tag == tag(RDF, "RDF") else root.find(f".//{tag(RDF, 'RDF')}")
    assert rdf is not None
    return rdf


def properties(root: Element, namespace: str, name: str) -> list[Element]:
    """Return the elements of a property, one for each description that has it."""
    found: list[Element] = rdf_of(root).findall(f"{tag(RDF, 'Description')}/{tag(namespace, name)}")
    return found


def structure(element: Element) -> Element:
    """What has the fields of a structure: the element itself (parseType Resource) or a Description in it."""
    inside = element.find(tag(RDF, "Description"))
    return element if inside is None else inside


def containers(element: Element) -> list[Element]:
    """Return the Bags, Seqs and Alts of a property: one, where it is a well-formed list."""
    kinds = {tag(RDF, kind) for kind in _CONTAINERS}
    return [child for child in element if child.tag in kinds]


def items(element: Element) -> Iterator[Element]:
    """Yield the items of a property that is a list."""
    for container in containers(element):
        yield from container.iterchildren(tag(RDF, "li"))


def value(element: Element, namespace: str, name: str) -> str | None:
    """A simple property, whether it is spelled as an attribute or as an element, here or one level below."""
    for part in element.iter():
        found: str | None = part.get(tag(namespace, name))
        if found is not None:
            return found
        if part.tag == tag(namespace, name) and part.text:
            return str(part.text)
    return None


def tag(namespace: str, name: str) -> str:
    """Return the name of an element or attribute as lxml has it."""
    return f"{{{namespace}}}{name}"


def xml_text(text: str) -> str:
    """Return text with characters that XML forbids as U+FFFD."""
    return _NOT_IN_XML.sub("\ufffd", text)


# Writing


def new_property(root: Element, namespace: str, name: str, prefixes: dict[str, str]) -> Element:
    """Append an empty property in a description of its own."""
    lxml = etree()
    rdf = rdf_of(root)
    description = lxml.SubElement(rdf, tag(RDF, "Description"), nsmap={"rdf": RDF, **prefixes})
    description.set(tag(RDF, "about"), "")
    added = lxml.SubElement(description, tag(namespace, name))
    description.text, added.tail, description.tail = _line(added), _line(description), _line(rdf)
    previous = description.getprevious()
    if previous is None:
        rdf.text = _line(description)
    else:
        previous.tail = _line(description)
    return added


def drop_property(element: Element) -> None:
    """Remove a property; a description that held nothing else goes too."""
    description = element.getparent()
    assert description is not None
    description.remove(element)
    if not len(description) and set(description.attrib) <= {tag(RDF, "about")}:
        rdf = description.getparent()
        assert rdf is not None
        rdf.remove(description)
        if not len(rdf):
            rdf.text = None


def indent(element: Element) -> None:
    """Lay out a property, and nothing else, so that the same content is the same bytes."""
    etree().indent(element, level=len(list(element.iterancestors())))


def _line(element: Element) -> str:
    """A new line with the indentation of an element."""
    return "\n" + "  " * len(list(element.iterancestors()))


def require_lxml() -> None:
    """Fail before the work where XMP can't be read or written.

    Raises:
        MissingExtraError: lxml is not installed.
    """
    etree()


def etree() -> Any:
    """Import lxml.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtraError("reading and writing XMP", "xmp") from error
    return etree
