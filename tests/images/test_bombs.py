"""Small files that ask for much memory or time are refused by name, and large photos are read as ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import hostile_photos as hostile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_helpers import encode
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.images.decoded_size import MOST_SCANNED_SAMPLES
from facepipe.images.jpeg import read_frame, scanned_samples
from facepipe.images.reading import read_image, read_reduced

UNKNOWN = "known format"
TOO_MANY, TOO_MUCH, TOO_LONG = "more than 200,000,000 pixels", "decoding it takes", "would take too long"
BATCH_PEAK_BYTES = 1_500_000_000
COPIES = 2
DEFLATE = 8

Maker = Callable[[], bytes]
REFUSED: dict[str, tuple[Maker, str]] = {
    "webp": (hostile.webp, TOO_MANY),
    "large webp": (lambda: hostile.webp(9000, 9000), TOO_MUCH),
    "scans": (lambda: hostile.progressive_jpeg(6000, 6000, 3000), TOO_LONG),
    "arithmetic scans": (lambda: hostile.progressive_jpeg(6000, 6000, 3000, start=0xCA), TOO_LONG),
    "coefficients": (lambda: hostile.progressive_jpeg(14_100, 14_100, 3, components=3), TOO_MUCH),
    "png of 2 GB": (lambda: hostile.png(30_000, 30_000, bits=16, most_bytes=1 << 20), TOO_MANY),
    "animated png": (lambda: hostile.animated_png(16_000, 16_000, most_bytes=1 << 20), TOO_MANY),
    "strip of a tiff": (lambda: _tiff(9000, 9000, bits=64, format=3, samples=3), TOO_MUCH),
    "tile of a tiff": (lambda: _tiff(100, 100, tile_width=60_000, tile_height=60_000), TOO_MUCH),
    "samples of a tiff": (lambda: _tiff(14_000, 14_000, samples=7, bits=64, format=3, extra=0), TOO_MUCH),
    "planes of a tiff": (lambda: _tiff(14_000, 14_000, samples=4, bits=16, planes=2, extra=0), TOO_MUCH),
    "lzw tiff": (lambda: _tiff(65_000, 65_000, compression=5), TOO_MANY),
    "gif": (lambda: hostile.gif(65_535, 65_535, (1, 1)), TOO_MANY),
    "frame of a gif": (lambda: hostile.gif(1, 1, (65_535, 65_535)), TOO_MANY),
    "skipped rows of a bmp": (lambda: hostile.rle_bmp(100_000_000, 1, b"\0\2\xff\xff" * 40), TOO_MUCH),
    "rle bmp": (lambda: hostile.rle_bmp(14_000, 14_000, b"\1\1\0\0" * 100), TOO_LONG),
    "avif": (lambda: hostile.avif((64, 48), (16_000, 12_000)), TOO_MUCH),
    "ico": (lambda: encode(Image.new("RGB", (64, 64)), "ICO"), UNKNOWN),
    "jpeg 2000": (lambda: encode(Image.new("RGB", (64, 64)), "JPEG2000"), UNKNOWN),
    "ppm": (lambda: b"P6 90000 90000 255\n", UNKNOWN),
    "psd": (lambda: b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\x75\x30\0\0\x75\x30\0\x08\0\3" + bytes(99), UNKNOWN),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90000 90000\n", UNKNOWN),
    "xbm": (lambda: b"#define a_width 90000\n#define a_height 90000\nstatic char a_bits[] = {", UNKNOWN),
}
READ_ALL_THE_SAME: dict[str, Maker] = {
    "colour profile of 300 MB": lambda: hostile.png(
        100, 100, hostile.png_chunk(b"iCCP", b"x\0\0" + hostile.deflated_zeros(300 << 20))
    ),
    "text of 300 MB": lambda: hostile.png(
        100, 100, hostile.png_chunk(b"zTXt", b"x\0\0" + hostile.deflated_zeros(300 << 20))
    ),
    "webp": lambda: hostile.webp(100, 100),
    "animated png": lambda: hostile.animated_png(100, 100),
    "run-length encoded": lambda: hostile.rle_bmp(100, 100, b"\0\2\xff\xff" * 40),
    "scans": lambda: hostile.progressive_jpeg(100, 100, 100),
}


def _tiff(width: int, height: int, **tags: int) -> bytes:
    return hostile.tiff(width, height, hostile.deflated_zeros(1 << 20), **{"compression": DEFLATE} | tags)


@pytest.mark.parametrize("kind", REFUSED)
def test_small_files_that_ask_for_much_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    make, reason = REFUSED[kind]
    path = tmp_path / f"{kind}.jpg"
    path.write_bytes(make())
    start = time.process_time()
    with pytest.raises(PhotoError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("kind", READ_ALL_THE_SAME)
def test_what_is_harmless_is_read(kind: str) -> None:
    assert read_image(READ_ALL_THE_SAME[kind]()).shape == (100, 100, 3)


# Measured, in processes of their own

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="measured by what Linux tells of processes")


def peak_bytes(*words: str | Path) -> tuple[int, str]:
    """Peak memory of a command and of what it starts, and its output."""
    code = "import resource, subprocess, sys\n"
    code += "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
    code += (
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stdout + done.stderr, sep='\\n')"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    peak, _, out = done.stdout.partition("\n")
    return int(peak) << 10, out


@linux_only
def test_a_batch_of_hostile_files_stays_below_its_limit(tmp_path: Path) -> None:
    """With some that are just allowed: 100 megapixels of nothing, in two threads."""
    folder = tmp_path / "photos"
    folder.mkdir()
    allowed = {
        "rgba": hostile.png(10_000, 10_000),
        "gray": hostile.png(14_000, 14_000, colour=0),
        "gray alpha": hostile.png(10_000, 10_000, colour=4),
        "webp": hostile.webp(5500, 5500),
        "scans": hostile.progressive_jpeg(8000, 8000, 12),
        "frame": hostile.gif(1, 1, (14_000, 14_000)),
        "tiff": hostile.tiff(9500, 9500, hostile.deflated_zeros(9500 * 9500 * 3), compression=DEFLATE),
    }
    for name, file in allowed.items():
        for copy in range(COPIES):
            (folder / f"allowed {name} {copy}.png").write_bytes(file + bytes(copy))
    for name, (make, _) in REFUSED.items():
        (folder / f"{name}.jpg").write_bytes(make())
    for copy in range(6):
        (folder / f"webp {copy}.webp").write_bytes(hostile.webp() + bytes(2 * copy))
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    code = "from facepipe import FacePipeline; FacePipeline.load({!r}, create_gallery=True).close()"
    subprocess.run([sys.executable, "-c", code.format(str(gallery))], check=True)
    command = (
        sys.executable,
        "-m",
        "cli",
        "batch",
        folder,
        "--gallery",
        gallery,
        "--out",
        out,
        "--threads",
        "2",
    )
    peak, told = peak_bytes(*command)
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(results) == len(REFUSED) + 6 + COPIES * len(allowed), told
    read = {Path(result["photo"]).stem for result in results if result["error"] is None}
    assert {"allowed rgba 0", "allowed gray 0", "allowed webp 1", "allowed scans 1", "allowed tiff 0"} <= read
    assert peak < BATCH_PEAK_BYTES


_MEASURE = """
import sys
from pathlib import Path
import pillow_heif, tifffile
from facepipe.images.decoding_memory import PhotoMemory
from facepipe.images.reading import read_image

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10

