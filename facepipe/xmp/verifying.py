"""Is a copy of a photo, into which exiftool has written XMP, the same photo otherwise?"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facepipe.core.errors import OutputError, PhotoError
from facepipe.images.reading import read_image, read_xmp
from facepipe.xmp.exiftool import run_exiftool
from facepipe.xmp.packets import XmpError, canonical, parse

_ALL_BUT_XMP = ("-j", "-a", "-u", "-b", "-e", "-G0:1", "--XMP:all", "--File:System:all", "--ExifTool:all")
_OF_THE_FILE = re.compile(
    r"SourceFile|.*(Offsets?|Start)|QuickTime:MediaData(Size)?|RIFF:WebP_Flags|GIF:GIFVersion"
)
"""Tags that tell where the parts of a file lie, or that there is XMP in it."""
_ROOM_BYTES = 1 << 16
"""By how much a file may grow or shrink beside its XMP: padding, and tables of what lies where."""
_JPEG_START, _MARKER = b"\xff\xd8", 0xFF
_SCAN = 0xDA
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))


def verify_copy(copy: Path, original: Path, packet: bytes, photo: Path, max_pixels: int) -> None:
    """Check that a copy has the same pixels and the same other metadata, the wanted XMP, and a likely size.

    Of a JPEG, everything from the first scan to the end of the file has to be the same bytes too: previews,
    motion photos and depth maps behind the picture.

    Args:
        copy: With the XMP.
        original: A file of the same folder: as it was before.
        packet: The XMP that was to be written; empty: none.
        photo: For messages.
        max_pixels: See `facepipe.images.reading.read_image`.

    Raises:
        OutputError: It is not so.
        PhotoError: The original can't be read.
    """
    before = _pixels_hash(original, max_pixels)
    try:
        after, packets = _pixels_hash(copy, max_pixels), read_xmp(copy, max_pixels=max_pixels)
    except PhotoError as error:
        raise _refused(photo, "exiftool's copy can't be read") from error
    if after != before:
        raise _refused(photo, "exiftool's copy has other pixels")
    if not _is_xmp(packets, packet):
        raise _refused(photo, "they can't be read again; use --xmp")
    old_bytes = sum(map(len, read_xmp(original, max_pixels=max_pixels)))
    grown = copy.stat().st_size - original.stat().st_size
    if not -old_bytes - _ROOM_BYTES <= grown <= len(packet) + _ROOM_BYTES:
        raise _refused(photo, f"exiftool's copy has {abs(grown):,} bytes {'more' if grown > 0 else 'less'}")
    _verify_metadata(copy, original, photo)
    if _from_first_scan(copy) != _from_first_scan(original):
        raise _refused(photo, "exiftool's copy differs behind its header")


def _is_xmp(packets: Sequence[bytes], wanted: bytes) -> bool:
    """Return whether the packets that were read are the one wanted; empty: none."""
    try:
        return [canonical(parse(packet)) for packet in packets] == (
            [canonical(parse(wanted))] if wanted else []
        )
    except XmpError:
        return False


def _verify_metadata(copy: Path, original: Path, photo: Path) -> None:
    printed = run_exiftool([*_ALL_BUT_XMP, original.name, copy.name], copy.parent, photo)
    try:
        before, after = (dict(_lasting(record)) for record in json.loads(printed))
    except ValueError as error:
        raise _refused(photo, "exiftool does not tell what it wrote") from error
    different = sorted(tag for tag in before.keys() | after.keys() if before.get(tag) != after.get(tag))
    if different:
        raise _refused(photo, f"exiftool's copy has another {different[0]}")


def _lasting(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for tag, value in record.items():
        if not _OF_THE_FILE.fullmatch(tag):
            yield tag, value


def _from_first_scan(file: Path) -> bytes | None:
    """Hash of a JPEG file from its first scan on; None: it is no JPEG."""
    with file.open("rb") as stream:
        if stream.read(2) != _JPEG_START:
            return None
        while header := stream.read(2):
            marker = header[-1]
            if len(header) < 2 or header[0] != _MARKER:
                break
            if marker == _SCAN:
                return hashlib.file_digest(stream, "sha256").digest()
            if marker == _MARKER:  # padding
                stream.seek(-1, os.SEEK_CUR)
            elif marker not in _STANDALONE:
                stream.seek(int.from_bytes(stream.read(2)) - 2, os.SEEK_CUR)
    return None


def _refused(photo: Path, reason: str) -> OutputError:
    return OutputError(f"{photo}: names are not embedded: {reason}")


def _pixels_hash(photo: Path, max_pixels: int) -> tuple[tuple[int, ...], bytes]:
    pixels = read_image(photo, max_pixels=max_pixels)
    return pixels.shape, hashlib.blake2b(pixels.data).digest()
