"""Names in copies of photos: read back by others, all else kept, and no copy that is not verified."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from image_helpers import encode
from PIL import Image, ImageCms
from pipeline_helpers import faces_at
from xmp_helpers import ORIENTATIONS, exiftool, exiftool_json, mwg, needs_exiftool, save_turned

from facepipe.core.errors import OutputError, UsageError
from facepipe.core.faces import Faces, Match, UInt8Array
from facepipe.images.reading import read_image
from facepipe.xmp.embedding import write_named_copy
from facepipe.xmp.exiftool import require_exiftool
from facepipe.xmp.regions import Region

SIZE_WH = (64, 32)
ADA = "Ada <&> 'L'"
PHOTO = Image.new("RGB", SIZE_WH, "red")
TAGS = ("-RegionInfo", "-XMP-dc:Subject", "-PersonInImage", "-HierarchicalSubject", "-TagsList")


def ada(name: str | None = ADA) -> Faces:
    return faces_at((8, 8, 24, 24)).with_matches([Match(name, 0.5, 1.0)])


def fake_exiftool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in exiftool's place."""
    folder.mkdir()
    program = folder / "exiftool"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@needs_exiftool
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIC", "AVIF"])
def test_exiftool_reads_the_names_and_all_else_is_kept(tmp_path: Path, kind: str) -> None:
    photo, target = tmp_path / "-name = 'x'\n$(y).img", tmp_path / "copies" / "copy"
    target.parent.mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.write_bytes(encode(PHOTO, kind, icc_profile=profile))
    exiftool(
        "-EXIF:Artist=somebody",
        "-XMP-xmp:Rating=4",
        "-XMP-dc:Subject=holiday",
        f"./{photo.name}",
        cwd=tmp_path,
    )
    os.utime(photo, ns=(10**18, 10**18))
    before = photo.read_bytes()
    assert write_named_copy(photo, target, SIZE_WH, ada())
    assert photo.read_bytes() == before
    (record,) = exiftool_json(*TAGS, "-Artist", "-Rating", "-ICC_Profile:ProfileDescription", target)
    (region,) = record["RegionInfo"]["RegionList"]
    area = {"X": 0.25, "Y": 0.5, "W": 0.25, "H": 0.5, "Unit": "normalized"}
    assert (region["Name"], region["Type"], region["Area"]) == (ADA, "Face", area)
    assert record["Subject"] == ["holiday", ADA]
    assert record["TagsList"] == [f"People/{ADA}"]
    assert (record["Artist"], record["Rating"]) == ("somebody", 4)
    assert "ProfileDescription" in record
    assert np.array_equal(read_image(target), read_image(photo))
    assert (target.stat().st_mtime_ns, stat.S_IMODE(target.stat().st_mode)) == (10**18, 0o600)
    assert list(target.parent.iterdir()) == [target]


@needs_exiftool
def test_regions_are_in_the_stored_frame(tmp_path: Path, astronaut: UInt8Array) -> None:
    upright = np.ascontiguousarray(astronaut[:32, :64])
    photo, region = tmp_path / "photo.jpg", Region(ADA, 0.25, 0.5, 0.25, 0.5)
    for orientation in ORIENTATIONS:
        save_turned(upright, orientation, photo)
        assert write_named_copy(photo, tmp_path / f"{orientation}.jpg", SIZE_WH, ada())
    records = exiftool_json("-RegionInfo", *(tmp_path / f"{orientation}.jpg" for orientation in ORIENTATIONS))
    for orientation, record in zip(ORIENTATIONS, records, strict=True):
        (written,) = record["RegionInfo"]["RegionList"]
        stored = region.in_stored_frame(orientation)
        assert [written["Area"][key] for key in "XYWH"] == [stored.x, stored.y, stored.w, stored.h]


@needs_exiftool
def test_where_nothing_is_to_be_added_there_is_no_copy(tmp_path: Path) -> None:
    photo, target = tmp_path / "photo.jpg", tmp_path / "copy.jpg"
    PHOTO.save(photo)
    assert not write_named_copy(photo, target, SIZE_WH, ada(None))
    exiftool(mwg(Region("Grandmother", 0.25, 0.5, 0.25, 0.5), size_wh=SIZE_WH), photo)
    assert not write_named_copy(photo, target, SIZE_WH, ada())
    assert not target.exists()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'Error: no\nway' >&2; exit 1", "exiftool: Error: no way"),
        ("exit 0", "they can't be read again"),
        ('for last; do :; done; cp "$OTHER" "$last"', "has other pixels"),
        ('for last; do :; done; head -c 100 "$OTHER" > "$last"', "exiftool's copy can't be read"),
    ],
    ids=["fails", "writes nothing", "writes another photo", "cuts it off"],
)
def test_a_copy_that_is_not_right_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    photo, other, target = tmp_path / "photo.jpg", tmp_path / "other.jpg", tmp_path / "out" / "copy.jpg"
    PHOTO.save(photo)
    Image.new("RGB", SIZE_WH, "blue").save(other)
    monkeypatch.setenv("OTHER", str(other))
    fake_exiftool(tmp_path / "bin", script, monkeypatch)
    target.parent.mkdir()
    target.write_text("of before")
    with pytest.raises(OutputError, match=told):
        write_named_copy(photo, target, SIZE_WH, ada())
    assert target.read_text() == "of before"
    assert list(target.parent.iterdir()) == [target]


def test_xmp_that_is_not_understood_is_left_alone(tmp_path: Path) -> None:
    photo, target = tmp_path / "photo.jpg", tmp_path / "copy.jpg"
    PHOTO.save(photo, xmp=b"<html/>")
    with pytest.raises(OutputError, match=r"photo\.jpg: names are not embedded: its XMP: this is no XMP"):
        write_named_copy(photo, target, SIZE_WH, ada())
    assert not target.exists()


def test_without_exiftool_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install exiftool"):
        require_exiftool()
    said = facepipe("batch", tmp_path, "--out", tmp_path / "out", "--xmp-embed")
    assert (said.code, "install exiftool" in said.err) == (2, True)
    assert not (tmp_path / "out").exists()
