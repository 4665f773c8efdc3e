"""The job file: what is new or changed is looked at, the rest remembered, no other file is touched."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from batch_helpers import (
    MATCHES,
    NOBODY,
    TOO_SMALL,
    VECTORS,
    analyzed,
    as_of_before,
    decide_something,
    do,
    each,
    files,
)

from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.library_checks import LIBRARY_CHECKS
from facepipe.batch.models import PhotoTask
from facepipe.batch.naming import options_to_dict
from facepipe.core.errors import FacepipeError, OutputError, UsageError
from facepipe.core.faces import Faces, Match
from facepipe.gallery.address import PostgresAddress
from facepipe.pipeline import NamingOptions
from facepipe.quality_rules import Reason


def test_what_was_seen_comes_back(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "b.jpg", "a.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        assert do(job, failing=frozenset({"a.jpg"})) == ["b.jpg", "a.jpg"]
    with Job(tmp_path / "out") as job:
        good, bad = job.records()
        assert (good.result.path, bad.result.path) == tuple(photos)
        assert bad.result.error == f"{photos[1]}: broken"
        expected = analyzed(PhotoTask(1, photos[0])).faces
        assert good.result.faces is not None
        for column in ("boxes_xyxy", "scores", "landmarks"):
            np.testing.assert_array_equal(getattr(good.result.faces, column), getattr(expected, column))
        assert good.result.faces.matches == MATCHES
        assert good.size_wh == (640, 480)
        assert job.faces.pictures(good.id) == {0: b"webp", -1: b"all"}
        counts = job.counts()
        assert (counts.waiting, counts.done, counts.failed, counts.faces, counts.known) == (0, 1, 1, 3, 1)


def test_only_what_is_new_or_changed_waits(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "same.jpg", "touched.jpg", "longer.jpg", "edited.jpg", "failing.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job, failing=frozenset({"failing.jpg"}))
        job.plan(photos)
        assert do(job) == []
        _, touched, longer, edited, _ = photos
        os.utime(touched, ns=(1, 1))
        longer.write_text(longer.read_text() + " and more")
        edited.write_text(edited.read_text().upper())
        os.utime(edited, ns=(1, 1))
        job.plan([*photos, *files(tmp_path / "photos", "new.jpg")])
        assert do(job) == ["longer.jpg", "edited.jpg", "new.jpg"]
        job.plan(photos, retry_failed=True)
        assert do(job) == ["failing.jpg"]
        assert job.counts().failed == 0


def test_a_failed_photo_that_was_mended_is_looked_at_unasked(tmp_path: Path) -> None:
    photos = [tmp_path / "photos" / "late.jpg"]
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        assert do(job, failing=frozenset({"late.jpg"})) == ["late.jpg"]
        files(tmp_path / "photos", "late.jpg")
        job.plan(photos)
        assert do(job) == ["late.jpg"]


def test_results_are_of_the_photos_of_the_last_command(tmp_path: Path) -> None:
    one, two = files(tmp_path / "photos", "1.jpg", "2.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan([one, two])
        do(job)
        job.plan([two])
        assert [record.result.path for record in job.records()] == [two]
        job.plan([two, one])
        assert [record.result.path for record in job.records()] == [two, one]
        assert do(job) == []


def test_other_settings_are_refused_until_asked_for_again(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.require_settings({"detector": "one", "rules": {"size": 3}}, again=False)
        job.plan(photos)
        do(job)
        job.require_settings({"detector": "one", "rules": {"size": 3}}, again=False)
        with pytest.raises(
            UsageError, match=r'begun with detector "one" \(now "two"\); use the same, or --again'
        ):
            job.require_settings({"detector": "two", "rules": {"size": 3}}, again=False)
        job.plan(photos)
        assert do(job) == []
        job.require_settings({"detector": "two", "rules": {"size": 3}}, again=True)
        assert do(job) == ["1.jpg"]


def test_naming_again_takes_vectors_of_compared_faces_only(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg")
    asked: list[tuple[Faces, Sequence[Reason | None]]] = []

    def name(faces: Faces, reasons: Sequence[Reason | None]) -> list[Match]:
        asked.append((faces, reasons))
        return [Match("New", 0.1, 1.0), TOO_SMALL, NOBODY]

    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job)
        assert job.faces.name_again(each(name), "names", 4) == 0
        assert job.faces.name_again(each(name), "other names", 4) == 2
        assert job.faces.name_again(each(name), "other names", 4) == 0
        matches = [record.result.faces.matches for record in job.records() if record.result.faces]
    assert [first.name for first, *_ in filter(None, matches)] == ["New", "New"]
    faces, reasons = asked[0]
    np.testing.assert_array_equal(faces.embeddings, analyzed(PhotoTask(1, photos[0])).faces.embeddings)
    assert reasons == [None, Reason.TOO_SMALL, None]


def test_unknown_faces_are_those_that_enrollment_would_take(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "a.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        (task,) = job.waiting()
        job.save([analyzed(task, (NOBODY, TOO_SMALL, NOBODY))], "names")
        (unknown,) = job.faces.unknown_faces()
        assert (unknown.photo_id, unknown.row) == (task.id, 0)
        np.testing.assert_array_equal(unknown.embedding, VECTORS[0])
        job.faces.name_again(each(lambda faces, reasons: MATCHES), "other names", 4)
        assert job.faces.unknown_faces() == []


def test_a_job_without_enrollable_faces_has_no_unknown_ones_until_analysed_again(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "a.jpg")
    nobodys = (NOBODY, TOO_SMALL, NOBODY)
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        (task,) = job.waiting()
        job.save([analyzed(task, nobodys)], "names")
    as_of_before(tmp_path / "out", without=["enrollable"])
    with Job(tmp_path / "out") as job:
        assert job.faces.unknown_faces() == []
        assert len(list(job.records())) == 1
        job.save([analyzed(task, nobodys)], "names")
        assert len(job.faces.unknown_faces()) == 1


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Job(tmp_path / "out", create=True),
        pytest.raises(OutputError, match="another facepipe works with it"),
    ):
        Job(tmp_path / "out")
    Job(tmp_path / "out").close()


def foreign_database(file: Path) -> None:
    sqlite3.connect(file).execute("CREATE TABLE diary (day TEXT)").connection.commit()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda file: None, "no batch was run with this folder"),
        (lambda file: file.write_bytes(b"My diary" * 999), "not a job file of facepipe"),
        (foreign_database, "not a job file of facepipe"),
    ],
    ids=["nothing", "no database", "another program's"],
)
def test_what_is_no_job_is_left_alone(tmp_path: Path, make, told: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / JOB_FILE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FacepipeError, match=told):
        Job(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_panoramas_of_an_older_job_are_looked_at_again(tmp_path: Path) -> None:
    """They were analyzed at a smaller scale; until then what was seen in them stands."""
    photos = files(tmp_path / "photos", "tall.jpg", "usual.jpg", "wide.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job)
    as_of_before(tmp_path / "out", version=0)
    database = sqlite3.connect(tmp_path / "out" / JOB_FILE)
    for row, size_wh in enumerate([(10, 21), (20, 10), (9000, 1000)], 1):
        database.execute("UPDATE photos SET width = ?, height = ? WHERE id = ?", (*size_wh, row))
    database.commit()
    database.close()
    with Job(tmp_path / "out") as job:
        assert len(list(job.records())) == 3
        job.plan(photos)
        assert do(job) == ["tall.jpg", "wide.jpg"]
        job.plan(photos)
        assert do(job) == []


def test_a_job_of_version_3_keeps_what_people_decided(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg", "2.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        do(job)
        decide_something(job)
    with Job(tmp_path / "out") as job:
        decided, ids = [stored.decision for stored in job.decisions], job.faces.of_photo(1, 4).ids
    as_of_before(tmp_path / "out", version=3)
    for _ in range(2):
        with Job(tmp_path / "out") as job:
            assert [stored.decision for stored in job.decisions] == decided
            assert job.faces.of_photo(1, 4).ids == ids
            assert job.writes.unfinished() == []


def test_the_folder_is_private(tmp_path: Path) -> None:
    Job(tmp_path / "a" / "out", create=True).close()
    assert (tmp_path / "a" / "out").stat().st_mode & 0o077 == 0


def test_names_that_are_no_text(tmp_path: Path) -> None:
    photo = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    try:
        photo.write_text("content")
    except OSError:
        pytest.skip("this file system takes text only")
    with Job(tmp_path / "out", create=True) as job:
        job.plan([photo])
        assert job.waiting() == [PhotoTask(1, photo)]


@pytest.mark.parametrize("secret", [None, b"a key of many bytes"])
def test_a_gallerys_url_comes_back_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, secret: bytes | None
) -> None:
    address = PostgresAddress("postgresql://me:Xq7secret@db/people?sslmode=require", "family")
    naming = options_to_dict(NamingOptions())
    with Job(tmp_path / "out", create=True, secret=secret) as job:
        if secret:
            job.require_encryption()
        for _ in range(2):
            job.remember_naming(address, naming)
    with Job(tmp_path / "out", secret=secret) as job:
        assert job.naming() == (address.without_password(), naming)
    assert caplog.text.count("$PGPASSWORD") == 1
    assert "Xq7secret" not in caplog.text
    for file in (tmp_path / "out").iterdir():
        assert b"Xq7secret" not in file.read_bytes()


@pytest.mark.parametrize(
    ("gallery", "is_right"),
    [
        (b"/home/me/gallery", True),
        (b"postgresql://db/people?schema=family", True),
        (b"gallery", False),
        (b"mysql://db/people", False),
        (b"postgresql://db/people?schema=1", False),
        ("/home/me/gallery", False),
    ],
)
def test_a_remembered_gallery_is_a_whole_path_or_a_url(gallery: bytes | str, is_right: bool) -> None:
    row = {"gallery": gallery, "naming": json.dumps(options_to_dict(NamingOptions()))}
    with nullcontext() if is_right else pytest.raises(ValueError, match="the gallery"):
        LIBRARY_CHECKS["library"](row)


def test_a_file_that_was_removed_or_replaced_meanwhile_takes_no_change(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "a.jpg")
    with Job(tmp_path / "out", create=True) as job:
        job.plan(photos)
        (tmp_path / "out").rename(tmp_path / "away")
        with pytest.raises(OutputError, match=r"job\.sqlite3: not there any more; put it back"):
            do(job)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / JOB_FILE).write_bytes(b"another")
        with pytest.raises(OutputError, match=r"job\.sqlite3: another file by now"):
            do(job)
        (tmp_path / "out" / JOB_FILE).unlink()
        (tmp_path / "away" / JOB_FILE).rename(tmp_path / "out" / JOB_FILE)
        assert do(job) == ["a.jpg"]
