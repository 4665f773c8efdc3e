"""XMP packets in photo files: where each format keeps them."""

from __future__ import annotations

import os
import re
import struct
import zlib
from io import BufferedReader, BytesIO

from PIL import Image

MOST_XMP_BYTES = 16_000_000
"""Of one packet."""
_JPEG_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENSION_NAMED = re.compile(rb"HasExtendedXMP\W{1,3}([0-9A-F]{32})")
_EXTENSION_HEADER = struct.Struct(">32sII")
_PNG_KEYWORD = b"XML:com.adobe.xmp\0"
_PNG_SIGNATURE_BYTES = 8
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_CHECKSUM_BYTES = 4


def xmp_packets(photo: Image.Image, stream: BufferedReader | BytesIO) -> list[bytes]:
    """Return the XMP packets of a photo whose header was read: none, one, or a JPEG's two.

    Args:
        photo: As Pillow opened it.
        stream: Its file.

    Raises:
        ValueError: A packet is larger than `MOST_XMP_BYTES`, or damaged.
        zlib.error: A compressed packet is damaged.
    """
    if photo.format == "PNG":
        packets = _png_packets(stream)
    else:
        stored = photo.info.get("xmp")
        packets = [stored] if isinstance(stored, bytes) else []
    if photo.format == "JPEG" and packets:
        packets += _jpeg_extension(photo, packets[0])
    if any(len(packet) > MOST_XMP_BYTES for packet in packets):
        raise ValueError(f"XMP of more than {MOST_XMP_BYTES:,} bytes")
    return packets


def _jpeg_extension(photo: Image.Image, packet: bytes) -> list[bytes]:
    """Return the second packet of a JPEG, which the first one names, put together from its segments."""
    named = _EXTENSION_NAMED.search(packet)
    if named is None:
        return []
    parts = {}
    for marker, segment in getattr(photo, "applist", ()):
        if marker == "APP1" and segment.startswith(_JPEG_EXTENSION):
            start = len(_JPEG_EXTENSION) + _EXTENSION_HEADER.size
            identity, _, offset = _EXTENSION_HEADER.unpack(segment[len(_JPEG_EXTENSION) : start])
            if identity == named[1]:
                parts[offset] = segment[start:]
    return [b"".join(parts[offset] for offset in sorted(parts))] if parts else []


def _png_packets(stream: BufferedReader | BytesIO) -> list[bytes]:
    """Return a PNG's packet: many programs write it behind the pixels, which are not read for it."""
    stream.seek(_PNG_SIGNATURE_BYTES)
    while len(header := stream.read(_PNG_CHUNK.size)) == _PNG_CHUNK.size:
        size, kind = _PNG_CHUNK.unpack(header)
        if kind == b"iTXt" and size <= MOST_XMP_BYTES:
            text = stream.read(size)
            if text.startswith(_PNG_KEYWORD):
                return [_png_text(text[len(_PNG_KEYWORD) :])]
            size = 0
        stream.seek(size + _PNG_CHECKSUM_BYTES, os.SEEK_CUR)
    return []


def _png_text(text: bytes) -> bytes:
    """Return the text behind a keyword: whether it is compressed, how, its language and its translation."""
    is_compressed = text[:1] == b"\x01"
    *_, packet = text[2:].split(b"\0", 2)
    if not is_compressed:
        return packet
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(packet, MOST_XMP_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"XMP of more than {MOST_XMP_BYTES:,} bytes")
    return inflated
