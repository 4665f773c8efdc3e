"""Small files that become huge when they are read: photos, archives, sidecars, videos.

Photos have `SIDE_PX` pixels a side, which is under the limit of what is read unless asked otherwise: they
must be read, or refused, in bounded memory. Deflated parts are of one block of zeros that is repeated, so
that making a file takes neither time nor memory.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from hostile_photos import png_chunk, webp
from PIL import Image

from facepipe.images.reading import DEFAULT_MAX_PIXELS

SIDE_PX = int(DEFAULT_MAX_PIXELS**0.5) - 142
_BLOCK_BYTES = 1 << 20


def deflated_zeros(count: int, *, wrapped: bool = True) -> bytes:
    """A zlib stream of `count` zeros, a thousandth of their size; not `wrapped`: bare deflate."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(_BLOCK_BYTES)) + packer.flush(zlib.Z_FULL_FLUSH)
    blocks, rest = divmod(count, _BLOCK_BYTES)
    last = zlib.compressobj(9, wbits=-15)
    stream = block * blocks + last.compress(bytes(rest)) + last.flush()
    if not wrapped:
        return stream
    return b"\x78\xda" + stream + struct.pack(">I", (count % 65521) << 16 | 1)


def png(bits: int, colour_type: int, channels: int, before: bytes = b"", *, side_px: int = SIDE_PX) -> bytes:
    """A black PNG; `before` are chunks in front of the pixels."""
    header = struct.pack(">IIBBBBB", side_px, side_px, bits, colour_type, 0, 0, 0)
    palette = png_chunk(b"PLTE", bytes(6)) if colour_type == 3 else b""
    pixels = deflated_zeros(side_px * (1 + (side_px * bits * channels + 7) // 8))
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + palette + before
    return start + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_with_profile() -> bytes:
    """A PNG of one pixel whose colour profile is a gigabyte of zeros."""
    return png(8, 0, 1, png_chunk(b"iCCP", b"profile\0\0" + deflated_zeros(1 << 30)), side_px=1)


def png_with_text() -> bytes:
    """A PNG of one pixel with texts of a gigabyte in all."""
    text = png_chunk(b"zTXt", b"comment\0\0" + deflated_zeros(1 << 26))
    return png(8, 0, 1, text * 16, side_px=1)


def tiff(
    bits: int, samples: int, *, planar: bool = False, floats: bool = False, side_px: int = SIDE_PX
) -> bytes:
    """A deflated TIFF of zeros, in one strip or one a plane."""
    strips = samples if planar else 1
    data = deflated_zeros(side_px * side_px * bits * (samples if not planar else 1) // 8)
    short, long = 3, 4
    entries = [
        (256, long, [side_px]),
        (257, long, [side_px]),
        (258, short, [bits] * samples),
        (259, short, [8]),
        (262, short, [2 if samples == 3 else 1]),
        (273, long, [8] * strips),
        (277, short, [samples]),
        (278, long, [side_px]),
        (279, long, [len(data)] * strips),
        (284, short, [2 if planar else 1]),
        (339, short, [3 if floats else 1] * samples),
    ]
    directory_at = 8 + len(data) + len(data) % 2
    values_at = directory_at + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, kind, numbers in entries:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == short else 'I'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack("<I", values_at + len(values)), values + packed
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    start = struct.pack("<2sHI", b"II", 42, directory_at) + data.ljust(directory_at - 8, b"\0")
    return start + directory + bytes(4) + values


def bmp() -> bytes:
    """A BMP of runs of black pixels."""
    runs = -(-SIDE_PX // 255)
    pixels, palette = (b"\xff\0" * runs + b"\0\0") * SIDE_PX + b"\0\1", bytes(1024)
    offset = 14 + 40 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, SIDE_PX, SIDE_PX, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return header + info + palette + pixels


def gif(frames: int) -> bytes:
    """A GIF with frames of one pixel on a canvas of full size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", SIDE_PX, SIDE_PX, 0x80, 0, 0) + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + frame * frames + b"\x3b"


def jpeg(mode: str, *, progressive: bool) -> bytes:
    """A JPEG of one colour; takes seconds."""
    stream = BytesIO()
    size_wh = (SIDE_PX, SIDE_PX)
    Image.new(mode, size_wh).save(stream, "JPEG", quality=20, progressive=progressive, subsampling=0)
    return stream.getvalue()


def archive(text: Callable[[], bytes]) -> bytes:
    """An archive of a gallery with this for its `people.json`."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("people.json", text())
        file.writestr("vectors.safetensors", b"")
    return stream.getvalue()


def sidecar_of_entities() -> bytes:
    """A sidecar with entities that stand for ever more of each other."""
    entities = ['<!ENTITY e0 "lol">', *(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))]
    return f"<!DOCTYPE x [{''.join(entities)}]><x>&e11;</x>".encode()


def sidecar_of_depth() -> bytes:
    """A sidecar with elements within elements."""
    return b"<x>" * 2_000_000 + b"</x>" * 2_000_000


def write_video(file: Path) -> None:
    """A black video of two large frames."""
    import cv2

    side_px = 10_000
    writer = cv2.VideoWriter()
    if not writer.open(str(file), cv2.VideoWriter.fourcc(*"FFV1"), 5, (side_px, side_px)):
        raise RuntimeError("OpenCV writes no FFV1 here")
    for _ in range(2):
        writer.write(np.zeros((side_px, side_px, 3), np.uint8))
    writer.release()


PHOTO_BOMBS: dict[str, Callable[[], bytes]] = {
    "gray.png": partial(png, 8, 0, 1),
    "rgb.png": partial(png, 8, 2, 3),
    "rgba of 16 bits.png": partial(png, 16, 6, 4),
    "palette.png": partial(png, 1, 3, 1),
    "profile.png": png_with_profile,
    "text.png": png_with_text,
    "rgb.tif": partial(tiff, 8, 3),
    "rgb of 16 bits.tif": partial(tiff, 16, 3),
    "planes of 16 bits.tif": partial(tiff, 16, 3, planar=True),
    "floats.tif": partial(tiff, 32, 1, floats=True),
    "rle.bmp": bmp,
    "canvas.gif": partial(gif, 1),
    "frames.gif": partial(gif, 20_000),
    "one colour.webp": partial(webp, SIDE_PX, SIDE_PX),
    "gray.jpg": partial(jpeg, "L", progressive=False),
    "progressive.jpg": partial(jpeg, "RGB", progressive=True),
}
"""By the name of the file, which has the suffix of its format."""
ARCHIVE_BOMBS: dict[str, Callable[[], bytes]] = {
    "blanks": partial(archive, lambda: b" " * (400 << 20)),
    "empty people": partial(archive, lambda: b'{"people":[' + b"{}," * 40_000_000 + b"{}]}"),
    "brackets": partial(archive, lambda: b"[" * 50_000_000),
}
SIDECAR_BOMBS: dict[str, Callable[[], bytes]] = {
    "entities": sidecar_of_entities,
    "depth": sidecar_of_depth,
}
