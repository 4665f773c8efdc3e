"""Pictures of single faces: lossless when kept, small when shown, and never of a photo that has changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import hostile_photos as hostile
import numpy as np
import pytest

from facepipe.core.faces import Faces, UInt8Array
from facepipe.gallery import Template
from facepipe.images.face_crops import THUMBNAIL_PX, box_of, cut_face, encode_crop, thumbnail
from facepipe.images.reading import photo_sha256, read_image, write_image

BOX = (180.0, 60.0, 270.0, 176.0)


def stored(path: Path | None, *, sha256: str | None = None, box: bool = True) -> Template:
    digest = sha256 if sha256 or path is None else photo_sha256(path)
    time = "2025-01-01T00:00:00+00:00"
    return Template(1, "Ada", None if path is None else str(path), BOX if box else None, None, digest, time)


def test_a_kept_crop_loses_nothing(astronaut: UInt8Array) -> None:
    crop = np.ascontiguousarray(astronaut[:112, :112])
    assert np.array_equal(read_image(encode_crop(crop)), crop)


def test_a_kept_crop_is_shown(astronaut: UInt8Array) -> None:
    shown = thumbnail(stored(None), encode_crop(np.ascontiguousarray(astronaut[60:172, 170:282])))
    assert shown is not None
    assert np.abs(read_image(shown).astype(int) - astronaut[60:172, 170:282]).mean() < 6


def test_without_one_the_face_is_cut_from_its_photo(astronaut: UInt8Array, tmp_path: Path) -> None:
    write_image(tmp_path / "her.png", astronaut)
    shown = thumbnail(stored(tmp_path / "her.png"), None)
    assert shown is not None
    picture = read_image(shown)
    assert max(picture.shape) == THUMBNAIL_PX
    middle = picture[40:70, 35:55].mean(axis=(0, 1))
    assert np.abs(middle - astronaut[95:140, 205:245].mean(axis=(0, 1))).max() < 25


@pytest.mark.parametrize("why", ["gone", "changed", "no box", "no hash", "no path", "no photo"])
def test_no_picture_rather_than_a_wrong_one(astronaut: UInt8Array, tmp_path: Path, why: str) -> None:
    path = tmp_path / "her.png"
    write_image(path, astronaut)
    face = stored(path, box=why != "no box")
    if why == "gone":
        path.unlink()
    elif why == "changed":
        write_image(path, astronaut[:, ::-1])
    elif why == "no photo":
        path.write_bytes(b"text")
        face = stored(path)
    elif why == "no hash":
        face = Template(1, "Ada", str(path), BOX, None, None, face.added_at)
    elif why == "no path":
        face = stored(None)
    assert thumbnail(face, None) is None


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((100, 100, 140, 180), (120, 60, 3)),
        ((0, 0, 40, 40), (50, 50, 3)),
        ((-900, -900, -800, -800), (1, 1, 3)),
        ((600, 600, 700, 700), (1, 1, 3)),
        ((-50, -50, 700, 700), (512, 512, 3)),
    ],
)
def test_a_face_is_cut_with_a_margin_inside_the_photo(
    astronaut: UInt8Array, box: tuple[float, float, float, float], shape: tuple[int, ...]
) -> None:
    assert cut_face(astronaut, np.array(box, np.float32)).shape == shape


def test_a_box_as_plain_numbers() -> None:
    boxes = np.array([[0, 0, 1, 1], BOX], np.float32)
    faces = Faces(boxes, np.ones(2, np.float32), np.zeros((2, 5, 2), np.float32))
    assert box_of(faces, 1) == BOX
    assert all(type(side) is float for side in box_of(faces, 1))


# Galleries take what archives hold: pictures and paths of anybody's making


@pytest.mark.parametrize(
    "kept", [hostile.webp(), hostile.webp(3000, 3000), hostile.png(3000, 2000), b"no picture"], ids=range(4)
)
def test_kept_crops_are_small_pictures_or_not_shown(kept: bytes) -> None:
    start = time.process_time()
    assert thumbnail(stored(None), kept) is None
    assert time.process_time() - start < 1


def test_a_source_is_an_ordinary_file_of_a_photos_size(tmp_path: Path) -> None:
    huge, nothing, pipe = (tmp_path / name for name in ("huge.jpg", "nothing.jpg", "pipe.jpg"))
    with open(huge, "wb") as stream:
        stream.truncate(1 << 40)
    nothing.touch()
    sources = [huge, nothing, tmp_path, tmp_path / "none.jpg", tmp_path / ("long" * 999)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        sources += [pipe, Path("/dev/zero"), Path("/dev/stdin"), Path("/proc/kmsg")]
    start = time.process_time()
    for source in sources:
        assert thumbnail(stored(source, sha256="0" * 64), None) is None
    assert thumbnail(stored(Path("nul\0"), sha256="0" * 64), None) is None
    assert time.process_time() - start < 1


def test_a_source_is_hashed_once_for_all_its_faces(
    astronaut: UInt8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "her.png", astronaut)
    face, hashed = stored(tmp_path / "her.png"), 0

    def counting(path: str) -> str:
        nonlocal hashed
        hashed += 1
        return photo_sha256(path)

    monkeypatch.setattr("facepipe.images.face_crops.photo_sha256", counting)
    pictures = {thumbnail(face, None) for _ in range(3)}
    assert None not in pictures
    assert (len(pictures), hashed) == (1, 1)
    write_image(tmp_path / "her.png", astronaut[:, ::-1])
    assert thumbnail(face, None) is None
