"""XMP packets as programs embed them: in every format, in two parts, behind the pixels, damaged."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import encode
from PIL import Image
from xmp_helpers import exiftool, needs_exiftool

from facepipe.core.errors import PhotoError
from facepipe.images.reading import read_xmp
from facepipe.images.stored_xmp import MOST_XMP_BYTES

PHOTO = Image.new("RGB", (64, 32), "red")
PACKET = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(text: bytes, *, compressed: bool = False) -> bytes:
    """A PNG whose XMP stands behind the pixels."""
    whole = encode(PHOTO, "PNG")
    flags = b"\x01\x00" if compressed else b"\x00\x00"
    end = chunk(b"IEND", b"")
    assert whole.endswith(end)
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0" + flags + b"\0\0" + text)
    return whole.removesuffix(end) + chunk(b"iTXt", b"Comment\0\0\0\0\0of another kind") + text + end


def jpeg_with(*segments: bytes) -> bytes:
    whole = encode(PHOTO, "JPEG")
    marked = b"".join(b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)
    return whole[:2] + marked + whole[2:]


@needs_exiftool
def test_exiftools_packet_is_read_from_every_format(tmp_path: Path) -> None:
    kinds = {"JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp", "AVIF": "avif", "HEIC": "heic"}
    paths = [tmp_path / f"photo.{suffix}" for suffix in kinds.values()]
    for path, kind in zip(paths, kinds, strict=True):
        path.write_bytes(encode(PHOTO, kind))
        assert read_xmp(path) == []
    exiftool("-XMP-dc:Subject=here it is", *paths)
    for path in paths:
        (packet,) = read_xmp(path)
        assert b"here it is" in packet, path


@pytest.mark.parametrize("compressed", [False, True])
def test_a_png_may_keep_it_behind_the_pixels(compressed: bool) -> None:
    text = zlib.compress(PACKET) if compressed else PACKET
    assert read_xmp(png_with(text, compressed=compressed)) == [PACKET]


def test_a_jpegs_second_packet_is_put_together() -> None:
    named, other = b"0123456789ABCDEF" * 2, b"F" * 32
    first = b"http://ns.adobe.com/xap/1.0/\0" + PACKET.replace(b"/>", b' n:HasExtendedXMP="%s"/>' % named)

    def part(identity: bytes, offset: int, data: bytes) -> bytes:
        return b"http://ns.adobe.com/xmp/extension/\0" + identity + struct.pack(">II", 8, offset) + data

    photo = jpeg_with(first, part(named, 4, b"half"), part(other, 0, b"not ours"), part(named, 0, b"half"))
    assert read_xmp(photo)[1:] == [b"halfhalf"]
    assert len(read_xmp(jpeg_with(first))) == 1
    assert read_xmp(jpeg_with(part(named, 0, b"nobody names it"))) == []


@pytest.mark.parametrize(
    "photo",
    [
        png_with(zlib.compress(b"<" * (MOST_XMP_BYTES + 1)), compressed=True),
        png_with(b"no zlib", compressed=True),
    ],
    ids=["a bomb", "damaged"],
)
def test_packets_that_are_too_large_or_damaged_are_refused(photo: bytes) -> None:
    with pytest.raises(PhotoError, match="photo from memory: "):
        read_xmp(photo)


@settings(deadline=None, max_examples=50)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), data=st.data())
def test_damaged_files_give_a_packet_or_an_error(kind: str, data: st.DataObject) -> None:
    png = png_with(zlib.compress(PACKET), compressed=True)
    whole = bytearray(png if kind == "PNG" else encode(PHOTO, kind, xmp=PACKET))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
        whole[at] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with suppress(PhotoError):  # any other error fails
        assert all(isinstance(packet, bytes) for packet in read_xmp(damaged))
