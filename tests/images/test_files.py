"""Knowing a photo again, and writing images whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_helpers import difference, encoded

from facepipe.core.errors import OutputError, PhotoError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import photo_sha256, read_image, write_image


def test_the_same_photo_has_the_same_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "b.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "c.jpg").write_bytes(encoded("PNG"))
    a, b, c = (photo_sha256(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert a == b != c
    assert len(a) == 64
    with pytest.raises(PhotoError, match=r"d\.jpg: no such file"):
        photo_sha256(tmp_path / "d.jpg")


# Writing


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".jpg", 2), (".JPEG", 2), (".png", 0), (".webp", 3), (".bmp", 0), (".tif", 0)]
)
def test_written_images_are_read_back(
    tmp_path: Path, astronaut: UInt8Array, suffix: str, tolerance: float
) -> None:
    path = tmp_path / f"Zoë{suffix}"
    write_image(path, astronaut)
    assert difference(read_image(path), astronaut) <= tolerance
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unwritable_places_are_named(tmp_path: Path, astronaut: UInt8Array) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "nowhere" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError) as caught:
            write_image(path, astronaut)
        assert str(caught.value).startswith(f"{path}: can't be written")
    with pytest.raises(UsageError, match=r"a\.docx: .* use one of \.jpg"):
        write_image(tmp_path / "a.docx", astronaut)
    with pytest.raises(OutputError, match="can't be written"):
        write_image(tmp_path / "too wide for this format.webp", np.zeros((1, 70_000, 3), np.uint8))


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_image(path, astronaut)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_image(path, astronaut[:9])
    assert np.array_equal(read_image(path), astronaut)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
