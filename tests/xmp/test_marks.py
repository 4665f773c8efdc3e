"""Who is where by what others have written: every program's form, contradictions, and hostile files."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import encode
from PIL import Image
from pipeline_helpers import faces_at
from xmp_helpers import (
    APPLE,
    FOREIGN,
    ORIENTATIONS,
    exiftool,
    mp,
    mwg,
    needs_exiftool,
    needs_exiv2,
    packet,
)

from facepipe.core.faces import Match
from facepipe.xmp.marks import MOST_MARKS, Doubt, MarkedPhoto, read_marks
from facepipe.xmp.packets import LARGEST_PACKET_BYTES, new_root, parse, to_bytes
from facepipe.xmp.regions import Region, read_regions
from facepipe.xmp.sidecars import write_sidecar
from facepipe.xmp.writing import put_faces

SIZE_WH = (400, 200)
ADA, BOB = Region("Ada", 0.3, 0.4, 0.1, 0.2), Region("Bob", 0.7, 0.4, 0.1, 0.2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", SIZE_WH).save(path)
    return path


def at(region: Region, name: str) -> Region:
    """The same place under another name."""
    return Region(name, region.x, region.y, region.w, region.h)


def named(marked: MarkedPhoto) -> list[str]:
    return [mark.name for mark in marked.marks]


def doubts(marked: MarkedPhoto) -> dict[str, Doubt | None]:
    return {mark.name: mark.doubt for mark in marked.marks}


# The forms of programs


@needs_exiftool
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIC"])
def test_both_forms_are_read_from_the_photo_and_count_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encode(Image.new("RGB", SIZE_WH), kind))
    exiftool(mwg(ADA, size_wh=SIZE_WH), mp(at(ADA, "Ada"), BOB), path)
    marked = read_marks(path)
    assert doubts(marked) == {"Ada": None, "Bob": None}
    for mark, region in zip(marked.marks, (ADA, BOB), strict=True):
        assert mark.region.sides == pytest.approx(region.sides)


@needs_exiv2
@pytest.mark.parametrize("target", ["photo.jpg", "photo.jpg.xmp"])
def test_regions_as_digikam_writes_them_by_exiv2(photo: Path, tmp_path: Path, target: str) -> None:
    region, mp_region = "Xmp.mwg-rs.Regions/mwg-rs:RegionList", "Xmp.MP.RegionInfo/MPRI:Regions"
    area = {"x": 0.3, "y": 0.4, "w": 0.1, "h": 0.2}
    commands = [
        f"set {region} XmpText type=Bag",
        *(f"set {region}[1]/mwg-rs:Area/stArea:{name} {value}" for name, value in area.items()),
        f"set {region}[1]/mwg-rs:Area/stArea:unit normalized",
        f"set {region}[1]/mwg-rs:Name Ada Lovelace",
        f"set {region}[1]/mwg-rs:Type Face",
        "set Xmp.mwg-rs.Regions/mwg-rs:AppliedToDimensions/stDim:w 400",
        "set Xmp.mwg-rs.Regions/mwg-rs:AppliedToDimensions/stDim:h 200",
        f"set {mp_region} XmpText type=Bag",
        f"set {mp_region}[1]/MPReg:PersonDisplayName Ada Lovelace",
        f"set {mp_region}[1]/MPReg:Rectangle 0.25, 0.3, 0.1, 0.2",
    ]
    if target.endswith(".xmp"):
        (tmp_path / target).write_bytes(to_bytes(new_root()))
    subprocess.run(["exiv2", *(f"-M{command}" for command in commands), str(tmp_path / target)], check=True)
    (mark,) = read_marks(photo).marks
    assert (mark.name, mark.doubt) == ("Ada Lovelace", None)
    assert mark.region.sides == pytest.approx(ADA.sides)


@pytest.mark.parametrize("sidecar", ["photo.jpg.xmp", "photo.xmp"])
@pytest.mark.parametrize(
    "text",
    [FOREIGN.format(w=800, h=400), APPLE.format(type="Face", name="Grandmother", more="")],
    ids=["Lightroom", "Apple"],
)
def test_sidecars_of_either_name_are_read(photo: Path, sidecar: str, text: str) -> None:
    photo.with_name(sidecar).write_text(text, encoding="utf-8")
    assert doubts(read_marks(photo)) == {"Grandmother": None}


@pytest.mark.parametrize(("kind", "name"), [("Pet", "Rex"), ("Focus", "Centre"), ("Face", "")])
def test_pets_and_nameless_faces_are_passed_over(photo: Path, kind: str, name: str) -> None:
    photo.with_suffix(".xmp").write_text(APPLE.format(type=kind, name=name, more=""))
    assert read_marks(photo) == MarkedPhoto(photo, 1, ())


def test_what_facepipe_wrote_is_nobodys_word(photo: Path) -> None:
    faces = faces_at((100, 60, 140, 100)).with_matches([Match("Ada", 0.5, 1.0)])
    write_sidecar(photo, SIZE_WH, faces, tags=True)
    assert read_marks(photo).marks == ()


def test_a_photo_without_regions_is_not_reported(photo: Path) -> None:
    assert read_marks(photo) == MarkedPhoto(photo, 1, ())


# Coordinates


SHARES = st.floats(0.001, 1)


@given(orientation=st.sampled_from(ORIENTATIONS), numbers=st.tuples(SHARES, SHARES, SHARES, SHARES))
def test_coordinates_come_back_from_a_packet(
    orientation: int, numbers: tuple[float, float, float, float]
) -> None:
    upright, root = Region("Zoë <&> O'Brien", *numbers), new_root()
    put_faces(root, [upright.in_stored_frame(orientation)], SIZE_WH, tags=False)
    theirs = to_bytes(root).replace(b"facepipe:Written", b"facepipe:Other")
    ((stored,),) = (regions.regions for regions in read_regions(parse(theirs)))
    back = stored.in_upright_frame(orientation)
    assert back.name == upright.name
    assert back.sides == pytest.approx(upright.sides, abs=2e-6)


# Contradictions


@pytest.mark.parametrize(
    ("embedded", "sidecar", "expected"),
    [
        ([ADA], [at(ADA, "Bob")], {"Ada": Doubt.TWO_NAMES, "Bob": Doubt.TWO_NAMES}),
        ([ADA, at(BOB, "Ada")], [], {"Ada": Doubt.NAME_TWICE}),
        ([ADA], [at(BOB, "Ada")], {"Ada": Doubt.NAME_TWICE}),
        ([ADA, BOB], [ADA], {"Ada": None, "Bob": None}),
        ([ADA], [Region("Ada ", 0.305, 0.4, 0.11, 0.21)], {"Ada": None}),
        ([ADA, Region("Bob", 1.5, 0.4, 0.1, 0.2)], [], {"Ada": None, "Bob": Doubt.BAD_AREA}),
        ([Region("Bob", 0.3, float("nan"), 0.1, 0.2)], [], {"Bob": Doubt.BAD_AREA}),
        ([ADA, at(BOB, "B" * 201)], [], {"Ada": None, "B" * 188: Doubt.BAD_NAME}),
        ([at(ADA, "Ada\n Lovelace")], [], {"Ada Lovelace": None}),
    ],
)
def test_contradictions_are_doubted(
    photo: Path, embedded: Sequence[Region], sidecar: Sequence[Region], expected: dict[str, Doubt | None]
) -> None:
    Image.new("RGB", SIZE_WH).save(photo, xmp=packet(*embedded).encode())
    photo.with_name("photo.jpg.xmp").write_text(packet(*sidecar))
    marked = read_marks(photo)
    assert doubts(marked) == expected
    assert marked.errors == ()


@pytest.mark.parametrize(
    ("size_wh", "doubt"), [((800, 400), None), ((4000, 2002), None), ((200, 400), Doubt.OTHER_SHAPE)]
)
def test_regions_of_a_resized_photo_count_and_of_another_shape_do_not(
    photo: Path, size_wh: tuple[int, int], doubt: Doubt | None
) -> None:
    photo.with_suffix(".xmp").write_text(packet(ADA, size_wh=size_wh))
    assert doubts(read_marks(photo)) == {"Ada": doubt}


def test_the_shape_is_that_of_the_stored_image(tmp_path: Path) -> None:
    photo, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE_WH).save(photo, exif=exif, xmp=packet(ADA, size_wh=SIZE_WH).encode())
    marked = read_marks(photo)
    assert (marked.orientation, doubts(marked)) == (6, {"Ada": None})


# Hostile files


def bomb(use: str) -> str:
    """Entities that would become a hundred million letters."""
    names = "abcdefgh"
    nested = "".join(f"<!ENTITY {name} '{f'&{before};' * 10}'>" for before, name in pairwise(names))
    return f"<!DOCTYPE x [<!ENTITY a '{'z' * 10}'>{nested}]>{use}"


HOSTILE = {
    "a bomb in an attribute": bomb(packet(ADA).replace("'Ada'", "'&h;'").replace('"Ada"', '"&h;"')),
    "a cycle": f"<!DOCTYPE x [<!ENTITY a '&b;'><!ENTITY b '&a;'>]>{packet(ADA).replace('Ada', '&a;')}",
    "deep": packet(ADA).replace("<mwg-rs:Area", "<a>" * 10_000 + "<mwg-rs:Area"),
    "invalid UTF-8": packet(ADA).encode().replace(b"Ada", b"\xff\xfe"),
    "cut off": packet(ADA)[:-30],
    "no XML": "\0\1\2",
    "empty": "",
    "no XMP": "<html/>",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_xmp_is_an_error_that_names_the_file(photo: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    Image.new("RGB", SIZE_WH).save(photo, xmp=data)
    photo.with_suffix(".xmp").write_bytes(data)
    photo.with_name("photo.jpg.xmp").write_text(packet(BOB))
    marked = read_marks(photo)
    assert named(marked) == ["Bob"]
    starts = {error.split(": ")[0] for error in marked.errors}
    assert starts == {str(photo.with_suffix(".xmp")), *([str(photo)] if data else [])}


def test_entities_are_not_opened(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    doctype = f"<!DOCTYPE x [<!ENTITY e SYSTEM '{(tmp_path / 'secret').as_uri()}'>]>"
    text = APPLE.format(type="Face", name="&e;", more="")
    photo.with_suffix(".xmp").write_text(doctype + text)
    assert read_marks(photo).marks == ()


def test_a_bomb_in_text_stays_closed(photo: Path) -> None:
    photo.with_suffix(".xmp").write_text(bomb(APPLE.format(type="Face", name="&h;", more="")))
    assert read_marks(photo).marks == ()


def test_sidecars_that_are_too_large_or_no_files_are_errors(photo: Path) -> None:
    sidecar = photo.with_suffix(".xmp")
    with sidecar.open("wb") as stream:
        stream.truncate(LARGEST_PACKET_BYTES + 1)
    photo.with_name("photo.jpg.xmp").symlink_to("photo.jpg.xmp")
    link, huge = read_marks(photo).errors
    assert link.startswith(f"{photo}.xmp: can't be read as XMP")
    assert huge == f"{sidecar}: can't be read as XMP (more than 16,000,000 bytes); move it away"


def test_a_photo_with_too_many_marks_is_an_error(photo: Path) -> None:
    regions = [at(ADA, f"Ada {number}") for number in range(MOST_MARKS + 1)]
    photo.with_suffix(".xmp").write_text(packet(*regions))
    marked = read_marks(photo)
    assert marked.marks == ()
    assert marked.errors == (f"{photo}: 1,001 named faces; at most 1,000 are read",)


def test_a_photo_that_is_none_is_an_error(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_text("no photo")
    photo.with_suffix(".xmp").write_text(packet(ADA))
    marked = read_marks(photo)
    assert marked.marks == ()
    assert marked.errors[0].startswith(f"{photo}: not a photo")


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200), at_byte=st.integers(0, 1000), cut=st.booleans())
def test_any_bytes_in_a_packet_give_marks_or_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at_byte: int, cut: bool
) -> None:
    photo = tmp_path_factory.mktemp("any") / "photo.png"
    Image.new("RGB", (8, 4)).save(photo)
    whole = packet(ADA, BOB).encode()
    photo.with_suffix(".xmp").write_bytes(whole[:at_byte] + data + (b"" if cut else whole[at_byte:]))
    marked = read_marks(photo)
    assert all(mark.region.is_valid() for mark in marked.marks if mark.doubt is None)
    assert all(error.startswith(str(photo.with_suffix(".xmp"))) for error in marked.errors)
