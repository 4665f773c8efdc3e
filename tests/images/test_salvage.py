"""Photos that are whole though their files are not: read. Half a picture: refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_helpers import difference, encode, encoded
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image, read_reduced

MEGABYTE = 1 << 20
LONG = bytes(range(32, 127)) * (3 * MEGABYTE // 95)


# PNG


def chunk(kind: bytes, content: bytes, *, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + content) ^ damage
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def chunks_of(png: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big") + 12
        yield png[at : at + length]
        at += length


def with_chunks(png: bytes, *extra: bytes, last: bool = False) -> bytes:
    """Between the header and the pixels, or behind the pixels."""
    first, *rest = chunks_of(png)
    middle = [*rest[:-1], *extra] if last else [*extra, *rest[:-1]]
    return png[:8] + b"".join([first, *middle, rest[-1]])


def xmp(text: bytes) -> bytes:
    return b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)


EXTRAS = {
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "XMP": chunk(b"iTXt", xmp(LONG)),
    "plain text": chunk(b"tEXt", b"Comment\0" + LONG),
    "colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "texts of 80 megabytes together": chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(MEGABYTE - 9))) * 80,
    "damaged text": chunk(b"tEXt", b"Comment\0hello", damage=1),
    "damaged profile": chunk(b"iCCP", b"profile\0\0nonsense", damage=1),
    "profile of another compression": chunk(b"iCCP", b"profile\0\7nonsense"),
}


@pytest.mark.parametrize("last", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", EXTRAS)
def test_a_png_is_read_whatever_its_extras(astronaut: UInt8Array, kind: str, last: bool) -> None:
    file = with_chunks(encoded("PNG"), EXTRAS[kind], last=last)
    assert np.array_equal(read_image(file), astronaut)


@pytest.mark.parametrize("left", [1, 2000, 2 * MEGABYTE])
def test_a_png_cut_off_behind_its_pixels_is_read(astronaut: UInt8Array, left: int) -> None:
    file = with_chunks(encoded("PNG"), EXTRAS["plain text"], last=True)
    assert np.array_equal(read_image(file[:-left]), astronaut)


@pytest.mark.parametrize("kind", EXTRAS)
def test_half_a_png_stays_refused(kind: str) -> None:
    file = with_chunks(encoded("PNG"), EXTRAS[kind])
    for missing in (len(encoded("PNG")) // 2, 30_000):
        with pytest.raises(PhotoError, match="damaged"):
            read_image(file[:-missing])
    damaged = bytearray(with_chunks(encoded("PNG"), EXTRAS[kind]))
    damaged[-len(encoded("PNG")) // 2] ^= 255
    with pytest.raises(PhotoError, match="damaged"):
        read_image(bytes(damaged))


def profile_of_exif(orientation: int) -> bytes:
    """As ImageMagick writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    return chunk(b"tEXt", b"Raw profile type exif\0\nexif\n" + f"{len(data):8}\n{data.hex()}\n".encode())


@pytest.mark.parametrize("last", [False, True])
def test_orientation_and_transparency_survive(astronaut: UInt8Array, last: bool) -> None:
    upright = astronaut[:200, :300]
    turned = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (
        with_chunks(encode(turned, "PNG", exif=exif.tobytes()), EXTRAS["XMP"], last=last),
        with_chunks(encode(turned, "PNG"), EXTRAS["XMP"], profile_of_exif(6), last=last),
        with_chunks(encode(turned, "PNG"), profile_of_exif(6), EXTRAS["XMP"], last=last),
    ):
        assert np.array_equal(read_image(file), upright)
    clear = encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (read_image(with_chunks(clear, EXTRAS["XMP"], last=last)) == 255).all()


def test_a_bomb_in_the_extras_stays_packed() -> None:
    packed = zlib.compress(bytes(100 * MEGABYTE))
    bombs = [chunk(b"zTXt", b"C\0\0" + packed), chunk(b"iTXt", b"C\0\1\0\0\0" + packed)]
    file = with_chunks(encoded("PNG"), *bombs, chunk(b"iCCP", b"p\0\0" + packed))
    tracemalloc.start()
    try:
        assert read_image(file).shape == (512, 512, 3)
        assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    finally:
        tracemalloc.stop()


# JPEG


