"""Job files that a disk has damaged or somebody has made up: one line of error, and never a wrong name."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from batch_helpers import MATCHES, decide_something, do, each, files, write_checksums

from facepipe.batch.damage import DamagedJobError
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE, is_job_file
from facepipe.batch.job_schema import CHECKED_COLUMNS, VERSION
from facepipe.batch.models import OutputFiles, ReportOptions
from facepipe.batch.output_files import PICTURE_KINDS, SIDECAR_KIND
from facepipe.batch.page import write_report
from facepipe.batch.results import write_records
from facepipe.core.errors import FacepipeError
from facepipe.library.storage import LibraryTables

PAGE_BYTES = 4096
KINDS = (*PICTURE_KINDS, SIDECAR_KIND)
NEWER = "made by a newer facepipe"
FOREIGN = "not a job file of facepipe"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return files(tmp_path_factory.mktemp("damage"), *(f"{number}.jpg" for number in range(30)))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """A job with everything that there is, of several pages a table."""
    out = tmp_path_factory.mktemp("damage") / "out"
    with Job(out, create=True) as job:
        job.require_settings({"detector options": {"max_side": 640}, "rules": "x" * 300}, again=False)
        job.plan(photos)
        do(job, failing=frozenset({"3.jpg", "17.jpg"}))
        for kind in KINDS:
            job.outputs.remember(kind, {1: OutputFiles("hash", ("a/b.jpg",)), 2: OutputFiles("hash", ())})
        job.plan(photos[:25])
        decide_something(job)
    return out


def everything(job: Job, photos: list[Path]) -> object:
    """All that can be asked of a job, and done with it."""
    records = list(job.records())
    told = [(r.id, r.result.path, r.result.error, r.size_wh, r.result.scale) for r in records]
    faces = [f for f in (r.result.faces for r in records) if f is not None]
    numbers = [(f.boxes_xyxy.tobytes(), f.landmarks.tobytes(), f.matches) for f in faces]
    seen = (
        [(job.faces.pictures(r.id), job.faces.sha256(r.id)) for r in records],
        [job.outputs.of_kind(kind) for kind in KINDS],
    )
    unknown = [(f.photo_id, f.row, f.embedding.tobytes()) for f in job.faces.unknown_faces()]
    tables = LibraryTables(job)
    decided = [stored.decision for stored in job.decisions], job.groups.read(), job.naming()
    kept = decided, tables.people(), tables.templates(), tables.steps(10)
    before = told, numbers, kept, seen, unknown, job.counts(), job.photos(), job.waiting()
    job.faces.name_again(each(lambda faces, _: [MATCHES[0]] * len(faces)), "other names", 4)
    write_records(job, "results.jsonl")
    write_records(job, "faces.csv")
    write_report(job, ReportOptions(1.0, paths=True))
    return before, job.plan(photos), job.waiting(), job.counts()


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 2, 20])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_header(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(200)] = chance.randrange(256)


def zero_a_page(data: bytearray, chance: random.Random) -> None:
    at = PAGE_BYTES * chance.randrange(len(data) // PAGE_BYTES)
    data[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)


def exchange_pages(data: bytearray, chance: random.Random) -> None:
    one, two = (PAGE_BYTES * chance.randrange(1, len(data) // PAGE_BYTES) for _ in range(2))
    page = data[one : one + PAGE_BYTES]
    data[one : one + PAGE_BYTES] = data[two : two + PAGE_BYTES]
    data[two : two + PAGE_BYTES] = page


def cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def change_letters(data: bytearray, chance: random.Random) -> None:
    """Of a name, in one place: JSON stays JSON, and the name another person's."""
    places = [at for at in range(len(data)) if data.startswith(b"Somebody", at)]
    data[chance.choice(places) + chance.randrange(8)] = ord("x")


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    flip_header,
    zero_a_page,
    exchange_pages,
    cut_off,
    change_letters,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_job_is_told_in_one_line_and_names_nobody_wrongly(
    intact: Path, photos: list[Path], tmp_path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    expected_out, out = tmp_path / "expected", tmp_path / "out"
    shutil.copytree(intact, expected_out)
    with Job(expected_out) as job:
        expected = everything(job, photos)
    whole = (intact / JOB_FILE).read_bytes()
    refused = 0
    for seed in range(50):
        data = bytearray(whole)
        damage(data, random.Random(seed))
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / JOB_FILE).write_bytes(data)
        try:
            with Job(out, create=True) as job:
                found = everything(job, photos)
        except FacepipeError as error:
            told = str(error)
        else:
            assert found == expected or not data, f"seed {seed}"
            continue
        refused += 1
        assert told.startswith(str(out / JOB_FILE)), f"seed {seed}"
        assert "choose another --out" in told, f"seed {seed}: {told}"
        if NEWER in told or FOREIGN in told or seed % 8:
            continue
        assert is_job_file(out / JOB_FILE)
        with Job(out, create=True, again=True) as job:
            assert (job.plan(photos).moved, len(job.waiting())) == (0, len(photos)), f"seed {seed}"
            do(job)
    assert refused >= 10, "many of these can't go unnoticed"


