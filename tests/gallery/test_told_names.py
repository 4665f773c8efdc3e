"""A name is checked before it is given out, and damage never gets a checksum that fits it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors, template

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import repair, verify

DATABASE = "gallery.sqlite3"
NAME = "Mata Hari"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of two people, with an unknown face, closed."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add(NAME, [template(v, f"mata{i}") for i, v in enumerate(person_vectors(1, 3))])
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(2, 3))])
        gallery.remember_unknown([template(person_vectors(3, 1)[0], "stranger")])
    return tmp_path / "g"


def flip(folder: Path, byte: int, bit: int) -> None:
    """Flip a bit of the name in its row (the index of names has another copy, the first in the file)."""
    file = folder / DATABASE
    with closing(sqlite3.connect(file)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'people'").fetchone()
    data = bytearray(file.read_bytes())
    place = data.index(NAME.encode(), (root - 1) * size, root * size) + byte
    data[place] ^= 1 << bit
    file.write_bytes(data)


TELLING: dict[str, Callable[[Gallery, Path], object]] = {
    "list": lambda gallery, _: gallery.people(),
    "match": lambda gallery, _: gallery.match(person_vectors(1, 1)),
    "the runner-up of a match": lambda gallery, _: gallery.match(person_vectors(2, 1)),
    "nearest others": lambda gallery, _: gallery.nearest_others("Ada", person_vectors(2, 1)),
    "names alike": lambda gallery, _: gallery.people_like("mata hari"),
    "export": lambda gallery, scratch: gallery.export_archive(scratch / "a.zip"),
    "a threshold of one's own": lambda gallery, _: gallery.set_person_threshold(NAME, 0.5),
}


@pytest.mark.parametrize("tell", TELLING)
def test_a_damaged_name_is_not_told_but_an_error(folder: Path, tmp_path: Path, tell: str) -> None:
    flip(folder, 1, 0)  # "M`ta Hari"
    with (
        Gallery.open(folder, ENCODER) as gallery,
        pytest.raises(GalleryError, match=r"people 1 is damaged.*gallery repair"),
    ):
        TELLING[tell](gallery, tmp_path)
    assert [finding.code for finding in verify(folder)].count("checksum") == 1
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_a_name_is_noticed_and_repaired(folder: Path, bit: int) -> None:
    """The name is taken from the index of names, so nobody is lost. The highest bit makes it no Unicode."""
    flip(folder, 5 * bit % len(NAME), bit)
    with Gallery.open(folder, ENCODER) as gallery, pytest.raises(GalleryError, match="damaged"):
        gallery.people()
    done = repair(folder)
    assert (done.templates, done.quarantined) == (6, 1)
    assert verify(folder) == ()
    with Gallery.open(folder, ENCODER) as gallery:
        assert [person.name for person in gallery.people()] == ["Ada", NAME]
        assert gallery.match(person_vectors(1, 1))[0].name == NAME


def test_who_is_not_near_a_damaged_name_is_told(folder: Path) -> None:
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(person_vectors(2, 3, 0.06))])
    flip(folder, 1, 0)
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.match(person_vectors(2, 1))[0].name == "Ada"


@pytest.mark.parametrize(
    ("statement", "change"),
    [
        ("UPDATE people SET threshold_l2 = 1.5 WHERE id = 1", lambda g: g.rename(NAME, "H21")),
        ("UPDATE people SET threshold_l2 = 1.5 WHERE id = 1", lambda g: g.match(person_vectors(1, 1))),
        ("UPDATE templates SET source = 'x' WHERE id = 1", lambda g: g.merge(NAME, "Ada")),
        ("UPDATE templates SET quality = 0.5", lambda g: g.export_archive(g.path.parent / "a.zip")),
        ("UPDATE unknown_faces SET source = 'x'", lambda g: g.enroll_unknown([1], "Ada")),
    ],
)
def test_damage_is_not_passed_on(folder: Path, statement: str, change: Callable[[Gallery], object]) -> None:
    """Rows that are written again, or elsewhere, get a new checksum: the old one is looked at before."""
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute(statement)
        connection.commit()
    with Gallery.open(folder, ENCODER) as gallery, pytest.raises(GalleryError, match="damaged"):
        change(gallery)
    assert {finding.code for finding in verify(folder)} == {"checksum"}


def test_a_damaged_fingerprint_is_told_as_damage(folder: Path) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("UPDATE meta SET encoder_fingerprint = 'fedcba9876543211'")
        connection.commit()
    with pytest.raises(GalleryError, match=r"meta 1 is damaged.*gallery repair"):
        Gallery.open(folder, ENCODER)
