"""Work and memory that a JPEG takes, from its headers, without decoding it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_COMMON = frozenset((0xC0, 0xC1, 0xC2))
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FIRST_BLOCK_BYTES, _LAST_BLOCK_BYTES = 64, 1 << 20
_COEFFICIENT_BYTES = 2
_BLOCK_PX = 8


@dataclass(frozen=True, slots=True)
class Component:
    """A colour of a JPEG: its number, and how finely it is sampled beside the others."""

    id: int
    across: int
    down: int


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The picture of a JPEG.

    Attributes:
        size_wh: Width and height in pixels.
        kind: The marker that it begins with, 0xC0 to 0xCF.
        components: Its colours.
        first_scan: Where the first scan's header begins; the end of the file if there is none.
        first_components: Numbers of the components of the first scan.
    """

    size_wh: tuple[int, int]
    kind: int
    components: tuple[Component, ...]
    first_scan: int
    first_components: bytes

    @property
    def is_common(self) -> bool:
        """Whether it is baseline, extended or progressive in Huffman codes, which all decoders read."""
        return self.kind in _COMMON

    @property
    def several_scans(self) -> bool:
        """Whether decoders keep all coefficients until the last scan was read."""
        return self.kind in _PROGRESSIVE or len(self.first_components) < len(self.components)

    @property
    def samples(self) -> Counter[int]:
        """How many samples each component has, in whole blocks, by its number."""
        across = max((component.across for component in self.components), default=0) or 1
        down = max((component.down for component in self.components), default=0) or 1
        units = -(-self.size_wh[0] // (_BLOCK_PX * across)) * -(-self.size_wh[1] // (_BLOCK_PX * down))
        samples: Counter[int] = Counter()
        for component in self.components:
            samples[component.id] += units * component.across * component.down * _BLOCK_PX**2
        return samples

    @property
    def coefficient_bytes(self) -> int:
        """What a decoder keeps of it beside the pixels."""
        return _COEFFICIENT_BYTES * sum(self.samples.values()) if self.several_scans else 0


def read_frame(stream: BufferedReader | BytesIO) -> FrameHeader | None:
    """Read the headers of a JPEG up to its first scan; None where they are damaged."""
    size_wh, kind = (0, 0), 0
    components: tuple[Component, ...] = ()
    for marker, at, segment in _segments(stream, 2):
        if marker in _START_OF_FRAME:
            size_wh = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")
            components, kind = _components(segment), marker
        if marker == _START_OF_SCAN:
            header = FrameHeader(size_wh, kind, components, at, _scanned(segment))
            return header if components else None
    return None


def scanned_samples(stream: BufferedReader | BytesIO, frame: FrameHeader) -> int:
    """Samples that all scans go through, each as often as scans hold it: a measure of the work."""
    samples = frame.samples
    return sum(
        sum(samples[component] for component in _scanned(segment))
        for marker, _, segment in _segments(stream, frame.first_scan)
        if marker == _START_OF_SCAN
    )


def _components(segment: bytes) -> tuple[Component, ...]:
    triples = zip(segment[6::3], segment[7::3], segment[8::3], strict=False)
    return tuple(Component(id, factors >> 4, factors & 15) for id, factors, _ in triples)


def _scanned(segment: bytes) -> bytes:
    return segment[1 : 1 + 2 * segment[0] : 2] if segment else b""


def _segments(stream: BufferedReader | BytesIO, at: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield each marker up to the end of the picture, where it stands, and its segment; data are passed over.

    Embedded pictures are in segments, and other pictures behind the end: neither is taken for scans.
    """
    while (found := _next_marker(stream, at)) is not None:
        at, marker = found
        if marker == _END_OF_IMAGE:
            return
        length = 0
        segment = b""
        if marker not in _WITHOUT_LENGTH:
            stream.seek(at + 2)
            length = int.from_bytes(stream.read(2), "big")
            segment = stream.read(max(0, length - 2))
        yield marker, at, segment
        at += 2 + length


def _next_marker(stream: BufferedReader | BytesIO, at: int) -> tuple[int, int] | None:
    """Where the next marker stands, from a place on, and which it is."""
    size = _FIRST_BLOCK_BYTES
    while True:
        stream.seek(at)
        data = stream.read(size)
        if found := _MARKER.search(data):
            return at + found.start(), found[0][1]
        if len(data) < size:
            return None
        at += len(data) - 1  # a marker may lie across the end
        size = min(2 * size, _LAST_BLOCK_BYTES)