VALUES = [
    None,
    -1,
    0,
    2**63 - 1,
    1e300,
    "",
    "text",
    "x\0y",
    b"",
    b"\0",
    b"\xff\xfe",
    b"/a/../b",
    b"\0" * 60,
    b"\xff" * 60,
    "[]",
    "{}",
    "null",
    "[null]",
    "[1, 2, 3]",
    '[null, "\\ud800", null]',
    '[{"name": "\\ud800", "distance_l2": 1, "threshold_l2": 1}]',
    '[{"name": 5, "distance_l2": 1, "threshold_l2": 1}]',
    '[{"name": "x", "distance_l2": 1e999, "threshold_l2": NaN}]',
    '["../../x"]',
    '["/etc/passwd"]',
    '{"max_side": "wide"}',
    '{"max_side": -5}',
    "[" * 100_000,
    "1" * 5000,
]


@pytest.mark.parametrize("table", [table for table in CHECKED_COLUMNS if table != "encryption"])
def test_a_job_that_somebody_has_made_up_is_refused_or_harmless(
    intact: Path, photos: list[Path], tmp_path: Path, table: str
) -> None:
    """Any value in any column, with the right checksum."""
    out, begun = tmp_path / "out", shutil.copytree(intact, tmp_path / "begun")
    with Job(begun) as job:
        job.begin_move(photos[0], tmp_path / "elsewhere" / photos[0].name)
    refused = 0
    for column in [*CHECKED_COLUMNS[table].split(", "), *(["place"] if table == "photos" else [])]:
        for value in VALUES:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(begun, out)
            with closing(sqlite3.connect(out / JOB_FILE)) as database:
                try:
                    row = f"(SELECT rowid FROM {table} LIMIT 1 OFFSET 5)" if table == "photos" else "0"
                    where = f"rowid = {row}" if table == "photos" else "1"
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,))
                except sqlite3.Error:  # the table's own constraints
                    continue
                write_checksums(database)
            try:
                with Job(out) as job:
                    everything(job, photos)
            except FacepipeError as error:
                told = str(error)
            else:
                continue
            refused += 1
            assert told.startswith(str(out / JOB_FILE)), f"{column} {value!r}"
    assert refused > (20 if table in ("settings", "photos", "pictures", "products", "moves") else 5)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON photos BEGIN DELETE FROM photos; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE diary (day TEXT)",
        "ALTER TABLE photos ADD COLUMN more",
        "DROP INDEX photos_by_place",
        "DROP TABLE pictures",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = -7",
    ],
)
def test_other_tables_than_those_of_a_job_are_damage(intact: Path, tmp_path: Path, statement: str) -> None:
    shutil.copytree(intact, tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / JOB_FILE)) as database:
        database.execute(statement)
        database.commit()
    with pytest.raises(DamagedJobError, match=r"is damaged .*: run the batch with --again"):
        Job(tmp_path / "out")


def test_a_job_of_a_newer_version_is_left_alone(intact: Path, tmp_path: Path) -> None:
    shutil.copytree(intact, tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / JOB_FILE)) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = (tmp_path / "out" / JOB_FILE).read_bytes()
    with pytest.raises(FacepipeError, match=NEWER):
        Job(tmp_path / "out", create=True, again=True)
    assert (tmp_path / "out" / JOB_FILE).read_bytes() == before
