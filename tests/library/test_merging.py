"""Several jobs become one: the results of one run, whatever was killed, encrypted, or done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_helpers import enroll_her, write_archive
from cli_helpers import facepipe
from library_helpers import analyze, face_of, make_batch, names_in
from paths import ROOT

from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.job_writes import PhotoWrite
from facepipe.batch.models import FailedPhoto
from facepipe.batch.naming import options_to_dict
from facepipe.batch.planning import FileState
from facepipe.batch.shards import Shard
from facepipe.core.errors import FacepipeError, GalleryError, OutputError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.library.library import Library
from facepipe.library.merging import merge_jobs
from facepipe.pipeline import NamingOptions

RESULTS = ("results.jsonl", "faces.csv", "report.html")
HERE = {"one": ["ada", "bob"], "two": ["ada"], "none": []}
THERE = {"three": ["ada", "eve", "mia"], "four": ["bob", "leo"]}


@pytest.fixture
def jobs(tmp_path: Path) -> list[Path]:
    """Two batches with a gallery of their own each."""
    return [make_batch(tmp_path / "here", HERE), make_batch(tmp_path / "there", THERE)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the logs of SQLite, which are empty where a job was only read."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: content for name, content in files.items() if content or not name.endswith("-wal")}


def photo_names(folder: Path) -> list[str]:
    with Job(folder) as job:
        return [photo.stem for photo in job.photos()]


def make_shares(folder: Path, photos: Mapping[str, Sequence[str]], count: int) -> list[Path]:
    """The job `out` in `folder` over all photos, and the same work in shares."""
    make_batch(folder, photos)
    with Job(folder / "out") as whole:
        paths = whole.photos()
    outs = []
    for number in range(1, count + 1):
        outs.append(folder / f"share {number}")
        shard = Shard(number, count)
        with Job(outs[-1], create=True) as job:
            job.require_settings({"detector options": {"max_side": 1280}}, again=False)
            job.remember_naming(folder / "gallery", options_to_dict(NamingOptions()))
            selected = shard.select(paths)
            job.plan(selected, places=selected.values(), shard=shard)
            analyze(job, photos)
    return outs


def test_the_commands_give_the_results_of_one_run(astronaut: UInt8Array, tmp_path: Path) -> None:
    photos, gallery, whole = tmp_path / "photos", tmp_path / "gallery", tmp_path / "whole"
    write_archive(photos, astronaut, 16)
    enroll_her(gallery, astronaut)
    named = ("--gallery", gallery, "--crops", "--quiet")
    assert facepipe("batch", photos, "--out", whole, *named).code == 3
    outs = [tmp_path / f"share {number}" for number in (1, 2, 3)]
    for number, out in enumerate(outs, 1):
        said = facepipe("batch", photos, "--out", out, "--shard", f"{number}/3", *named)
        assert said.code in (0, 3), said.err
    before = [contents(out) for out in outs]
    merged = tmp_path / "merged"
    said = facepipe("batch-merge", *outs, "--out", merged)
    assert (said.code, len(said.complaints)) == (0, 1), said.err
    for name in RESULTS:
        assert (merged / name).read_bytes() == (whole / name).read_bytes()
    assert contents(merged / "crops") == contents(whole / "crops") != {}
    assert [contents(out) for out in outs] == before
    again = facepipe("batch", photos, "--out", merged, "--gallery", gallery, "--crops")
    assert "0 of them analyzed now" in again.err
    assert (merged / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert contents(merged / "crops") == contents(whole / "crops")
    some = facepipe("batch-merge", outs[0], outs[2], "--out", tmp_path / "some")
    assert "share 2/3 is not among the jobs" in some.err
    assert facepipe("batch", photos, "--out", whole, "--shard", "4/3").code == 2


def test_groups_are_those_of_one_run(tmp_path: Path) -> None:
    photos = {f"{number}": [*("ada", "bob")[: 1 + number % 2], "eve"] for number in range(12)}
    outs = make_shares(tmp_path, photos, 3)
    summary = merge_jobs(outs[::-1], tmp_path / "merged")
    assert (summary.counts.done, summary.missing, summary.unwritten) == (12, (), 0)
    with Library.open(tmp_path / "out") as whole, Library.open(tmp_path / "merged") as merged:
        whole.name_everything()
        whole.regroup()
        assert [(g.number, g.face_ids) for g in merged.groups()] == [
            (g.number, g.face_ids) for g in whole.groups()
        ]
        assert len(merged.groups()) == 3
        for library in (whole, merged):
            library.write_results()
    for name in RESULTS:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_decisions_names_and_steps_come_along(jobs: list[Path], tmp_path: Path) -> None:
    with Library.open(jobs[0]) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
    with Library.open(jobs[1]) as library:
        library.confirm([face_of(library, "four")], "Bob")
        library.name_everything()
    with pytest.raises(UsageError, match=r"named by .*--gallery"):
        merge_jobs(jobs, tmp_path / "merged")
    summary = merge_jobs(jobs, tmp_path / "merged", tmp_path / "here" / "gallery")
    assert summary.decisions == 2
    with Library.open(tmp_path / "merged") as library:
        assert names_in(library) == {
            "one": ["Ada", "Bob"],
            "two": ["Ada"],
            "three": ["Ada", None, None],
            "four": ["Bob", None],
        }
        assert library.gallery.knows("Bob")  # a template of this gallery now
        step = library.undo()  # of the job with this gallery
        assert step is not None
        assert "Ada" in step.label
        library.name_everything()
        assert names_in(library)["two"] == [None]
    assert photo_names(tmp_path / "merged") == [*HERE, *THERE]


def test_a_photo_that_two_jobs_hold_is_taken_once(jobs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(jobs[0], other := tmp_path / "other")
    with Library.open(jobs[0]) as library:
        library.confirm([face_of(library, "two")], "Ada")
    with Library.open(other) as library:
        library.confirm([face_of(library, "two")], "Eve")  # later
        photo = face_of(library, "one")
    with Job(jobs[0]) as job:
        (task,) = (task for task in job.remembered() if task.path.stem == "one")
        job.save([FailedPhoto(task, "one: no memory")], "names")
    merge_jobs([jobs[0], other], tmp_path / "merged")
    with Library.open(tmp_path / "merged") as library:
        assert [photo.path.stem for photo in library.photos.values()] == [*HERE]
        assert photo in library.faces
        decided = [stored.decision.name for stored in library.decisions()]
        assert decided == ["Eve"]


def test_the_newer_of_two_files_is_taken(jobs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(jobs[0], other := tmp_path / "other")
    with Job(other) as job:
        paths = job.photos()
        shutil.copy(paths[0], paths[1])
        os.utime(paths[1], ns=(2**62, 2**62))
        job.plan(paths)
        analyze(job, {**HERE, "two": ["eve", "eve"]})
    for order in ([jobs[0], other], [other, jobs[0]]):
        merge_jobs(order, tmp_path / f"merged {order[0].name}")
        with Library.open(tmp_path / f"merged {order[0].name}") as library:
            assert len(names_in(library)["two"]) == 2


def test_photos_that_wait_are_counted_and_wait_on(jobs: list[Path], tmp_path: Path) -> None:
    with Job(jobs[1]) as job:
        job.plan([*job.photos(), tmp_path / "here" / "photos" / "one.png", tmp_path / "gone.png"])
    said = facepipe(
        "batch-merge", *jobs, "--out", tmp_path / "merged", "--gallery", tmp_path / "here" / "gallery"
    )
    assert said.code == 0, said.err
    assert "1 photo not analyzed yet" in said.err  # `one` was analyzed here
    assert photo_names(tmp_path / "merged") == [*HERE, *THERE, "gone"]


def test_other_settings_are_refused(jobs: list[Path], tmp_path: Path) -> None:
    with Job(jobs[1]) as job:
        job.require_settings({"detector options": {"max_side": 640}}, again=True)
    with pytest.raises(UsageError, match=r"there/out: .*detector options .*640.*1280.*--again"):
        merge_jobs(jobs, tmp_path / "merged")
    Job(tmp_path / "empty", create=True).close()
    with pytest.raises(UsageError, match="has not begun"):
        merge_jobs([jobs[0], tmp_path / "empty"], tmp_path / "merged")
    with Job(tmp_path / "here" / "out") as job:
        job.remember_naming(tmp_path / "here" / "gallery", options_to_dict(NamingOptions(threshold_l2=0.5)))
    with Job(jobs[1]) as job:
        job.require_settings({"detector options": {"max_side": 1280}}, again=True)
    with pytest.raises(UsageError, match="named otherwise"):
        merge_jobs(jobs, tmp_path / "merged", tmp_path / "here" / "gallery")
    assert not (tmp_path / "merged").exists()


def test_places_that_are_taken_are_refused(jobs: list[Path], tmp_path: Path) -> None:
    gallery = tmp_path / "here" / "gallery"
    for out in (jobs[0], tmp_path / "here"):
        with pytest.raises(UsageError, match="is there already"):
            merge_jobs(jobs, out, gallery)
    with pytest.raises(UsageError, match="given twice"):
        merge_jobs([jobs[0], jobs[0]], tmp_path / "merged")
    with pytest.raises(UsageError, match="no batch was run"):
        merge_jobs([jobs[0], tmp_path], tmp_path / "merged")
    with Job(jobs[1]), pytest.raises(OutputError, match="another facepipe works with it"):
        merge_jobs(jobs, tmp_path / "merged", gallery)
    (tmp_path / "merged").mkdir()
    merge_jobs(jobs, tmp_path / "merged", gallery)
    assert (tmp_path / "merged").stat().st_mode & 0o077 == 0


def test_too_little_room_is_told_before_the_work(
    jobs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"merged: needs .* MB, and 0 MB are free"):
        merge_jobs(jobs, tmp_path / "merged", tmp_path / "here" / "gallery")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_a_full_disk_leaves_nothing(
    jobs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk := tmp_path / "disk").mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))
        with pytest.raises(OutputError, match="full"):
            merge_jobs(jobs, disk / "merged", tmp_path / "here" / "gallery")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


_KILLED = """
import os, signal, sys
from pathlib import Path
import facepipe.library.merging as merging
real, calls = getattr(merging, sys.argv[1]), []
def killing(*arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(merging, sys.argv[1], killing)
merging.merge_jobs([Path(sys.argv[3]), Path(sys.argv[4])], Path(sys.argv[5]), Path(sys.argv[6]))
"""


def test_a_killed_merge_leaves_the_jobs_as_they_are_and_nothing_half_done(
    jobs: list[Path], tmp_path: Path
) -> None:
    before, gallery = [contents(job) for job in jobs], tmp_path / "here" / "gallery"
    for function, call in (("_copy_photo", 3), ("write_results", 1), ("_publish", 1)):
        words = [_KILLED, function, str(call), *map(str, jobs), str(tmp_path / "merged"), str(gallery)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        killed = subprocess.run([sys.executable, "-c", *words], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "merged").exists()
        assert [contents(job) for job in jobs] == before
    assert len(list(tmp_path.glob(".facepipe-*"))) == 1  # each removes what the one before left
    said = facepipe("batch-merge", *jobs, "--out", tmp_path / "merged", "--gallery", gallery)
    assert said.code == 0, said.err
    assert [contents(job) for job in jobs] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "merged", "there"]
    assert len((tmp_path / "merged" / "results.jsonl").read_text().splitlines()) == len(HERE | THERE)


def test_encrypted_jobs_make_an_encrypted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="needs the [encryption] extra")
    monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)
    key = b"correct horse battery staple"
    jobs = [
        make_batch(tmp_path / "here", HERE, secret=key),
        make_batch(tmp_path / "there", THERE),
    ]
    gallery, merged = tmp_path / "here" / "gallery", tmp_path / "merged"
    with Library.open(jobs[0], secret=key) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
        expected = names_in(library)
    with pytest.raises(GalleryError, match="--key-file"):
        merge_jobs(jobs, merged, gallery)
    with pytest.raises(GalleryError, match="not the key"):
        merge_jobs(jobs, merged, gallery, secret=b"another")
    assert not merged.exists()
    merge_jobs(jobs, merged, gallery, secret=key)
    stored = b"".join(file.read_bytes() for file in merged.glob(f"{JOB_FILE}*"))
    for plain in (b"Ada", b"one.png", b"three.png", b"three 0", b"preview"):
        assert plain not in stored
    with pytest.raises(FacepipeError, match="--key-file"):
        Library.open(merged)
    with Library.open(merged, secret=key) as library:
        assert names_in(library) == {**expected, "three": ["Ada", None, None], "four": [None, None]}
        assert library.picture(face_of(library, "three")) == b"three 0"


def test_what_a_killed_process_left_is_finished_first(jobs: list[Path], tmp_path: Path) -> None:
    with Job(jobs[0]) as job:
        job.begin_move(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with pytest.raises(UsageError, match="facepipe sort"):
        merge_jobs(jobs, tmp_path / "merged")
    with Job(jobs[0]) as job:
        job.end_move()
        (task, *_) = job.remembered()
        write = PhotoWrite((task.id,), "a" * 64, "b" * 64, FileState(1, 1))
        with job.file.changing():
            job.writes.begin([write])
    with pytest.raises(UsageError, match="facepipe batch"):
        merge_jobs(jobs, tmp_path / "merged")
    with Job(jobs[0]) as job:
        with job.file.changing():
            job.writes.cancel(write)
        with job.file.changing() as database:
            row = "a step", json.dumps({"decisions": []}), "2026-01-01T00:00:00.000+00:00", "doing"
            database.execute("INSERT INTO steps (label, changes, made_at, state) VALUES (?, ?, ?, ?)", row)
    with pytest.raises(UsageError, match="facepipe review"):
        merge_jobs(jobs, tmp_path / "merged")
