"""Names as keywords, in the properties where photo managers look for people.

What facepipe added is listed in the packet itself, so that it can follow the names, and keywords that
somebody else gave stay, also where they are names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facepipe.xmp.packets import (
    RDF,
    Element,
    containers,
    drop_property,
    etree,
    indent,
    items,
    new_property,
    properties,
    tag,
    xml_text,
)
from facepipe.xmp.regions import OURS

_LIST_OF_OURS = "Tags"


@dataclass(frozen=True, slots=True)
class _Keywords:
    """A property that lists keywords.

    Attributes:
        prefix: Of its namespace.
        namespace: URI.
        name: Within the namespace.
        container: Kind of list.
        parents: What stands before a person's name, the separator of levels with it.
    """

    prefix: str
    namespace: str
    name: str
    container: str = "Bag"
    parents: str = ""

    @property
    def key(self) -> str:
        """How the list of facepipe's tags names it."""
        return f"{self.prefix}:{self.name}"

    def text_of(self, name: str) -> str:
        """Return a person's keyword; a separator of levels in the name becomes `_`."""
        separator = self.parents[-1:]
        return self.parents + xml_text(name.replace(separator, "_") if separator else name)


_PROPERTIES = (
    _Keywords("dc", "http://purl.org/dc/elements/1.1/", "subject"),
    _Keywords("Iptc4xmpExt", "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "PersonInImage"),
    _Keywords("lr", "http://ns.adobe.com/lightroom/1.0/", "hierarchicalSubject", parents="People|"),
    _Keywords("digiKam", "http://www.digikam.org/ns/1.0/", "TagsList", container="Seq", parents="People/"),
)
"""Plain keywords; the IPTC's for people; the trees of Lightroom and of digiKam."""


def has_tags(root: Element) -> bool:
    """Return whether facepipe has written keywords into a packet."""
    return bool(properties(root, OURS, _LIST_OF_OURS))


def put_tags(root: Element, names: Sequence[str]) -> None:
    """Give a packet these people as keywords, in place of those that facepipe wrote before.

    Args:
        root: Of the packet.
        names: Of people, in the order of their regions.
    """
    ours = _take_list_of_ours(root)
    added = []
    for keywords in _PROPERTIES:
        _remove(root, keywords, ours)
        texts = _append(root, keywords, dict.fromkeys(map(keywords.text_of, names)))
        added += [f"{keywords.key}={text}" for text in texts]
    if added:
        listed = new_property(root, OURS, _LIST_OF_OURS, {"facepipe": OURS})
        _extend(listed, "Bag", added)


def _take_list_of_ours(root: Element) -> Counter[str]:
    """Remove the list of what facepipe added before, and return it."""
    ours: Counter[str] = Counter()
    for listed in properties(root, OURS, _LIST_OF_OURS):
        ours.update(item.text or "" for item in items(listed))
        drop_property(listed)
    return ours


def _remove(root: Element, keywords: _Keywords, ours: Counter[str]) -> None:
    for listed in properties(root, keywords.namespace, keywords.name):
        mine = []
        for item in items(listed):
            entry = f"{keywords.key}={item.text or ''}"
            if ours[entry] > 0:
                ours[entry] -= 1
                mine.append(item)
        for item in mine:
            item.getparent().remove(item)
        if mine and not any(True for _ in items(listed)):
            drop_property(listed)
        elif mine:
            indent(listed)


def _append(root: Element, keywords: _Keywords, texts: Iterable[str]) -> list[str]:
    """Append what is not there yet; returns it."""
    there = properties(root, keywords.namespace, keywords.name)
    known = {item.text for listed in there for item in items(listed)}
    missing = [text for text in texts if text not in known]
    if missing:
        prefixes = {keywords.prefix: keywords.namespace}
        listed = there[0] if there else new_property(root, keywords.namespace, keywords.name, prefixes)
        _extend(listed, keywords.container, missing)
    return missing


def _extend(listed: Element, kind: str, texts: Sequence[str]) -> None:
    lxml = etree()
    container = next(iter(containers(listed)), None)
    if container is None:
        container = lxml.SubElement(listed, tag(RDF, kind))
    for text in texts:
        lxml.SubElement(container, tag(RDF, "li")).text = text
    indent(listed)
