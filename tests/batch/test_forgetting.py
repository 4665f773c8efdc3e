"""People and photos leave a batch's folder: a search over all bytes finds neither names nor vectors."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from batch_helpers import NAME, each, enroll_her, files
from cli_helpers import Said, facepipe
from pipeline_helpers import faces_at, noise
from xmp_helpers import FOREIGN

from facepipe.batch.forgetting import forget_left_out, forget_person
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE, JobFile
from facepipe.batch.models import OutputFiles, PhotoAnalysis, ReportOptions
from facepipe.batch.output_files import TAGGED_SIDECAR_KIND
from facepipe.batch.page import write_report
from facepipe.batch.results import source_hash, write_outputs, write_records, write_tagged_sidecar
from facepipe.core.errors import OutputError
from facepipe.core.faces import Match, UInt8Array
from facepipe.gallery import Gallery
from facepipe.images.reading import photo_sha256, write_image
from facepipe.xmp.sidecars import sidecar_path

HERS = np.random.default_rng(1).normal(size=4).astype(np.float32)
HIS = np.random.default_rng(2).normal(size=4).astype(np.float32)


def all_bytes(folder: Path) -> bytes:
    """Of all files, with their names."""
    return b"".join(
        os.fsencode(file) + (file.read_bytes() if file.is_file() else b"") for file in folder.rglob("*")
    )


def see(job: Job, path: Path, vector: np.ndarray, match: Match) -> None:
    """One face, with a crop."""
    (task,) = [task for task in job.waiting() if task.path == path]
    faces = faces_at((1, 2, 30, 40)).with_embeddings(vector[None]).with_enrollable(np.ones(1, bool))
    job.save(
        [
            PhotoAnalysis(
                task,
                photo_sha256(path),
                (64, 48),
                faces.with_matches([match]),
                reasons=(None,),
                pictures={0: b"her face"},
            )
        ],
        "n",
    )
    (record,) = [record for record in job.records() if record.id == task.id]
    crop = job.folder / "crops" / f"{path.name}_face0_{match.label}.jpg"
    crop.parent.mkdir(exist_ok=True)
    crop.write_text(f"picture of {match.label}")
    job.outputs.remember("crops", {task.id: OutputFiles(source_hash(record), (crop.name,))})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """She is in one photo, may be in another, and is next to him in a third."""
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        see(job, photos[0], HERS, Match("Ada", 0.5, 1.0, "Bob", 0.9))
        see(job, photos[1], HERS, Match(None, 0.5, 1.0, candidate_name="Ada", reason="between_people"))
        see(job, photos[2], HIS, Match("Bob", 0.5, 1.0, "Ada", 0.9))
        write_records(job, "results.jsonl")
        write_records(job, "faces.csv")
        write_report(job, ReportOptions(0.75, paths=False))
    return tmp_path / "out"


def test_a_forgotten_person_is_in_no_byte_of_the_folder(out: Path) -> None:
    assert b"Ada" in all_bytes(out)
    assert HERS.tobytes() in all_bytes(out)
    with Job(out) as job:
        assert forget_person(job, {"Ada"}) == 2
        assert [task.path.name for task in job.waiting()] == ["1.jpg", "2.jpg"]
        (left,) = job.records()
        assert left.result.faces is not None
        assert left.result.faces.matches == (Match("Bob", 0.5, 1.0),)
        assert job.faces.pictures(1) == {}
        for secret in (b"Ada", HERS.tobytes()):
            assert secret not in all_bytes(out), "also while the job is open"
    everything = all_bytes(out)
    assert b"Ada" not in everything
    assert HERS.tobytes() not in everything
    assert HIS.tobytes() in everything
    assert b"Bob" in (out / "report.html").read_bytes()
    assert b"3.jpg" not in (out / "report.html").read_bytes(), "written as it was, without paths"
    assert len((out / "results.jsonl").read_text().splitlines()) == 1
    assert [path.name for path in (out / "crops").iterdir()] == ["3.jpg_face0_Bob.jpg"]
    with Job(out) as job:
        assert forget_person(job, {"Ada"}) == 0
        assert job.faces.name_again(each(lambda faces, _: [Match("Bob", 0.5, 1.0)]), "n", 4) == 1, (
            "his nearest is unknown"
        )


def test_what_a_killed_command_has_not_wiped_is_wiped_by_the_next(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: JobFile) -> None:
        raise KeyboardInterrupt

    with Job(out) as job:
        monkeypatch.setattr(JobFile, "wipe", killed)
        with pytest.raises(KeyboardInterrupt):
            forget_person(job, {"Ada"})
        monkeypatch.undo()
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        assert database.execute("SELECT count(*) FROM settings WHERE key = 'wipe due'").fetchone() == (1,)
    Job(out).close()
    assert b"Ada" not in all_bytes(out)
    assert HERS.tobytes() not in all_bytes(out)
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        assert database.execute("SELECT count(*) FROM settings WHERE key = 'wipe due'").fetchone() == (0,)
        assert database.execute("PRAGMA freelist_count").fetchone() == (0,)


def test_where_a_file_can_not_be_removed_nothing_is_forgotten(out: Path) -> None:
    crop = out / "crops" / "1.jpg_face0_Ada.jpg"
    crop.unlink()
    crop.mkdir()
    with Job(out) as job:
        with pytest.raises(OutputError, match="can't be removed"):
            forget_person(job, {"Ada"})
        assert len(list(job.records())) == 3
    assert b"Ada" in (out / "results.jsonl").read_bytes()


def test_photos_that_are_left_out_are_forgotten_when_told(out: Path) -> None:
    photos = sorted((out.parent / "photos").iterdir())
    photos[0].unlink()
    photos[1].unlink()
    with Job(out) as job:
        job.plan(photos[2:])
        assert HERS.tobytes() in all_bytes(out)
        assert forget_left_out(job) == 2
        assert [task.path for task in job.remembered()] == photos[2:]
    assert HERS.tobytes() not in all_bytes(out)
    assert b"1.jpg" not in b"".join(os.fsencode(file) for file in out.rglob("*"))
    assert b"1.jpg" not in (out / JOB_FILE).read_bytes()


@pytest.mark.parametrize("waits", [False, True], ids=["done", "waits"])
def test_a_replaced_photo_gets_none_of_the_faces_of_the_one_before(
    tmp_path: Path, astronaut: UInt8Array, waits: bool
) -> None:
    pytest.importorskip("lxml", reason="needs the [xmp] extra")
    (tmp_path / "photos").mkdir()
    photos = [tmp_path / "photos" / name for name in ("alike.png", "larger.png", "touched.png")]
    for photo in photos:
        write_image(photo, noise(1, 48, 64))
        sidecar_path(photo).write_text(FOREIGN.format(w=64, h=48))
    faces = faces_at((1, 2, 10, 12), (50, 30, 60, 40)).with_embeddings(np.stack([HERS, HIS]))
    faces = faces.with_matches([Match("Ada", 0.5, 1.0), Match("Bob", 0.5, 1.0)])
    faces = faces.with_enrollable(np.ones(2, bool))
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        for task in list(job.waiting()):
            job.save(
                [PhotoAnalysis(task, photo_sha256(task.path), (64, 48), faces, reasons=(None, None))], "n"
            )
        assert write_outputs(job, TAGGED_SIDECAR_KIND, write_tagged_sidecar) == 0
        write_image(photos[0], noise(2, 48, 64))
        write_image(photos[1], astronaut)
        os.utime(photos[2], (1, 1))
        if waits:
            job.plan(photos)
        assert forget_person(job, {"Ada"}) == 3
    names = ("Ada", "Bob", "Grandmother", "holiday")
    sidecars = [sidecar_path(photo).read_text() for photo in photos]
    alike, larger, touched = [[name for name in names if name in text] for text in sidecars]
    assert alike == larger == ["Grandmother", "holiday"]
    assert touched == ["Bob", "Grandmother", "holiday"]


# The commands


@pytest.fixture
def folder(tmp_path: Path, astronaut: UInt8Array) -> Path:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "her.png", astronaut)
    write_image(tmp_path / "photos" / "mirrored.png", astronaut[:, ::-1])
    write_image(tmp_path / "photos" / "nobody.png", noise(1, 200, 300))
    enroll_her(tmp_path / "gallery", astronaut)
    return tmp_path


def batch(folder: Path, *more: str) -> Said:
    return facepipe(
        "batch", folder / "photos", "--gallery", folder / "gallery", "--out", folder / "out", *more
    )


def vectors(out: Path) -> list[bytes]:
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        return [row for (row,) in database.execute("SELECT vectors FROM photos WHERE length(vectors) > 0")]


def test_a_person_leaves_gallery_and_batches(folder: Path) -> None:
    pytest.importorskip("lxml", reason="needs the [xmp] extra")
    flags = ["--annotate", "--crops", "--xmp-tags"]
    if shutil.which("exiftool"):
        flags.append("--xmp-embed")
    assert batch(folder, *flags).code == 0
    hers = vectors(folder / "out")
    assert len(hers) == 2
    out, sidecar = folder / "out", folder / "photos" / "her.png.xmp"
    assert NAME in sidecar.read_text()
    erased = facepipe("gallery", "remove", NAME, "--gallery", folder / "gallery", "--also", out)
    assert erased.code == 0, erased.err
    assert "erased what was seen in 2 photos of batches" in erased.err
    for place in (out, folder / "gallery"):
        found = all_bytes(place)
        assert NAME.encode() not in found
        assert not any(vector in found for vector in hers)
    assert NAME not in sidecar.read_text()
    assert not list((out / "annotated").rglob("her.png"))
    with Gallery.open(folder / "gallery") as gallery:
        assert gallery.people() == []
    again = facepipe("gallery", "remove", NAME, "--gallery", folder / "gallery", "--also", out)
    assert (again.code, NAME in again.err) == (1, True)
    told = batch(folder, *flags)
    assert (told.code, "3 photos, 2 of them analyzed now" in told.err) == (0, True), told.err
    assert NAME.encode() not in all_bytes(out)


def test_batches_forget_what_is_gone_and_names_of_before(folder: Path) -> None:
    """Removed from the gallery alone; a run that makes no pictures leaves none with the old name."""
    pytest.importorskip("lxml", reason="needs the [xmp] extra")
    out = folder / "out"
    assert batch(folder, "--annotate", "--crops", "--xmp-tags").code == 0
    (folder / "photos" / "mirrored.png").unlink()
    assert facepipe("gallery", "remove", NAME, "--gallery", folder / "gallery").code == 0
    assert batch(folder).code == 0
    assert NAME.encode() in all_bytes(out)
    told = batch(folder, "--forget")
    assert (told.code, "forgotten: 1 photo" in told.err) == (0, True), told.err
    assert NAME.encode() not in all_bytes(out)
    assert b"mirrored" not in all_bytes(out)
    assert len(vectors(out)) == 1
    for sidecar in (folder / "photos").glob("*.xmp"):
        assert NAME not in sidecar.read_text(), sidecar.name
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(record["photo"]).name for record in records] == ["her.png", "nobody.png"]


def test_a_photo_leaves_gallery_and_batches(folder: Path) -> None:
    assert batch(folder).code == 0
    photo = folder / "photos" / "her.png"
    words = ["gallery", "forget", "--photo", photo, "--gallery", folder / "gallery"]
    told = facepipe(*words, "--also", folder / "out")
    assert (told.code, "erased 1 photo of batches" in told.err) == (0, True), told.err
    assert b"her.png" not in all_bytes(folder / "out")
    assert len(vectors(folder / "out")) == 1
    assert facepipe(*words, "--also", folder / "out").code == 1
    assert facepipe(*words, "--also", folder / "none").code == 2
