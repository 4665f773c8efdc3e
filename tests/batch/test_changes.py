"""Folders that change between two commands: photos that move, vanish or break, disks that are not there."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import pytest
from batch_helpers import MATCHES, analyzed, as_of_before, do, enroll_her, files, work_through
from cli_helpers import Said, facepipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facepipe.batch.analysis import PhotoAnalyzer
from facepipe.batch.engine import Engine
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.models import FailedPhoto, PhotoAnalysis, PhotoTask
from facepipe.batch.planning import file_state
from facepipe.batch.run import Batch, BatchOptions
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.library.library import Library
from facepipe.pipeline import FacePipeline

CONTENTS = (b"one", b"two", b"three", b"other", b"a longer one")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    folder = tmp_path_factory.mktemp("changes") / "gallery"
    enroll_her(folder, astronaut)
    return folder


@pytest.fixture
def folder(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """Two photos of her that differ, in two folders, and a broken one."""
    for name, photo in (("a", astronaut), ("b", astronaut[:, ::-1])):
        (tmp_path / "photos" / name).mkdir(parents=True)
        write_image(tmp_path / "photos" / name / "her.png", photo)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    return tmp_path / "photos"


def run(*folders: Path, gallery: Path, out: Path, more: tuple[str, ...] = ()) -> Said:
    return facepipe("batch", *folders, "--gallery", gallery, "--out", out, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(JOB_FILE)}


def pictures_below(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


# Photos that moved or were renamed


def write_all(folder: Path, photos: dict[str, bytes]) -> None:
    """Files whose time is that of their content, as a renamed file has it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in photos.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (CONTENTS.index(content), CONTENTS.index(content)))