most, really_take = 0, PhotoMemory.take
def take(self, need_bytes):
    global most
    most = max(most, need_bytes)
    really_take(self, need_bytes)
PhotoMemory.take = take
read_image(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before, most = peak(), 0
read_image(sys.argv[2])
print(peak() - before, most)
"""


def _photo(mode: str, **exif: int) -> Image.Image:
    y, x = np.mgrid[:2500, :4000]
    rgb = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        return Image.fromarray((x * y).astype(deep[mode]))
    return Image.fromarray(rgb).convert(mode)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


_AS_TOLD: dict[str, Maker] = {
    "jpeg": lambda: encode(_photo("RGB"), "JPEG"),
    "progressive": lambda: encode(_photo("RGB"), "JPEG", progressive=True, subsampling=0),
    "gray": lambda: encode(_photo("L"), "JPEG"),
    "cmyk": lambda: encode(_photo("CMYK"), "JPEG"),
    "on its side": lambda: encode(_photo("RGB"), "JPEG", exif=_turned(7)),
    "png": lambda: encode(_photo("RGB"), "PNG"),
    "palette": lambda: encode(_photo("P"), "PNG", transparency=3),
    "rgba": lambda: encode(_photo("RGBA"), "PNG"),
    "16 bits": lambda: encode(_photo("I;16"), "PNG"),
    "webp": lambda: encode(_photo("RGBA"), "WEBP", method=0),
    "lossless webp": lambda: encode(_photo("RGBA"), "WEBP", lossless=True, method=0),
    "gif": lambda: encode(_photo("P"), "GIF"),
    "bmp": lambda: encode(_photo("RGB"), "BMP"),
    "lzw": lambda: encode(_photo("RGB"), "TIFF", compression="tiff_lzw"),
    "floats": lambda: encode(_photo("F"), "TIFF"),
    "integers": lambda: encode(_photo("I"), "TIFF"),
    "one strip": lambda: hostile.tiff(4000, 2500, hostile.deflated_zeros(30_000_000), compression=DEFLATE),
    "planes": lambda: hostile.tiff(
        4000, 2500, hostile.deflated_zeros(20_000_000), compression=DEFLATE, samples=1, photometric=0, bits=16
    ),
    "avif": lambda: encode(_photo("RGBA"), "AVIF", speed=10, subsampling="4:4:4"),
    "heic": lambda: encode(Image.new("RGB", (4000, 2500), (90, 120, 30)), "HEIC"),
}


@linux_only
@pytest.mark.parametrize("kind", _AS_TOLD)
def test_photos_take_no_more_than_was_counted(kind: str, tmp_path: Path) -> None:
    photo, small = tmp_path / "photo", tmp_path / "small"
    photo.write_bytes(_AS_TOLD[kind]())
    small.write_bytes(encode(Image.new("RGB", (64, 64)), "PNG"))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, small, photo], capture_output=True, text=True, check=True
    )
    taken, counted = map(int, done.stdout.split())
    assert 20_000_000 < taken <= counted + 12_000_000


# Scans of a JPEG


def test_scans_are_counted_where_decoders_find_them() -> None:
    """Not in pictures that segments hold, nor behind the end; and no end is one inside a segment."""
    thumbnail = hostile.jpeg_segment(0xE1, b"Exif\0\0" + hostile.progressive_jpeg(80, 80, 9))
    plain = hostile.progressive_jpeg(160, 80, 5)
    for file, scans in (
        (plain, 6),
        (plain[:2] + thumbnail + plain[2:], 6),
        (plain + hostile.progressive_jpeg(80, 80, 9), 6),
        (plain[:2] + b"\xff" * 50 + plain[2:], 6),
        (plain[:-2] + hostile.jpeg_segment(0xFE, b"\xff\xd9") + plain[-30:], 8),
        (hostile.progressive_jpeg(160, 80, 0), 1),
    ):
        frame = read_frame(BytesIO(file))
        assert frame is not None
        assert frame.size_wh == (160, 80)
        assert scanned_samples(BytesIO(file), frame) == scans * 160 * 80


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_have_their_scans_counted(noise: bytes, at: int) -> None:
    file = hostile.progressive_jpeg(64, 64, 3)
    mixed = BytesIO(file[:at] + noise + file[at:])
    frame = read_frame(mixed)
    assert frame is None or scanned_samples(mixed, frame) >= 0


def test_long_runs_of_fillers_take_no_time() -> None:
    start = time.process_time()
    file = BytesIO(hostile.progressive_jpeg(64, 64, 3)[:-2] + b"\xff" * (8 << 20))
    frame = read_frame(file)
    assert frame is not None
    assert scanned_samples(file, frame) == 4 * 64 * 64
    assert time.process_time() - start < 2


# Large photos that are no bombs


def _gray_jpeg(width: int, height: int, **options: object) -> bytes:
    return encode(Image.new("L", (width, height), 90), "JPEG", **options)


def test_a_jpeg_of_100_megapixels_is_read_and_a_panorama_of_200_reduced() -> None:
    assert read_image(_gray_jpeg(12_500, 8000)).shape == (8000, 12_500, 3)
    for options in ({}, {"progressive": True}):
        panorama = read_reduced(_gray_jpeg(40_000, 5000, **options), lambda _: 0.125)
        assert panorama.rgb.shape == (625, 5000, 3)
        assert panorama.full_size_wh == (40_000, 5000)


def test_a_tiff_of_50_megapixels_and_16_bits_is_read() -> None:
    data = hostile.deflated_zeros(8660 * 5774 * 3 * 2)
    assert read_image(hostile.tiff(8660, 5774, data, bits=16, compression=DEFLATE)).shape == (5774, 8660, 3)


def test_usual_progressive_photos_of_200_megapixels_have_few_scans() -> None:
    file = encode(Image.new("RGB", (800, 600)), "JPEG", progressive=True)
    frame = read_frame(BytesIO(file))
    assert frame is not None
    share = scanned_samples(BytesIO(file), frame) / (800 * 600)
    assert share * 200e6 < MOST_SCANNED_SAMPLES