def samsung_trailer(*blocks: bytes) -> bytes:
    """Blocks of data, and the directory that tells where they begin."""
    directory = b"SEFH" + struct.pack("<II", 107, len(blocks))
    behind = sum(map(len, blocks))
    for block in blocks:
        directory += struct.pack("<HHII", 0, 0x0A01, behind, len(block))
        behind -= len(block)
    return b"".join(blocks) + directory + struct.pack("<I", len(directory)) + b"SEFT"


def samsung_block(name: bytes, data: bytes) -> bytes:
    return struct.pack("<HHI", 0, 0x0A01, len(name)) + name + data


TRAILERS = {
    "none": b"",
    "half of the marker": b"\xff",
    "zeros": b"\0\0",
    "Samsung's": samsung_trailer(samsung_block(b"Image_UTC_Data", b"1533081600000")),
    "Samsung's, with a film": samsung_trailer(
        samsung_block(b"Image_UTC_Data", b"1533081600000"),
        samsung_block(b"MotionPhoto_Data", bytes(range(255, -1, -1)) * 500 + b"\xff\xd8\xff\xc4\xff\xda"),
    ),
}
MAKINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 5},
    "without subsampling": {"quality": 30, "subsampling": 0},
}
GRAY, CMYK = "gray", "CMYK"


def jpeg(astronaut: UInt8Array, making: str) -> bytes:
    picture = Image.fromarray(astronaut)
    if making in (GRAY, CMYK):
        return encode(picture.convert("L" if making == GRAY else "CMYK"), "JPEG")
    return encode(picture, "JPEG", **MAKINGS[making])


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("making", [*MAKINGS, GRAY, CMYK])
def test_a_jpeg_without_its_end_is_read(astronaut: UInt8Array, making: str, trailer: str) -> None:
    file = jpeg(astronaut, making)
    assert file.endswith(b"\xff\xd9")
    assert np.array_equal(read_image(file[:-2] + TRAILERS[trailer]), read_image(file))


def test_it_is_read_at_a_fraction_of_its_size_too(tmp_path: Path, astronaut: UInt8Array) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(astronaut, "plain")[:-2])
    reduced = read_reduced(path, lambda _: 0.25)
    assert reduced.full_size_wh == (512, 512)
    assert reduced.rgb.shape == (128, 128, 3)


def test_flat_pictures_without_their_end_are_read(astronaut: UInt8Array) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (90, 120, 200)):
        file = encode(Image.new("RGB", (320, 240), colour), "JPEG")
        assert np.array_equal(read_image(file[:-2]), read_image(file))


@pytest.mark.parametrize("trailer", [name for name in TRAILERS if name != "zeros"])
@pytest.mark.parametrize("making", [*MAKINGS, GRAY, CMYK])
def test_half_a_jpeg_stays_refused(astronaut: UInt8Array, making: str, trailer: str) -> None:
    file = jpeg(astronaut, making)
    for missing in (6, 20, 1000, len(file) // 2, len(file) * 9 // 10):
        with pytest.raises(PhotoError, match="damaged"):
            read_image(file[:-missing] + TRAILERS[trailer])


def test_a_progressive_jpeg_without_its_last_scans_stays_refused(astronaut: UInt8Array) -> None:
    """All rows are there, in less than their detail."""
    file = jpeg(astronaut, "progressive")
    scans = [at for at in range(len(file)) if file[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(scans) > 10
    for at in scans[3:]:
        with pytest.raises(PhotoError, match="damaged"):
            read_image(file[:at])


def test_damaged_files_are_salvaged_or_refused(astronaut: UInt8Array) -> None:
    random = np.random.default_rng(3)
    for file in (jpeg(astronaut, "plain")[:-2], with_chunks(encoded("PNG"), EXTRAS["XMP"])):
        for _ in range(8):
            noisy = bytearray(file)
            for at in random.integers(3, 700, 2):
                noisy[at] = random.integers(0, 256)
            try:
                assert read_image(bytes(noisy), max_pixels=10_000_000).ndim == 3
            except PhotoError as error:
                assert str(error).startswith("photo from memory: ")  # noqa: PT017


def test_a_whole_photo_is_decoded_once(astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("facepipe.images.decoding.salvaged", never)
    assert difference(read_image(encoded("JPEG")), astronaut) < 4
