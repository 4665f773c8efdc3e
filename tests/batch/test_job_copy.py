"""A job that another process works with can be read, as its last transaction left it, and not be changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from batch_helpers import do, files
from busy_job import worked_with
from library_helpers import face_of, make_batch, names_in

from facepipe.batch.damage import JobBusyError, ReadOnlyJobError
from facepipe.batch.job import Job
from facepipe.batch.progress_file import RunningBatch, read_progress, write_progress
from facepipe.library.library import Library
from facepipe.library.watching import LibraryWatch


def test_every_copy_is_what_a_transaction_left(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", *(f"{number}.jpg" for number in range(30)))
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job)
    numbers: list[int] = []
    with worked_with(tmp_path / "out", "busy"):
        deadline = time.monotonic() + 30
        while len(numbers) < 12 and time.monotonic() < deadline:
            try:
                with Job(tmp_path / "out", reading=True) as job:
                    assert job.is_read_only
                    one, two = job.setting("one"), job.setting("two")
                    assert len(list(job.records())) == len(photos)
            except JobBusyError:  # changed in every attempt
                continue
            assert one == two
            numbers.append(int(one or 0))
    assert len(numbers) >= 12
    assert numbers == sorted(numbers)
    assert numbers[-1] > numbers[0]
    with Job(tmp_path / "out", reading=True) as job:
        assert not job.is_read_only
    assert not list((tmp_path / "out").glob(".facepipe*"))


def test_what_another_process_works_with_can_be_looked_at_only(tmp_path: Path) -> None:
    out = make_batch(tmp_path, {"one": ["ada", "bob"], "two": ["ada"]})
    with Library.open(out) as library:
        library.confirm([face_of(library, "two")], "Ada")
        library.name_everything()
        library.write_results()
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.name != "job.sqlite3-wal"}
    with worked_with(out):
        with pytest.raises(JobBusyError):
            Library.open(out)
        with Library.open(out, reading=True) as library:
            assert library.is_read_only
            assert names_in(library) == {"one": ["Ada", None], "two": ["Ada"]}
            face = face_of(library, "one")
            for change in (
                lambda: library.confirm([face], "Eve"),
                lambda: library.erase("Ada"),
                lambda: library.rename("Ada", "Eve"),
                lambda: library.undo(),
                library.regroup,
                library.name_again,
                library.name_everything,
                library.write_results,
                library.load_analyzer,
                lambda: library.add_folder(str(tmp_path)),
                lambda: library.draw_face(1, (0, 0, 50, 50)),
            ):
                with pytest.raises(ReadOnlyJobError, match="another facepipe works with it"):
                    change()
            assert names_in(library) == {"one": ["Ada", None], "two": ["Ada"]}
            assert [person.name for person in library.gallery.people()] == ["Ada"]
        assert {file.name: file.read_bytes() for file in out.iterdir() if file.name in before} == before


def test_a_watched_library_is_taken_over(tmp_path: Path) -> None:
    out = make_batch(tmp_path, {"one": ["ada"]})
    watch = LibraryWatch(out)
    with worked_with(out):
        progress = RunningBatch(10, 3, 1, 5, 2, 2.5, 2.4)
        write_progress(out, progress)
        with watch.open() as library:
            assert library.is_read_only
            assert watch.progress() == progress
            assert watch.newer() is None  # copied just now
    newer = watch.newer()
    assert newer is not None
    with newer:
        assert not newer.is_read_only
    assert read_progress(out) is None  # that process was killed


def test_an_encrypted_job_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = b"correct horse battery staple"
    out = make_batch(tmp_path, {"one": ["ada"]}, secret)
    monkeypatch.setenv("FACEPIPE_GALLERY_KEY", secret.decode())
    with worked_with(out), Library.open(out, reading=True) as library:
        assert library.is_read_only
        (copy,) = out.glob(".facepipe*.part")
        assert copy.stat().st_mode & 0o077 == 0
        assert all(b".png" not in file.read_bytes() for file in copy.iterdir())
