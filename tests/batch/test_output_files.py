"""Pictures of a batch: a job removes its own outdated ones, and no other file, whatever its file names."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import as_of_before, each, job_of, write_checksums
from hypothesis import given
from hypothesis import strategies as st

from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.models import PhotoRecord
from facepipe.batch.output_files import (
    PICTURE_KINDS,
    SIDECAR_KIND,
    names_of_before,
    picture_folder,
    remove_pictures,
    require_names,
)
from facepipe.batch.results import Writer, write_outputs
from facepipe.core.errors import FacepipeError, OutputError
from facepipe.core.faces import Match
from facepipe.core.paths import is_inside


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    photos = [tmp_path / "photos" / name for name in ("a/one.png", "b/two.png")]
    for photo in photos:
        photo.parent.mkdir(parents=True)
        photo.write_text(f"pixels of {photo.name}")
    return photos


def named(out: Path, name: str) -> None:
    """Call everybody by another name."""
    with Job(out) as job:
        job.faces.name_again(each(lambda faces, _: [Match(name, 0.5, 1.0)] * len(faces)), name, 4)


def make(out: Path, kind: str) -> int:
    """Pictures without pixels, named as those of `PictureFolder`."""
    folder = picture_folder(out, kind)

    def write(record: PhotoRecord) -> list[Path]:
        assert record.result.faces is not None
        photo, (match,) = record.result.path, record.result.faces.matches or (None,)
        assert match is not None
        ending = f"_face0_{match.label}.jpg" if kind == "crops" else ""
        file = folder / photo.parent.name / f"{photo.name}{ending}"
        if not is_inside(file.parent, folder):
            raise OutputError(f"{file}: leads out")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(match.label)
        return [file]

    with Job(out) as job:
        return write_outputs(job, kind, write)


def found(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_files(out: Path, kind: str, files: object) -> None:
    """What a job file says of the files of its first photo, and that they are outdated."""
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        row = (json.dumps(files), kind)
        database.execute("UPDATE products SET files = ?, made_of = 'x' WHERE kind = ? AND photo_id = 1", row)
        write_checksums(database)


SPELLINGS = ["out", "./out", "photos/../out", "ABSOLUTE", "linked", "linked/../linked"]


@pytest.mark.parametrize("kind", PICTURE_KINDS)
@pytest.mark.parametrize(("first", "second"), [*pairwise(SPELLINGS), ("linked", "out")])
def test_pictures_are_the_same_however_out_is_spelled(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, first: str, second: str
) -> None:
    job_of(tmp_path / "out", {photo: ["Ada"] for photo in photos})
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    spelled = [tmp_path / "out" if out == "ABSOLUTE" else Path(out) for out in (first, second)]
    assert make(spelled[0], kind) == 0
    named(spelled[1], "Bea")
    assert make(spelled[1], kind) == 0
    faces = "_face0_Bea.jpg" if kind == "crops" else ""
    assert found(tmp_path / "out" / kind) == [f"a/one.png{faces}", f"b/two.png{faces}"]


def test_a_copied_job_leaves_the_pictures_of_the_first_alone(photos: list[Path], tmp_path: Path) -> None:
    job_of(tmp_path / "out", {photo: ["Ada"] for photo in photos})
    make(tmp_path / "out", "crops")
    before = found(tmp_path / "out" / "crops")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    named(tmp_path / "copy", "Bea")
    make(tmp_path / "copy", "crops")
    assert found(tmp_path / "out" / "crops") == before
    assert all("Bea" in name for name in found(tmp_path / "copy" / "crops"))


@pytest.mark.parametrize("spelling", ["absolute", "relative", "copied", "dotted"])
def test_a_job_of_before_takes_its_pictures_along_wherever_it_is(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """It had remembered whole paths, as --out was spelled then."""
    out = tmp_path / "crops" / "out"
    job_of(out, {photo: ["Ada"] for photo in photos})
    make(out, "crops")
    spelled = {
        "absolute": out,
        "relative": Path("crops/out"),
        "copied": tmp_path / "original" / "out",
        "dotted": tmp_path / "photos" / ".." / "crops" / "out",
    }[spelling]
    if spelling == "copied":
        shutil.copytree(out, spelled)
    write_files(out, "crops", [str(spelled / "crops" / "a" / "one.png_face0_Ada.jpg")])
    as_of_before(out)
    with Job(out) as job:
        assert job.outputs.of_kind("crops")[1].names == ("a/one.png_face0_Ada.jpg",)
    make(out, "crops")
    named(out, "Bea")
    make(out, "crops")
    assert all("Bea" in name for name in found(out / "crops"))
    if spelling == "copied":
        assert all("Ada" in name for name in found(spelled / "crops"))


ELSEWHERE = [
    "/{top}/diary.txt",
    "../diary.txt",
    "../../diary.txt",
    "a/../../../diary.txt",
    "./../../diary.txt",
    "/etc/hostname",
    "a\0b",
    "\ud800",
    "",
    ".",
    "..",
    5,
    None,
    ["diary.txt"],
]


@pytest.mark.parametrize("kind", [*PICTURE_KINDS, SIDECAR_KIND])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ELSEWHERE, ids=repr)
def test_no_file_elsewhere_is_removed(
    photos: list[Path], tmp_path: Path, kind: str, version: int, name: Any
) -> None:
    """Refused with the job's name, or taken for nothing of the job's; the diary stays in any case."""
    out = tmp_path / "out"
    job_of(out, {photo: ["Ada"] for photo in photos})
    for of in PICTURE_KINDS:
        make(out, of)
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        database.execute("INSERT OR REPLACE INTO products SELECT ?, 1, 'x', '[]', 0", (kind,))
        write_checksums(database)
    diaries = [tmp_path / "diary.txt", out / "diary.txt", photos[0].parent / "diary.txt", photos[0]]
    for diary in diaries[:3]:
        diary.write_text("my diary")
    write_files(out, kind, [name.format(top=tmp_path) if isinstance(name, str) else name])
    if version == 1:
        as_of_before(out)
    told = str(out / JOB_FILE)
    try:
        named(out, "Bea")
        make(out, "annotated")
        make(out, "crops")
        photos[0].rename(moved := photos[0].with_name("moved.png"))
        with Job(out) as job:
            assert job.plan([moved, photos[1]]).moved == 1
        moved.rename(photos[0])
    except FacepipeError as error:
        told = str(error)
    assert told.startswith(str(out / JOB_FILE))
    assert all(diary.exists() for diary in diaries)


@given(
    st.one_of(st.text(), st.lists(st.sampled_from(["..", "a", ".", "", "/", "\0", "\udcff"])).map("/".join))
)
def test_names_stay_below_their_folder(name: str) -> None:
    try:
        (same,) = require_names([name])
    except ValueError:
        return
    assert os.path.normpath(f"/job/crops/{same}").startswith("/job/crops/")
    assert not os.path.exists(f"/job/crops/{same}"), "the system takes it for a name of no file"


def test_links_that_lead_out_are_neither_written_nor_removed_through(
    photos: list[Path], tmp_path: Path
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    job_of(out, {photo: ["Ada"] for photo in photos})
    make(out, "crops")
    shutil.copytree(out / "crops" / "a", elsewhere)
    shutil.rmtree(out / "crops" / "a")
    (out / "crops" / "a").symlink_to(elsewhere)
    before = found(elsewhere)
    named(out, "Bea")
    assert make(out, "crops") == 1, "the rest goes on"
    assert found(elsewhere) == before
    with pytest.raises(OutputError, match=r"leads out of .* by a link; remove the link"):
        remove_pictures(out, "crops", ["a/one.png_face0_Ada.jpg"])
    shutil.rmtree(out / "annotated", ignore_errors=True)
    (out / "annotated").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link"):
        make(out, "annotated")
    with pytest.raises(OutputError, match="is a link"):
        remove_pictures(out, "annotated", before)
    assert found(elsewhere) == before


def test_a_picture_that_another_photo_has_now_stays(photos: list[Path], tmp_path: Path) -> None:
    """Two photos exchange the names of their pictures: the outdated one of the first is the second's."""
    out = tmp_path / "out"
    job_of(out, {photo: ["Ada"] for photo in photos})

    def makes(*names: str) -> Writer:
        def write(record: PhotoRecord) -> list[Path]:
            file = out / "crops" / names[record.id - 1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"of {record.id}")
            return [file]

        return write

    for turn, names in enumerate((("x", "y"), ("y", "x"), ("z", "y"), ("y", "w"))):
        named(out, f"Name {turn}")
        with Job(out) as job:
            assert write_outputs(job, "crops", makes(*names)) == 0
        assert {name: (out / "crops" / name).read_text() for name in found(out / "crops")} == {
            names[0]: "of 1",
            names[1]: "of 2",
        }


def test_paths_of_before_that_are_no_paths_are_damage(tmp_path: Path) -> None:
    for text in ("{}", "[1]", "null", '["/a/crops/\\ud800"]'):
        with pytest.raises(ValueError, match=r"expected|surrogates"):
            names_of_before(tmp_path, "crops", text)
    assert names_of_before(tmp_path, "crops", '["/a/crops/gone.jpg"]') is None
    assert names_of_before(tmp_path, SIDECAR_KIND, '["/a/b.jpg.xmp"]') == ("b.jpg.xmp",)
