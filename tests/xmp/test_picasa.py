"""Faces in Picasa's own file: which are read, and which can't be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from xmp_helpers import packet

from facepipe.xmp.marks import Doubt, read_marks
from facepipe.xmp.picasa import read_picasa
from facepipe.xmp.regions import Region

SIZE_WH = (400, 200)
ADA = "3333555566669999"
"""0.2..0.4 of the width, 0.333..0.6 of the height."""
INI = f"""[Picasa]
name=Holiday
[Contacts2]
8e62398ebda8c1a5=Ada Lovelace;ada@example.org;
1111111111111111=;;
[photo.jpg]
star=yes
faces=rect64({ADA}),8e62398ebda8c1a5;rect64(a),1111111111111111;rect64(bb),ffffffffffffffff
[Foto [2].jpg]
faces=rect64(12345678),8e62398ebda8c1a5
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", SIZE_WH).save(path)
    return path


def write(photo: Path, text: str, name: str = ".picasa.ini") -> None:
    photo.with_name(name).write_bytes(text.encode())


@pytest.mark.parametrize("name", [".picasa.ini", "Picasa.ini"])
@pytest.mark.parametrize(
    "text", [INI, INI.replace("\n", "\r\n"), f"\ufeff{INI}", INI.replace("photo.", "PHOTO.")]
)
def test_faces_with_a_name_are_read(photo: Path, name: str, text: str) -> None:
    write(photo, text, name)
    (mark,) = read_marks(photo).marks
    assert (mark.name, mark.doubt) == ("Ada Lovelace", None)
    assert mark.region.sides == pytest.approx((0.2, 1 / 3, 0.4, 0.6))


def test_leading_zeros_and_brackets_in_names(photo: Path) -> None:
    write(photo, INI)
    (region,) = read_picasa(photo.with_name("Foto [2].jpg")).regions
    assert region.sides == pytest.approx((0, 0, 0x1234 / 0xFFFF, 0x5678 / 0xFFFF))


def test_the_same_name_in_xmp_counts_once_and_another_one_contradicts(photo: Path) -> None:
    write(photo, INI)
    photo.with_suffix(".xmp").write_text(packet(Region("Ada Lovelace", 0.3, 0.46, 0.2, 0.28)))
    assert [mark.doubt for mark in read_marks(photo).marks] == [None]
    photo.with_suffix(".xmp").write_text(packet(Region("Bob", 0.3, 0.46, 0.2, 0.28)))
    assert {mark.name: mark.doubt for mark in read_marks(photo).marks} == {
        "Bob": Doubt.TWO_NAMES,
        "Ada Lovelace": Doubt.TWO_NAMES,
    }


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("rotate", ["", "rotate=rotate(0)\n", "rotate=rotate(1)\n"])
def test_turned_photos_are_refused(photo: Path, orientation: int, rotate: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE_WH).save(photo, exif=exif)
    write(photo, INI.replace("star=yes\n", rotate))
    (mark,) = read_marks(photo).marks
    is_upright = orientation == 1 and "1" not in rotate
    assert mark.doubt is (None if is_upright else Doubt.UNKNOWN_FRAME)


def test_a_changed_file_is_read_again(photo: Path) -> None:
    write(photo, INI)
    read_picasa(photo)
    write(photo, INI.replace("Ada Lovelace", "Countess of Lovelace"))
    assert [region.name for region in read_picasa(photo).regions] == ["Countess of Lovelace"]


@pytest.mark.parametrize("kind", ["folder", "link to itself", "huge"])
def test_a_file_that_can_not_be_read_is_an_error(photo: Path, kind: str) -> None:
    ini = photo.with_name(".picasa.ini")
    if kind == "folder":
        ini.mkdir()
    elif kind == "huge":
        with ini.open("wb") as stream:
            stream.truncate(16_000_001)
    else:
        ini.symlink_to(ini)
    marked = read_marks(photo)
    assert marked.marks == ()
    (error,) = marked.errors
    assert error.startswith(f"{photo.parent}: its .picasa.ini can't be read (")


@given(text=st.text(st.sampled_from("[]=;,rect64()photo.jpgfacs\n0a"), max_size=200))
def test_any_text_is_read_or_not(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    photo = tmp_path_factory.mktemp("any") / "photo.jpg"
    write(photo, f"{INI}{text}")
    assert all(region.name for region in read_picasa(photo).regions)
