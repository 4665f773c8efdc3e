"""Photo files that are damaged where no pixel is, rewritten so that decoders take them."""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from io import BufferedReader, BytesIO

import numpy as np

from facepipe.core.faces import UInt8Array
from facepipe.images.decoding_memory import MemoryBusyError
from facepipe.images.jpeg import read_frame

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_NEEDED_CHUNKS = (b"tRNS", b"eXIf")
"""Chunks of a PNG that are not critical and yet change the picture: transparency and orientation."""
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_MOST_TEXT_BYTES = 1 << 20
_END_OF_JPEG = b"\xff\xd9"
_FILLER = b"\xfe" + bytes(37 * i % 251 for i in range(500))
"""Taken for samples where some are missing: it has no 0xff, and begins unlike the zeros of decoders."""
_TAIL_BYTES = 16
MOST_FILE_BYTES = 1 << 28
"""Larger files are not salvaged: they are read into memory."""
_TRAILER_END = b"SEFT"
_SCAN = re.compile(rb"\xff\xda")
_COEFFICIENTS = set(range(64))


def salvaged(stream: BufferedReader | BytesIO, decode: Callable[[bytes], UInt8Array]) -> bytes | None:
    """A file to read instead of one that was refused; None where pixels are missing, or nothing else is.

    A PNG loses damaged, cut off and overlong chunks of text, profiles and other extras. A JPEG that ends
    without a marker, or has a trailer in the marker's place, gets one if all its pixels are there.

    Args:
        stream: What a decoder refused, in any format.
        decode: Gives the pixels of a file, or raises.
    """
    file = _begun_by((_PNG, _JPEG), stream)
    if file.startswith(_PNG):
        needed = _PNG + b"".join(_needed_chunks(file))
        return needed if len(needed) < len(file) else None
    return _ended_jpeg(file, decode) if file else None


def is_open_ended(stream: BufferedReader | BytesIO) -> bool:
    """Return whether a file is a JPEG with Samsung's trailer where its end should be.

    Decoders may take the trailer for pixels: whether they are all there is for `salvaged` to find out.
    """
    stream.seek(-min(len(_TRAILER_END), stream.seek(0, os.SEEK_END)), os.SEEK_END)
    has_trailer = stream.read() == _TRAILER_END
    file = _begun_by((_JPEG,), stream) if has_trailer else b""
    stream.seek(0)
    _, first_scan = _components(file)
    return bool(file) and file.find(_END_OF_JPEG, first_scan, _samsung_trailer(file)) < 0


def _begun_by(signatures: tuple[bytes, ...], stream: BufferedReader | BytesIO) -> bytes:
    """Return the whole file where it begins with a signature and memory holds it; else nothing."""
    stream.seek(0)
    beginning = stream.read(max(map(len, signatures)))
    if not beginning.startswith(signatures):
        return b""
    file = beginning + stream.read(MOST_FILE_BYTES)
    return b"" if stream.read(1) else file


# PNG


def _needed_chunks(file: bytes) -> Iterator[bytes]:
    """Whole chunks of a PNG; critical ones as they are, even damaged, so that they are refused again."""
    at, text_bytes_left = len(_PNG), _MOST_TEXT_BYTES
    while at < len(file):
        length = int.from_bytes(file[at : at + 4], "big")
        chunk = file[at : at + length + 12]
        kind, content, checksum = chunk[4:8], chunk[8 : length + 8], chunk[length + 8 :]
        at += len(chunk)
        if kind[:1].isupper():
            yield chunk
        elif int.from_bytes(checksum, "big") == zlib.crc32(kind + content) and len(checksum) == 4:
            size = _text_bytes(kind, content, text_bytes_left) if kind in _TEXT_CHUNKS else 0
            if size <= text_bytes_left and kind in (*_NEEDED_CHUNKS, *_TEXT_CHUNKS):
                text_bytes_left -= size
                yield chunk  # a text may hold the orientation


def _text_bytes(kind: bytes, content: bytes, max_bytes: int) -> int:
    """Bytes of an inflated chunk of text, counted no further than `max_bytes` + 1."""
    _, _, text = content.partition(b"\0")
    deflated = kind == b"zTXt"
    if deflated:
        text = text[1:]
    if kind == b"iTXt":
        deflated, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(text, max_bytes + 1)) if deflated else len(text)
    except zlib.error:
        return 0


# JPEG


def _ended_jpeg(file: bytes, decode: Callable[[bytes], UInt8Array]) -> bytes | None:
    """Return the JPEG with an end, where its scans are whole and reach to where they are cut.

    More data behind a whole picture changes nothing in it; behind half a picture it becomes pixels. And other
    data in place of the last bytes changes a picture, but for one that had ended before them.
    """
    scans = file[: _samsung_trailer(file)].removesuffix(b"\xff")
    if not _has_all_scans(scans):
        return None
    ended = scans + _END_OF_JPEG
    pixels = _decoded(ended, decode)
    if pixels is None or not _is_same(pixels, _decoded(scans + _FILLER + _END_OF_JPEG, decode)):
        return None
    shortened = _decoded(scans[:-_TAIL_BYTES] + _FILLER + _END_OF_JPEG, decode)
    return None if _is_same(pixels, shortened) else ended


def _decoded(file: bytes, decode: Callable[[bytes], UInt8Array]) -> UInt8Array | None:
    """Return the pixels of a photo file; None where it can't be decoded."""
    try:
        return decode(file)
    except (MemoryBusyError, MemoryError):
        raise
    except Exception:  # decoders raise nearly every class of error
        return None


def _is_same(pixels: UInt8Array, other: UInt8Array | None) -> bool:
    return other is not None and np.array_equal(pixels, other)


def _has_all_scans(file: bytes) -> bool:
    """Return whether scans give every coefficient of every component, to its last bit."""
    components, at = _components(file)
    given: dict[int, set[int]] = defaultdict(set)
    for scan in _SCAN.finditer(file, at):
        at = scan.end() + 3
        count = file[at - 1] if at <= len(file) else 0
        first, last, bits = file[at + 2 * count : at + 2 * count + 3].ljust(3, b"\xff")
        if bits & 15 == 0:  # no bits are left for a later scan
            for component in file[at : at + 2 * count : 2]:
                given[component] |= set(range(first, last + 1))
    return bool(components) and all(given[component] >= _COEFFICIENTS for component in components)


def _components(file: bytes) -> tuple[bytes, int]:
    """Numbers of a JPEG's components, and where its first scan begins; none in one without a scan."""
    frame = read_frame(BytesIO(file))
    if frame is None:
        return b"", len(file)
    return bytes(component.id for component in frame.components), frame.first_scan


def _samsung_trailer(file: bytes) -> int:
    """Where the data begin that Samsung's cameras append; the end of the file if there are none.

    A directory at the end, `SEFH` version count (type offset size)... its size `SEFT`, states how far before
    it each block begins.
    """
    end = len(file) - 8
    start = end - int.from_bytes(file[-8:-4], "little")
    directory = file[max(start, 0) : end]
    if not file.endswith(_TRAILER_END) or not directory.startswith(b"SEFH"):
        return len(file)
    offsets = [
        int.from_bytes(directory[at + 4 : at + 8], "little") for at in range(12, len(directory) - 11, 12)
    ]
    return max(0, start - max(offsets, default=0))
