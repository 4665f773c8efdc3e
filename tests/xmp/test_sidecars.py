"""XMP sidecars: what photo managers read, beside what they and others have written."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_helpers import job_of
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import encode
from lxml import etree
from PIL import Image, ImageOps
from pipeline_helpers import faces_at
from xmp_helpers import (
    APPLE,
    EXIF_ORIENTATION,
    FOREIGN,
    ORIENTATIONS,
    exiftool,
    exiftool_json,
    needs_exiftool,
    needs_exiv2,
)

from facepipe.batch.job import Job
from facepipe.batch.results import write_outputs, write_photo_sidecar
from facepipe.core.errors import OutputError
from facepipe.core.faces import Faces, Match
from facepipe.images.reading import read_image, read_orientation
from facepipe.xmp.regions import named_regions
from facepipe.xmp.sidecars import sidecar_path, write_sidecar

SIZE_WH = (400, 200)
TAGS = ("-Validate", "-RegionInfo", "-Rating", "-Subject")


def named(*people: tuple[str | None, tuple[float, float, float, float]]) -> Faces:
    matches = [Match(name, 0.5, 1.0) for name, _ in people]
    return faces_at(*(box for _, box in people)).with_matches(matches)


HER = ("Eileen Collins", (40.0, 20.0, 120.0, 100.0))
AT_GRANDMOTHER = ("Somebody Else", (184.0, 84.0, 220.0, 120.0))


BOX_STORED = (100, 40, 160, 120)
STORED_AREA = {"X": 0.325, "Y": 0.4, "W": 0.15, "H": 0.4, "Unit": "normalized"}
"""`BOX_STORED` in an image of `SIZE_WH`."""


def photo_with_box(path: Path, orientation: int) -> tuple[tuple[int, int], Faces]:
    """Write a photo that is stored in `SIZE_WH` with a white `BOX_STORED`; its upright size and that face."""
    stored = Image.new("RGB", SIZE_WH)
    stored.paste("white", BOX_STORED)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(path, exif=exif)
    upright = read_image(path)
    rows, columns = np.nonzero(upright[:, :, 0] > 127)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return (upright.shape[1], upright.shape[0]), named(("Ada", box))


def names_exiv2_reads(sidecar: Path) -> list[str]:
    done = subprocess.run(["exiv2", "-PXkv", str(sidecar)], capture_output=True, text=True, check=True)
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    return [value.strip() for key, _, value in lines if key.endswith("/mwg-rs:Name")]


def region_list(sidecar: Path) -> list[dict[str, Any]]:
    regions: list[dict[str, Any]] = read(sidecar)["RegionInfo"]["RegionList"]
    return regions


def read(sidecar: Path) -> dict[str, Any]:
    (record,) = exiftool_json(*TAGS, sidecar)
    return record


@needs_exiftool
def test_exiftool_reads_the_regions_as_valid(tmp_path: Path) -> None:
    sidecar = write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER, (None, (200, 50, 240, 90))))
    assert sidecar == tmp_path / "photo.jpg.xmp"
    record = read(sidecar)
    assert record["Validate"] == "OK"
    info = record["RegionInfo"]
    assert info["AppliedToDimensions"] == {"W": 400, "H": 200, "Unit": "pixel"}
    (region,) = info["RegionList"]
    area = {"X": 0.2, "Y": 0.3, "W": 0.2, "H": 0.4, "Unit": "normalized"}
    assert (region["Name"], region["Type"], region["Area"]) == ("Eileen Collins", "Face", area)


@needs_exiftool
def test_what_others_wrote_is_kept(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(FOREIGN.format(w=800, h=400), encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        write_sidecar(photo, SIZE_WH, named(HER, AT_GRANDMOTHER))
        record = read(sidecar_path(photo))
        assert record["Validate"] == "OK"
        assert (record["Rating"], record["Subject"]) == (5, ["holiday"])
        assert [region["Name"] for region in record["RegionInfo"]["RegionList"]] == ["Grandmother", HER[0]]
        assert "made by hand" in sidecar_path(photo).read_text(encoding="utf-8")


PEOPLE = st.lists(st.sampled_from(["Ada", "Bob", "Zoë <&>", None]), max_size=3)


@pytest.mark.parametrize("theirs", ["", FOREIGN.format(w=800, h=400)])
@settings(deadline=None, max_examples=50)
@given(histories=st.tuples(st.lists(PEOPLE, max_size=3), st.lists(PEOPLE, max_size=3)), last=PEOPLE)
def test_a_sidecar_depends_on_the_last_names_only(
    tmp_path_factory: pytest.TempPathFactory, theirs: str, histories: tuple[Any, Any], last: list[str | None]
) -> None:
    """A batch that was killed and begun again leaves the bytes of one that was not."""
    photo = tmp_path_factory.mktemp("photo") / "photo.jpg"
    sidecar, written = sidecar_path(photo), []
    for history in histories:
        sidecar.unlink(missing_ok=True)
        if theirs:
            sidecar.write_text(theirs, encoding="utf-8")
        write_sidecar(photo, SIZE_WH, named())
        for names in (*history, ["Ada"], last):
            boxes = [(50.0 * n, 20.0, 50.0 * n + 40.0, 60.0) for n in range(len(names))]
            write_sidecar(photo, SIZE_WH, named(*zip(names, boxes, strict=True)))
        written.append(sidecar.read_bytes())
    assert written[0] == written[1]


@needs_exiftool
def test_regions_of_ours_follow_the_names(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(FOREIGN.format(w=800, h=400), encoding="utf-8")
    write_sidecar(photo, SIZE_WH, named(HER))
    write_sidecar(photo, SIZE_WH, named(("Colonel Collins", HER[1])))
    names = [region["Name"] for region in read(sidecar_path(photo))["RegionInfo"]["RegionList"]]
    assert names == ["Grandmother", "Colonel Collins"]
    write_sidecar(photo, SIZE_WH, named((None, HER[1])))
    names = [region["Name"] for region in read(sidecar_path(photo))["RegionInfo"]["RegionList"]]
    assert names == ["Grandmother"]


@needs_exiftool
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_regions_are_in_the_frame_of_the_stored_image(tmp_path: Path, orientation: int) -> None:
    photo = tmp_path / "photo.png"
    write_sidecar(photo, *photo_with_box(photo, orientation))
    info = read(sidecar_path(photo))["RegionInfo"]
    assert info["AppliedToDimensions"] == {"W": SIZE_WH[0], "H": SIZE_WH[1], "Unit": "pixel"}
    assert [region["Area"] for region in info["RegionList"]] == [STORED_AREA]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_the_orientation_is_read_from_every_format(image_format: str) -> None:
    for orientation in ORIENTATIONS:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        data = encode(Image.new("RGB", (64, 32)), image_format, exif=exif.tobytes())
        assert read_orientation(data) == orientation
        assert read_image(data).shape[:2] == ((64, 32) if orientation > 4 else (32, 64))
    assert read_orientation(encode(Image.new("RGB", (64, 32)), image_format)) == 1


@needs_exiftool
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_face_that_exiftool_marked_gets_no_second_mark(tmp_path: Path, orientation: int) -> None:
    photo = tmp_path / "photo.png"
    size_wh, at_the_box = photo_with_box(photo, orientation)
    region = "{Name=Grandmother,Type=Face,Area={X=0.325,Y=0.4,W=0.15,H=0.4,Unit=normalized}}"
    applied = f"AppliedToDimensions={{W={SIZE_WH[0]},H={SIZE_WH[1]},Unit=pixel}}"
    exiftool(f"-RegionInfo={{{applied},RegionList=[{region}]}}", sidecar_path(photo))
    write_sidecar(photo, size_wh, at_the_box)
    assert [region["Name"] for region in region_list(sidecar_path(photo))] == ["Grandmother"]
    write_sidecar(photo, size_wh, named(("Ada", (0, 0, 20, 20))))
    assert [region["Name"] for region in region_list(sidecar_path(photo))] == ["Grandmother", "Ada"]


@needs_exiftool
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_regions_come_back_through_exiftool(tmp_path: Path, orientation: int) -> None:
    """exiftool writes them into the photo, with its own spelling, and from there into a new sidecar."""
    photo = tmp_path / "photo.png"
    size_wh, faces = photo_with_box(photo, orientation)
    sidecar = write_sidecar(photo, size_wh, faces)
    assert sidecar is not None
    before = read(sidecar)["RegionInfo"]
    exiftool("-TagsFromFile", sidecar, "-XMP:all", photo)
    sidecar.unlink()
    exiftool("-TagsFromFile", photo, "-XMP:all", sidecar)
    write_sidecar(photo, size_wh, faces)
    after = read(sidecar)["RegionInfo"]
    assert after["AppliedToDimensions"] == before["AppliedToDimensions"]
    assert [(region["Name"], region["Area"]) for region in after["RegionList"]] == [("Ada", STORED_AREA)]


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    size_wh=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    shares=st.tuples(*[st.floats(0, 0.999)] * 4),
)
def test_stored_to_upright_to_stored_is_the_same_box(
    orientation: int, size_wh: tuple[int, int], shares: tuple[float, float, float, float]
) -> None:
    (width, height), (x, y, w, h) = size_wh, shares
    left, top = int(x * width), int(y * height)
    right, bottom = left + 1 + int(w * (width - left)), top + 1 + int(h * (height - top))
    right, bottom = min(right, width), min(bottom, height)
    stored = Image.new("L", size_wh)
    stored.paste(255, (left, top, right, bottom))
    stored.getexif()[EXIF_ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(stored)
    box = upright.getbbox()
    assert box is not None
    (region,) = named_regions(named(("Ada", box)), upright.size)
    back = region.in_stored_frame(orientation)
    expected = (left + right) / 2 / width, (top + bottom) / 2 / height
    assert (back.x, back.y) == pytest.approx(expected)
    assert (back.w, back.h) == pytest.approx(((right - left) / width, (bottom - top) / height))
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    again = back.in_stored_frame(inverse)
    assert (again.x, again.y, again.w, again.h) == pytest.approx((region.x, region.y, region.w, region.h))


@needs_exiftool
def test_regions_of_the_upright_frame_that_facepipe_wrote_are_mended(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    size_wh, faces = photo_with_box(photo, 6)
    write_sidecar(tmp_path / "gone.png", size_wh, faces)  # as if it were stored upright
    sidecar_path(tmp_path / "gone.png").rename(sidecar_path(photo))
    assert read(sidecar_path(photo))["RegionInfo"]["AppliedToDimensions"]["W"] == SIZE_WH[1]
    write_sidecar(photo, size_wh, faces)
    info = read(sidecar_path(photo))["RegionInfo"]
    assert info["AppliedToDimensions"] == {"W": SIZE_WH[0], "H": SIZE_WH[1], "Unit": "pixel"}
    assert [region["Area"] for region in info["RegionList"]] == [STORED_AREA]


@needs_exiftool
@pytest.mark.parametrize(
    ("is_there", "area"),
    [(True, STORED_AREA), (False, {"X": 0.4, "Y": 0.325, "W": 0.4, "H": 0.15, "Unit": "normalized"})],
    ids=["the photo's own", "the photo is gone"],
)
def test_the_sidecars_orientation_counts_where_the_photo_is_gone(
    tmp_path: Path, is_there: bool, area: dict[str, Any]
) -> None:
    """A viewer may show the photo turned otherwise: that moves nothing in the stored image."""
    photo = tmp_path / "photo.png"
    size_wh, faces = photo_with_box(photo, 1)
    exiftool("-XMP-tiff:Orientation#=5", sidecar_path(photo))
    if not is_there:
        photo.unlink()
    write_sidecar(photo, size_wh, faces)
    assert [region["Area"] for region in region_list(sidecar_path(photo))] == [area]


@needs_exiftool
@needs_exiv2
@pytest.mark.parametrize("container", ["Bag", "Seq", "Alt"])
def test_the_list_keeps_its_container(tmp_path: Path, container: str) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar, text = sidecar_path(photo), FOREIGN.format(w=800, h=400)
    before, regions = text.split("<mwg-rs:RegionList>")
    sidecar.write_text(f"{before}<mwg-rs:RegionList>{regions.replace('rdf:Bag', f'rdf:{container}')}")
    for _ in range(2):
        write_sidecar(photo, SIZE_WH, named(HER, AT_GRANDMOTHER))
        assert names_exiv2_reads(sidecar) == ["Grandmother", HER[0]]
        assert read(sidecar)["Validate"] == "OK"
        assert [region["Name"] for region in region_list(sidecar)] == ["Grandmother", HER[0]]
        assert f"<rdf:{container}>" in sidecar.read_text().split("<mwg-rs:RegionList>")[1]
    write_sidecar(photo, SIZE_WH, named((None, HER[1])))
    assert names_exiv2_reads(sidecar) == ["Grandmother"]


@needs_exiv2
def test_a_bag_that_was_put_beside_a_seq_is_removed(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    write_sidecar(photo, SIZE_WH, named(HER))
    ours = sidecar_path(photo).read_text().split("<mwg-rs:RegionList>")[1].split("</mwg-rs:RegionList>")[0]
    ours = ours.replace(
        "<rdf:Description", '<rdf:Description xmlns:facepipe="https://facepipe.invalid/xmp/1.0/"'
    )
    sidecar_path(photo).write_text(APPLE.format(type="Face", name="Grandmother", more=ours))
    assert names_exiv2_reads(sidecar_path(photo)) == []
    at_another_place = named(("Ada", (300.0, 20.0, 380.0, 100.0)))
    write_sidecar(photo, SIZE_WH, at_another_place)
    assert names_exiv2_reads(sidecar_path(photo)) == ["Grandmother", "Ada"]


@needs_exiv2
@pytest.mark.parametrize(("kind", "names"), [("Face", ["Sunset"]), ("Focus", ["Sunset", HER[0]])])
def test_only_faces_count_as_marks_of_a_face(tmp_path: Path, kind: str, names: list[str]) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar_path(photo).write_text(APPLE.format(type=kind, name="Sunset", more=""))
    write_sidecar(photo, SIZE_WH, named(HER))
    assert names_exiv2_reads(sidecar_path(photo)) == names


@settings(deadline=None)
@given(name=st.text(min_size=1).filter(lambda name: name.strip() != ""))
def test_any_name_can_be_written(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """What XML forbids is replaced, and the other names of the photo stay."""
    photo = tmp_path_factory.mktemp("names") / "photo.jpg"
    sidecar = write_sidecar(photo, SIZE_WH, named((name, (300, 20, 380, 100)), HER))
    assert sidecar is not None
    key = "{http://www.metadataworkinggroup.com/schemas/regions/}Name"
    found = [element.get(key) for element in etree.parse(sidecar).iter() if element.get(key) is not None]
    allowed = "".join(letter if is_in_xml(letter) else "\ufffd" for letter in name)
    assert found == [allowed, HER[0]]


def is_in_xml(letter: str) -> bool:
    """The production Char of XML 1.0."""
    code = ord(letter)
    return letter in "\t\n\r" or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def test_names_and_photos_that_give_no_sidecar_do_not_end_a_batch(tmp_path: Path) -> None:
    people = {tmp_path / name: ["Ada"] for name in ("damaged.png", f"{'a' * 250}.png", "2.png")}
    people[tmp_path / "1.png"] = ["\ufffe"]
    for path in people:
        Image.new("RGB", (100, 100)).save(path)
    with Job(job_of(tmp_path / "job", people)) as job:
        (tmp_path / "damaged.png").write_bytes(b"no photo")
        write_outputs(job, "xmp", write_photo_sidecar)
    assert sorted(file.name for file in tmp_path.glob("*.xmp")) == ["1.png.xmp", "2.png.xmp"]


def test_a_photo_whose_sidecar_would_have_too_long_a_name_is_told(tmp_path: Path) -> None:
    photo = tmp_path / f"{'a' * 250}.jpg"
    with pytest.raises(OutputError, match=r"can't be written .*its name shorter"):
        write_sidecar(photo, SIZE_WH, named(HER))
    assert not any(tmp_path.iterdir())


def test_nobody_named_no_sidecar(tmp_path: Path) -> None:
    assert write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named((None, HER[1]))) is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("My diary", "can't be read as XMP"),
        ("<html/>", "this is no XMP"),
        (
            FOREIGN.format(w=200, h=400),
            "for an image of 200 x 400, but this one is stored as 400 x 200",
        ),
        (FOREIGN.format(w=800, h=400)[:-400], "can't be read as XMP"),
    ],
    ids=["no XML", "no XMP", "another image", "cut off"],
)
def test_a_sidecar_that_is_not_understood_is_left_alone(tmp_path: Path, content: str, told: str) -> None:
    sidecar = tmp_path / "photo.jpg.xmp"
    sidecar.write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=f"photo.jpg.xmp: .*{told}"):
        write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER))
    assert sidecar.read_text(encoding="utf-8") == content


def test_entities_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    doctype = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{secret.as_uri()}">]>\n'
    body = FOREIGN.format(w=800, h=400).replace("holiday", "&e;").split("\n", 1)[1]
    (tmp_path / "photo.jpg.xmp").write_text(doctype + body, encoding="utf-8")
    write_sidecar(tmp_path / "photo.jpg", SIZE_WH, named(HER))
    assert "the secret" not in (tmp_path / "photo.jpg.xmp").read_text(encoding="utf-8")


# What a sidecar is on disk


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600, 0o755, 0o444])
def test_a_new_sidecar_is_for_those_who_may_read_the_photo(tmp_path: Path, mode: int) -> None:
    photo = tmp_path / "photo.png"
    photo_with_box(photo, 1)
    photo.chmod(mode)
    sidecar = write_sidecar(photo, SIZE_WH, named(HER))
    assert sidecar is not None
    assert mode_of(sidecar) == mode & 0o666
    sidecar.chmod(0o604)
    write_sidecar(photo, SIZE_WH, named(("Another", HER[1])))
    assert mode_of(sidecar) == 0o604


def test_a_sidecar_of_a_photo_that_is_gone_is_private(tmp_path: Path) -> None:
    sidecar = write_sidecar(tmp_path / "gone.jpg", SIZE_WH, named(HER))
    assert sidecar is not None
    assert mode_of(sidecar) == 0o600


def test_a_sidecar_that_is_a_link_stays_one(tmp_path: Path) -> None:
    """Some keep sidecars in a folder of their own. Who reads meanwhile has the old file or the new one."""
    (tmp_path / "sidecars").mkdir()
    real, photo = tmp_path / "sidecars" / "photo.xmp", tmp_path / "photo.jpg"
    real.write_text(FOREIGN.format(w=SIZE_WH[0], h=SIZE_WH[1]))
    sidecar_path(photo).symlink_to("between")
    (tmp_path / "between").symlink_to("sidecars/photo.xmp")
    with real.open() as reader:
        write_sidecar(photo, SIZE_WH, named(HER))
        assert HER[0] not in reader.read()
    assert sidecar_path(photo).readlink() == Path("between")
    assert (tmp_path / "between").is_symlink()
    assert HER[0] in real.read_text()
    assert [file.name for file in (tmp_path / "sidecars").iterdir()] == ["photo.xmp"]


@pytest.mark.parametrize("kind", ["pipe", "device", "link to nothing", "link to itself", "folder"])
def test_a_sidecar_that_is_no_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    photo = tmp_path / "photo.jpg"
    sidecar = sidecar_path(photo)
    if kind == "pipe":
        os.mkfifo(sidecar)
    elif kind == "folder":
        sidecar.mkdir()
    else:
        sidecar.symlink_to({"device": "/dev/zero", "link to nothing": "none"}.get(kind, sidecar))
    before = os.lstat(sidecar)
    for faces in (named(HER), named((None, HER[1]))):
        with pytest.raises(OutputError, match=r"photo\.jpg\.xmp: can't be read as XMP"):
            write_sidecar(photo, SIZE_WH, faces)
    assert os.lstat(sidecar) == before