folders_of_photos = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(CONTENTS))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=folders_of_photos, after=folders_of_photos)
def test_every_photo_that_moved_is_known_by_its_content(
    tmp_path: Path, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    """Renamed, exchanged, copied, overwritten, removed: what was seen of a content is taken once."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    with Job(out, create=True) as job:
        write_all(folder, before)
        job.plan(sorted(folder.iterdir()))
        do(job)
        write_all(folder, after)
        taken = job.plan(sorted(folder.iterdir()))
        left = Counter(content for name, content in before.items() if after.get(name) != content)
        come = Counter(content for name, content in after.items() if before.get(name) != content)
        assert Counter(after[name] for name in do(job)) == come - left
        assert taken.moved == (come & left).total()
        assert [record.result.path.name for record in job.records()] == sorted(after)
        assert all(job.faces.pictures(record.id) == {0: b"webp", -1: b"all"} for record in job.records())
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        rows = dict(database.execute("SELECT path, sha256 FROM photos WHERE place IS NOT NULL"))
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in after.items()}
    assert {Path(os.fsdecode(path)).name: sha256 for path, sha256 in rows.items()} == expected


def test_photos_are_read_only_where_a_size_fits_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job)
        photos[0].rename(moved := tmp_path / "photos" / "moved.jpg")
        shutil.copy(photos[1], copy := tmp_path / "photos" / "copy.jpg")
        (other := tmp_path / "photos" / "other.jpg").write_text("of another size than all of them")
        copy.write_text(copy.read_text() + "!")
        read: list[str] = []

        def sha256(path: Path) -> str:
            read.append(path.name)
            return analyzed(PhotoTask(0, path)).sha256

        monkeypatch.setattr("facepipe.batch.planning.photo_sha256", sha256)
        assert job.plan([photos[1], moved, copy, other]).moved == 1
        assert read == ["moved.jpg"]


def test_a_photo_that_comes_back_at_another_place_is_known(tmp_path: Path) -> None:
    (first,) = files(tmp_path / "disk", "1.jpg")
    (other,) = files(tmp_path / "other", "2.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan([first, other])
        do(job)
        (tmp_path / "disk").rename(tmp_path / "mounted elsewhere")
        assert job.plan([other]).left_out == 1
        job.plan_more([tmp_path / "mounted elsewhere" / "1.jpg"])
        assert do(job) == []
        assert len(list(job.records())) == 2


def test_pictures_and_sidecars_follow_photos_that_change_places(
    folder: Path, gallery: Path, tmp_path: Path
) -> None:
    """Two photos exchange their places: all outputs are as if the folder had always been so."""
    flags = ("--annotate", "--crops", "--xmp")
    run(folder, gallery=gallery, out=tmp_path / "out", more=flags)
    one, other = folder / "a" / "her.png", folder / "b" / "her.png"
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)
    told = run(folder, gallery=gallery, out=tmp_path / "out", more=flags)
    assert (told.code, "0 of them analyzed now" in told.err) == (0, True), told.err
    assert "known again by content: 2 photos moved or renamed" in told.err
    assert len(list(folder.rglob("*.xmp"))) == 2
    run(folder, gallery=gallery, out=tmp_path / "fresh", more=flags)
    for kind in ("annotated", "crops"):
        after, fresh = pictures_below(tmp_path / "out" / kind), pictures_below(tmp_path / "fresh" / kind)
        assert after == fresh
        assert len(after) >= 2
    (folder / "a").rename(folder / "c")
    run(folder, gallery=gallery, out=tmp_path / "out", more=flags)
    assert not list((tmp_path / "out" / "annotated" / "a").iterdir())
    assert (tmp_path / "out" / "annotated" / "c" / "her.png").exists()
    assert (folder / "c" / "her.png.xmp").exists()


# Folders that are not there


@pytest.mark.parametrize("vanish", ["gone", "empty", "a dead link"])
@pytest.mark.parametrize("again", [(), ("--again",)], ids=["", "again"])
def test_a_folder_that_vanished_changes_nothing_unless_asked(
    folder: Path, gallery: Path, tmp_path: Path, vanish: str, again: tuple[str, ...]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(folder / "a", other)
    run(folder, other, gallery=gallery, out=out)
    before = contents(out)
    folder.rename(tmp_path / "unmounted")
    if vanish == "empty":
        folder.mkdir()
    elif vanish == "a dead link":
        folder.symlink_to(tmp_path / "nothing")
    told = run(folder, other, gallery=gallery, out=out, more=again)
    assert told.code == 2
    assert str(folder) in told.err
    assert "nothing was changed" in told.err
    assert contents(out) == before
    asked = run(folder, other, gallery=gallery, out=out, more=("--allow-missing",))
    assert (asked.code, "1 photo, 0 of them analyzed now" in asked.err) == (0, True), asked.err
    assert "no longer in the results, but remembered: 3 photos" in asked.err
    if vanish == "empty":
        folder.rmdir()
    elif vanish == "a dead link":
        folder.unlink()
    (tmp_path / "unmounted").rename(folder)
    back = run(folder, other, gallery=gallery, out=out)
    assert (back.code, "0 of them analyzed now" in back.err) == (0, True), back.err
    assert contents(out)["faces.csv"] == before["faces.csv"]


def test_missing_photos_and_globs_are_refused_alike(folder: Path, gallery: Path, tmp_path: Path) -> None:
    for out, missing in ((tmp_path / "1", folder / "none.jpg"), (tmp_path / "2", folder / "*.none")):
        told = run(folder, missing, gallery=gallery, out=out)
        assert (told.code, str(missing) in told.err) == (2, True)
        allowed = run(folder, missing, gallery=gallery, out=out, more=("--allow-missing",))
        assert (allowed.code, "3 photos, 3 of them analyzed" in allowed.err) == (3, True)


@pytest.mark.parametrize("kind", ["mistyped", "empty", "without photos"])
def test_nothing_is_made_for_a_folder_without_photos(
    folder: Path, gallery: Path, tmp_path: Path, kind: str
) -> None:
    wrong, out, new_gallery = tmp_path / "wrong", tmp_path / "out", tmp_path / "new"
    if kind != "mistyped":
        wrong.mkdir()
    if kind == "without photos":
        (wrong / "notes.txt").write_text("no photo")
    told = run(wrong, gallery=new_gallery, out=out)
    assert (told.code, str(wrong) in told.err) == (2, True)
    assert "nothing was changed" in told.err
    assert not out.exists()
    assert not new_gallery.exists()
    out.mkdir()
    assert run(wrong, gallery=new_gallery, out=out).code == 2
    assert not any(out.iterdir())
    run(folder, gallery=gallery, out=out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    assert run(wrong, gallery=gallery, out=out).code == 2
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_pictures_of_a_batch_in_its_photos_own_folder_are_no_photos(
    folder: Path, gallery: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(folder)
    (folder / "broken.jpg").unlink()
    for root, out in ((folder, folder), (folder, tmp_path / "link"), (tmp_path / "link", folder)):
        told = run(root, gallery=gallery, out=out, more=("--annotate", "--crops"))
        assert (told.code, "2 photos, " in told.err) == (0, True), told.err
    assert sorted(path.name for path in (folder / "annotated").rglob("*.*")) == ["her.png", "her.png"]
    with Library.open(folder) as library:
        assert library.add_folder(str(tmp_path / "link")) == 0


@pytest.mark.parametrize("of_batch", ["photos", "link"])
def test_a_folder_that_is_added_by_another_link_holds_no_new_photos(
    folder: Path, gallery: Path, tmp_path: Path, of_batch: str
) -> None:
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "other-link").symlink_to(folder)
    run(tmp_path / "link" if of_batch == "link" else folder, gallery=gallery, out=tmp_path / "out")
    with Library.open(tmp_path / "out") as library:
        for path in (folder, tmp_path / "link", tmp_path / "other-link"):
            assert library.add_folder(str(path)) == 0
        (folder / "link.png").symlink_to(folder / "a" / "her.png")
        assert library.add_folder(str(tmp_path / "other-link")) == 0
        shutil.copy(folder / "a" / "her.png", folder / "copy.png")
        assert library.add_folder(str(tmp_path / "other-link")) == 1
        assert library.add_folder(str(folder)) == 0


def test_a_watched_folder_may_be_empty_unless_it_held_photos(
    folder: Path, gallery: Path, tmp_path: Path
) -> None:
    with FacePipeline.load(gallery) as pipeline, Job(tmp_path / "out", create=True) as job:
        (tmp_path / "inbox").mkdir()
        batch = Batch(pipeline, job)
        batch.find([tmp_path / "inbox"], may_be_empty=True)
        batch.find([folder], may_be_empty=True)
        with pytest.raises(UsageError, match="nothing was changed"):
            batch.find([tmp_path / "inbox"], may_be_empty=True)
        assert len(job.photos()) == 3
        Batch(pipeline, job, BatchOptions(allow_missing=True)).find([tmp_path / "inbox"], may_be_empty=True)
        assert job.photos() == []
    told = facepipe("watch", tmp_path / "none", "--out", tmp_path / "out", "--gallery", gallery)
    assert told.code == 2


# Photos that are broken


def test_a_broken_photo_is_told_once_and_known_from_then_on(
    folder: Path, gallery: Path, tmp_path: Path
) -> None:
    def code(*more: str) -> int:
        return run(folder, gallery=gallery, out=tmp_path / "out", more=more).code

    assert [code(), code(), code("--retry-failed"), code("--strict")] == [3, 0, 0, 3]
    (folder / "broken too.jpg").write_bytes(b"no photo")
    assert [code(), code()] == [3, 0]
    (folder / "broken.jpg").write_bytes(b"no photo either")
    assert [code(), code()] == [3, 0], "another content is another failure"
    shutil.copy(folder / "a" / "her.png", folder / "broken.jpg")
    assert [code(), code("--strict")] == [0, 3]
    for photo in folder.glob("*/*.png"):
        photo.write_bytes(b"no photo")
    shutil.copy(folder / "broken too.jpg", folder / "broken.jpg")
    assert [code("--strict"), code()] == [1, 0]


def test_what_was_not_told_is_still_new(folder: Path, gallery: Path, tmp_path: Path) -> None:
    """An interrupted command has told nobody."""
    with FacePipeline.load(gallery) as pipeline:
        for _ in range(2):
            summary, _ = work_through(pipeline, [folder], tmp_path / "out")
            assert (summary.counts.failed, summary.counts.newly_failed) == (1, 1)
    assert run(folder, gallery=gallery, out=tmp_path / "out").code == 3


def test_an_error_that_may_pass_is_looked_at_again_unasked_and_told_once(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    with Job(tmp_path / "out", create=True) as job:
        for newly_failed in (1, 0):
            job.plan(photos)
            (task,) = job.waiting()
            job.save([FailedPhoto(task, "1.jpg: no permission", is_temporary=True)], "names")
            assert job.counts().newly_failed == newly_failed
            job.note_failures_reported()
        job.plan(photos)
        (task,) = job.waiting()
        job.save([FailedPhoto(task, "1.jpg: something else")], "names")
        assert job.counts().newly_failed == 1
        job.plan(photos)
        assert job.waiting() == []


@pytest.mark.parametrize(
    ("cause", "passing"),
    [
        (PermissionError(13, "no"), True),
        (OSError(5, "Input/output error"), True),
        (MemoryError(), True),
        (ImportError("pillow_heif"), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError("out of memory when reading image file"), True),
        (cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9 bytes"), True),
        (RuntimeError("Memory allocation error"), True),
        (OSError("image file is truncated"), False),
        (ValueError("bad marker"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_machine_may_pass(
    gallery: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, passing: bool
) -> None:
    def fail(*_: object) -> None:
        raise cause

    monkeypatch.setattr("facepipe.images.decoding._decode", fail)
    with FacePipeline.load(gallery) as pipeline:
        tasks = [PhotoTask(1, folder / "a" / "her.png")]
        (outcome,) = Engine(PhotoAnalyzer(pipeline), tasks).outcomes()
        assert isinstance(outcome, FailedPhoto)
        assert outcome.is_temporary == passing
        (gone,) = Engine(PhotoAnalyzer(pipeline), [PhotoTask(2, folder / "none.png")]).outcomes()
        assert isinstance(gone, FailedPhoto)
        assert gone.is_temporary


@pytest.mark.parametrize("stage", ["open", "crop"])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.EMFILE, "Too many open files")],
    ids=lambda value: type(value).__name__,
)
def test_want_in_one_photo_leaves_the_others_alone_and_passes(
    gallery: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    """Outside of the reading of photos too: while its hash is made, its faces are cut, thumbnails made."""
    wanted = folder / "a" / "her.png"
    whole = getattr(PhotoAnalyzer, stage)

    def fail(self: PhotoAnalyzer, photo: PhotoTask | PhotoAnalysis, *more: object) -> object:
        task = photo if isinstance(photo, PhotoTask) else photo.task
        if task.path == wanted:
            raise error
        return whole(self, photo, *more)

    monkeypatch.setattr(PhotoAnalyzer, stage, fail)
    with FacePipeline.load(gallery) as pipeline, Job(folder.parent / "out", create=True) as job:
        batch = Batch(pipeline, job)
        batch.find([folder])
        counts = batch.run().counts
        assert (counts.done, counts.failed) == (1, 2)
        (told,) = [r.result.error for r in job.records() if r.result.path == wanted]
        assert told is not None
        assert told.startswith(f"{wanted}: ")
        monkeypatch.undo()
        batch.find([folder])
        assert [task.path for task in job.waiting()] == [wanted]
        assert batch.run().counts.done == 2


@pytest.mark.parametrize("stage", ["detect", "encode"])
def test_photos_for_which_a_network_lacked_memory_are_tried_again(
    gallery: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(told)

    with FacePipeline.load(gallery) as pipeline, Job(folder.parent / "out", create=True) as job:
        batch = Batch(pipeline, job)
        monkeypatch.setattr(PhotoAnalyzer, stage, fail)
        batch.find([folder])
        told = "Failed to allocate memory for requested buffer of size 9"
        counts = batch.run().counts
        assert (counts.done, counts.failed) == (0, 3)
        batch.find([folder])
        assert len(job.waiting()) == 2
        told = "Invalid input name"
        with pytest.raises(RuntimeError, match=told):
            batch.run()
        monkeypatch.undo()
        counts = batch.run().counts
        assert (counts.done, counts.failed) == (2, 1)


def test_a_damaged_job_begins_anew_where_all_is_done_again(
    folder: Path, gallery: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(folder, gallery=gallery, out=out)
    before = contents(out)
    data = bytearray((out / JOB_FILE).read_bytes())
    data[data.index(b"Eileen")] ^= 1
    (out / JOB_FILE).write_bytes(data)
    for told in (run(folder, gallery=gallery, out=out), facepipe("sort", out, "--to", tmp_path / "sorted")):
        assert told.code == 1
        assert told.err.count("\n") - told.err.count("running on") == 1
        assert f"{out / JOB_FILE}: the job is damaged" in told.err
        assert "--again" in told.err
    told = run(folder, gallery=gallery, out=out, more=("--again",))
    assert (told.code, "3 photos, 3 of them analyzed now" in told.err) == (3, True), told.err
    assert contents(out) == before


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
@pytest.mark.parametrize("limit", ["RLIMIT_NOFILE", "RLIMIT_AS"])
def test_decoders_that_find_a_photo_broken_for_want_of_anything_are_not_believed(limit: str) -> None:
    """AVIF and HEIC have no words for it: "cannot identify image file", "unexpected C++ exception"."""
    program = f"""if True:
        import resource
        from pathlib import Path
        from facepipe.batch.failures import is_machine_short
        before = is_machine_short()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = 5 if "{limit}" == "RLIMIT_NOFILE" else used + (16 << 20)
        resource.setrlimit(resource.{limit}, (most, most))
        print(before, is_machine_short())
        """
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


# File times and names that SQLite has no room for


@given(time_ns=st.integers(-(2**70), 2**70))
def test_every_time_has_its_place_in_64_bits(time_ns: int) -> None:
    def state(time_ns: int) -> int:
        status = SimpleNamespace(st_size=1, st_mtime_ns=time_ns)
        return file_state(cast(Path, SimpleNamespace(stat=lambda: status))).mtime_ns

    assert -(2**63) <= state(time_ns) < 2**63
    assert (state(time_ns) == time_ns) == (-(2**63) <= time_ns < 2**63)
    assert state(time_ns) != state(time_ns + 1)


@pytest.mark.parametrize("year", [-1, 1901, 1969, 2262, 2300, 2440])
def test_photos_of_any_year(tmp_path: Path, year: int) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    seconds = (year - 1970) * 31_556_952
    os.utime(photos[0], (seconds, seconds))
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        assert do(job) == ["1.jpg"]
        job.plan(photos)
        assert do(job) == []
        os.utime(photos[0], (seconds + 1, seconds + 1))
        photos[0].write_text("CONTENT of 1.jpg")
        job.plan(photos)
        assert do(job) == ["1.jpg"]


def test_errors_with_names_that_are_no_text(tmp_path: Path) -> None:
    photo = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    with Job(tmp_path / "out", create=True) as job:
        job.plan([photo])
        (task,) = job.waiting()
        job.save([FailedPhoto(task, f"{photo}: broken")], "names")
        (record,) = job.records()
        assert record.result.error == f"{tmp_path}/caf\\udce9.jpg: broken"


# Jobs of before


def test_a_job_of_before_counts_and_tells_its_failures(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job, failing=frozenset({"2.jpg"}))
        before = job.counts()
    as_of_before(tmp_path / "out", without=["known", "told"])
    with Job(tmp_path / "out") as job:
        assert job.counts() == before
        assert (before.known, before.newly_failed) == (sum(match.name is not None for match in MATCHES), 1)
