"""Small photo files that promise much: each header is right, and what it asks for is too much."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

SIDE = 16_383
"""Longest side of a WebP."""


def webp(width: int = SIDE, height: int = SIDE) -> bytes:
    """Lossless, of one colour, in 34 bytes."""
    bits = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (1, 1), (0, 3), (0, 3)]
    bits += [(code, bit_count) for _ in range(5) for code, bit_count in ((1, 1), (0, 1), (0, 1), (0, 1))]
    value = position = 0
    for number, count in bits:
        value |= number << position
        position += count
    payload = value.to_bytes(-(-position // 8), "little")
    payload += bytes(len(payload) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def progressive_jpeg(width: int, height: int, scans: int, *, components: int = 1, start: int = 0xC2) -> bytes:
    """A gray first scan, and scans that refine it and go through all blocks in runs of 15 bits."""
    ids = range(1, components + 1)
    file = b"\xff\xd8" + jpeg_segment(0xDB, b"\0" + bytes([1] * 64))
    frame = struct.pack(">BHHB", 8, height, width, components)
    file += jpeg_segment(start, frame + b"".join(bytes([id, 0x11, 0]) for id in ids))
    file += jpeg_segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00")
    file += jpeg_segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    file += jpeg_segment(0xDA, bytes([components]) + b"".join(bytes([id, 0]) for id in ids) + bytes(3))
    runs = bytes(2) * (width * height // (64 << 14) + 1)
    refining = [
        jpeg_segment(0xDA, bytes([1, 1 + scan % components, 0, 1, 63, 0x10])) for scan in range(scans)
    ]
    return file + b"".join(scan + runs for scan in refining) + b"\xff\xd9"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deflated_zeros(size: int) -> bytes:
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block[: min(len(block), size - at)]) for at in range(0, size, len(block))]
    return b"".join(parts) + packer.flush()


def png(
    width: int, height: int, *extras: bytes, bits: int = 8, colour: int = 6, most_bytes: int = 1 << 29
) -> bytes:
    """Zeros: RGBA unless said otherwise; with more chunks before the pixels, which may be cut off."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = deflated_zeros(min(most_bytes, height * (1 + width * channels * bits // 8)))
    chunks = [png_chunk(b"IHDR", header), *extras, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def animated_png(width: int, height: int, most_bytes: int = 1 << 29) -> bytes:
    frame = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 1, 1)
    chunks = png_chunk(b"acTL", struct.pack(">II", 1 << 30, 0)), png_chunk(b"fcTL", frame)
    return png(width, height, *chunks, most_bytes=most_bytes)


def tiff(width: int, height: int, data: bytes, **tags: int) -> bytes:
    """One strip or tile of `data`; RGB of 8 bits, with tags in place of these or beside them."""
    known = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "compression": 259,
        "photometric": 262,
        "offset": 273,
        "samples": 277,
        "rows": 278,
        "count": 279,
        "planes": 284,
        "tile_width": 322,
        "tile_height": 323,
        "tile_offset": 324,
        "tile_count": 325,
        "extra": 338,
        "format": 339,
    }
    values = {"width": width, "height": height, "bits": 8, "compression": 5, "photometric": 2, "samples": 3}
    place = (
        {"tile_offset": 8, "tile_count": len(data)}
        if "tile_width" in tags
        else {"offset": 8, "count": len(data)}
    )
    values |= {"rows": height} | place | tags
    samples = values["samples"]
    shared = 8 + len(data)
    per_sample = struct.pack(f"<{samples}H", *[values["bits"]] * samples)
    formats = struct.pack(f"<{samples}H", *[values.get("format", 1)] * samples)
    entries = b""
    for name, number in sorted(known.items(), key=lambda item: item[1]):
        if name not in values:
            continue
        if name in ("bits", "format") and samples > 2:
            at = shared + (0 if name == "bits" else len(per_sample))
            entries += struct.pack("<HHII", number, 3, samples, at)
        elif name in ("bits", "format"):
            entries += struct.pack("<HHI", number, 3, samples) + struct.pack("<H", values[name]).ljust(
                4, b"\0"
            )
        else:
            entries += struct.pack("<HHII", number, 4, 1, values[name])
    body = data + per_sample + formats
    directory = struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def gif(width: int, height: int, frame_wh: tuple[int, int]) -> bytes:
    """A canvas, and a first frame that is to be cleared."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\x04" + bytes([2 << 2, 0, 0, 0, 0])
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame_wh, 0)
    return screen + control + frame + b"\x02\x02\x44\x01\x00\x3b"


def rle_bmp(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 2, 0)
    offset = 14 + len(header) + 8
    return struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset) + header + bytes(8) + data


def resized(file: bytes, old_wh: tuple[int, int], new_wh: tuple[int, int]) -> bytes:
    """An AVIF or HEIC whose container tells of another size."""
    return file.replace(struct.pack(">II", *old_wh), struct.pack(">II", *new_wh))


def avif(old_wh: tuple[int, int], new_wh: tuple[int, int]) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.zeros((*old_wh[::-1], 3), np.uint8)).save(stream, "AVIF", speed=10)
    return resized(stream.getvalue(), old_wh, new_wh)
