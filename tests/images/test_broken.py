"""Every way a photo file can be broken or too large ends in one clear error, and changes nothing else."""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_helpers import FORMATS, difference, encoded
from PIL import Image

from facepipe.core.errors import PhotoError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image

# Broken files


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_header(file: bytes, width: int, height: int) -> bytes:
    start = file.index(b"\xff\xc0") + 5
    return file[:start] + struct.pack(">HH", height, width) + file[start + 4 :]


@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_cut_off_is_an_error_and_never_half_a_picture(
    tmp_path: Path, name: str, share: float
) -> None:
    path = tmp_path / f"cut.{name.lower()}"
    path.write_bytes(encoded(name)[: int(len(encoded(name)) * share)])
    with pytest.raises(PhotoError, match="damaged") as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"Dear diary, " * 50, "not a photo in a known format"),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "not a photo in a known format"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a photo in a known format"),
    "signature_only.png": (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "damaged"),
    "huge.png": (png_header(30_000, 30_000), "more than 200,000,000 pixels"),
    "wide.png": (png_header(1 << 30, 1), "more than 200,000,000 pixels"),
    "no_width.png": (png_header(0, 10), "damaged"),
    "sound.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_the_cure(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_give_a_photo_or_a_photo_error(name: str) -> None:
    random = np.random.default_rng(len(encoded(name)))
    for _ in range(10):
        noisy = np.frombuffer(encoded(name), np.uint8).copy()
        noisy[random.integers(12, len(noisy), 20)] = random.integers(0, 256, 20)
        try:
            assert read_image(noisy.tobytes(), max_pixels=10_000_000).ndim == 3
        except PhotoError as error:
            assert str(error).startswith("photo from memory: ")  # noqa: PT017


def test_missing_files_and_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"nowhere\.jpg: no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotoError, match="this is a folder"):
        read_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(PhotoError, match="not an ordinary file"):
            read_image(tmp_path / "pipe.jpg")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.jpg"
    path.write_bytes(encoded("JPEG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PhotoError, match=r"locked\.jpg: no permission to read it"):
        read_image(path)


@pytest.mark.parametrize(
    "name", ["Zoë Łukasz.jpg", "王小明.jpg", "שלום 😀.jpg", "no suffix", "a b'\"[1].jpg"]
)
def test_any_file_name_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded("JPEG"))
    assert read_image(str(tmp_path / name)).shape == (512, 512, 3)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PhotoError) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not Unicode")
def test_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as stream:
        stream.write(encoded("JPEG"))
    assert read_image(os.fsdecode(path)).shape == (512, 512, 3)
    with pytest.raises(PhotoError) as caught:
        read_image(os.fsdecode(path) + "x")
    str(caught.value).encode()


def test_heic_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError, match=r'pip install .*"pillow-heif>='):
        read_image(encoded("HEIC"))


# The size limit


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_is_exact_and_configurable(name: str) -> None:
    assert read_image(encoded(name), max_pixels=512 * 512).shape == (512, 512, 3)
    for limit in (512 * 512 - 1, 512 * 512 - 2, 1000):
        with pytest.raises(PhotoError, match=f"more than {limit:,} pixels"):
            read_image(encoded(name), max_pixels=limit)


def test_a_large_header_is_refused_before_anything_is_decoded() -> None:
    with pytest.raises(PhotoError, match="more than 200,000,000 pixels"):
        read_image(jpeg_header(encoded("JPEG"), 65_000, 65_000))


@pytest.mark.parametrize("name", FORMATS)
def test_pillows_own_limit_is_neither_obeyed_nor_changed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(encoded(name)).shape == (512, 512, 3)
    with pytest.raises(PhotoError):
        read_image(encoded(name)[:300])
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_reading_in_threads_leaves_the_process_as_it_was(astronaut: UInt8Array) -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read_image, [encoded(name) for name in ("JPEG", "TIFF", "WEBP")] * 8))
    assert all(difference(rgb, astronaut) < 4 for rgb in results)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
