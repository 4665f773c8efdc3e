"""Merging from another gallery leaves every byte of its folder as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import facepipe
from gallery_helpers import ENCODER, INDEX_FILES, make_gallery_of_schema_2, person_vectors, template

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery

DATABASE = "gallery.sqlite3"
KEY = b"correct horse battery staple"


def fill(gallery: Gallery) -> None:
    gallery.add("Ada", [template(v, f"ada{i}", b"a picture") for i, v in enumerate(person_vectors(1, 3))])
    gallery.set_person_threshold("Ada", 0.5)


def whole(folder: Path) -> None:
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        fill(gallery)


def left_by_a_killed_process(folder: Path) -> None:
    """All changes are in the log, which nobody folded into the file."""
    with Gallery.open(folder.with_name("alive"), ENCODER, create=True) as gallery:
        fill(gallery)
        shutil.copytree(folder.with_name("alive"), folder)
    assert (folder / f"{DATABASE}-wal").stat().st_size > 4096


def without_shared_memory(folder: Path) -> None:
    left_by_a_killed_process(folder)
    (folder / f"{DATABASE}-shm").unlink()


def encrypted(folder: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the [encryption] extra")
    with Gallery.open(folder, ENCODER, create=True, secret=KEY) as gallery:
        fill(gallery)


def all_of(folder: Path) -> dict[str, object]:
    """Every file's bytes, time and permissions, and the folder's own time: nothing came and went either."""
    files = {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_mode)
        for file in folder.iterdir()
    }
    return {**files, ".": folder.stat().st_mtime_ns}


KINDS: list[Callable[[Path], None]] = [
    whole,
    left_by_a_killed_process,
    without_shared_memory,
    encrypted,
    make_gallery_of_schema_2,
]


@pytest.mark.parametrize("make", KINDS)
def test_no_byte_of_the_other_gallery_is_changed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    other = tmp_path / "other"
    make(other)
    before = all_of(other)
    with Gallery.open(tmp_path / "own", ENCODER, create=True) as gallery:
        assert gallery.merge_from(other, KEY if make is encrypted else None) == 3
        assert gallery.people()[0].name == "Ada"
        assert gallery.people()[0].threshold_l2 == 0.5
    assert all_of(other) == before
    assert sorted(file.name for file in (tmp_path / "own").iterdir()) == [DATABASE, *INDEX_FILES]


def complaint_of(gallery: Gallery, other: Path) -> str:
    """Why a gallery can't be merged from; empty where it was: what is in its log may make good for damage."""
    try:
        gallery.merge_from(other)
    except GalleryError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("make", [whole, left_by_a_killed_process, make_gallery_of_schema_2])
@pytest.mark.parametrize("damage", [slice(4096, 4200), slice(0, 16), slice(2048, None)])
def test_nor_of_a_damaged_one(tmp_path: Path, make: Callable[[Path], None], damage: slice) -> None:
    other = tmp_path / "other"
    make(other)
    data = bytearray((other / DATABASE).read_bytes())
    data[damage] = b"" if damage.stop is None else b"?" * (damage.stop - damage.start)
    (other / DATABASE).write_bytes(data)
    before = all_of(other)
    with Gallery.open(tmp_path / "own", ENCODER, create=True) as gallery:
        complaint = complaint_of(gallery, other)
        people = [person.name for person in gallery.people()]
    assert (people == [] and str(other) in complaint) or (people == ["Ada"] and not complaint)
    assert all_of(other) == before
    assert sorted(file.name for file in (tmp_path / "own").iterdir()) in (
        [DATABASE],
        [DATABASE, *INDEX_FILES],
    )


def test_a_gallery_in_use_is_merged_from_as_it_is_just_then(tmp_path: Path) -> None:
    with (
        Gallery.open(tmp_path / "other", ENCODER, create=True) as other,
        Gallery.open(tmp_path / "own", ENCODER, create=True) as own,
    ):
        fill(other)
        names = sorted(file.name for file in (tmp_path / "other").iterdir())
        assert own.merge_from(other.path) == 3
        assert sorted(file.name for file in (tmp_path / "other").iterdir()) == names
        other.add("Bob", [template(person_vectors(2, 1)[0], "bob")])
        assert own.merge_from(other.path) == 1
        assert [person.name for person in own.people()] == ["Ada", "Bob"]
        other.rename("Bob", "Eve")
    with Gallery.open(tmp_path / "other") as other:
        assert [person.name for person in other.people()] == ["Ada", "Eve"]


def test_a_gallery_that_is_written_all_the_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(tmp_path / "other")
    times = iter(range(10**6))
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.snapshot._extents", lambda file: next(times))
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.database._RETRY_S", 0)
    with (
        Gallery.open(tmp_path / "own", ENCODER, create=True) as own,
        pytest.raises(GalleryError, match=r"other.*changes the gallery all the time"),
    ):
        own.merge_from(tmp_path / "other")


def test_the_command(tmp_path: Path) -> None:
    left_by_a_killed_process(tmp_path / "other")
    whole(tmp_path / "own")
    before = all_of(tmp_path / "other")
    said = facepipe("gallery", "merge-from", tmp_path / "other", "--gallery", tmp_path / "own")
    assert (said.code, "0 new faces" in said.err) == (0, True)
    assert all_of(tmp_path / "other") == before
