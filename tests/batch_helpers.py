"""What the tests of `facepipe.batch` share: a folder with what archives hold, and one person known."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline_helpers import faces_at, noise

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.job_schema import (
    CHECKED_COLUMNS,
    CHECKED_COLUMNS_OF_2,
    CHECKSUMS_SINCE,
    FACE_IDS_SINCE,
    NEW_IN_3,
    NEW_IN_4,
)
from facepipe.batch.job_writes import PhotoWrite
from facepipe.batch.models import FailedPhoto, PhotoAnalysis, PhotoTask
from facepipe.batch.naming import options_to_dict
from facepipe.batch.planning import FileState
from facepipe.batch.rows import face_bytes
from facepipe.batch.run import Batch, BatchOptions, Summary
from facepipe.batch.stored_faces import NameFaces
from facepipe.core.faces import Faces, Match, UInt8Array
from facepipe.gallery import NewTemplate
from facepipe.gallery.storage.schema import row_checksum
from facepipe.images.reading import photo_sha256, read_image
from facepipe.library.storage import LibraryTables, PersonDisplay, StepState, now
from facepipe.pipeline import FacePipeline, NamingOptions
from facepipe.quality_rules import Reason
from facepipe.reports.records import to_json

EXIF_ORIENTATION = 0x0112
NAME = "Eileen Collins"


def enroll_her(gallery: Path, astronaut: UInt8Array) -> None:
    """A gallery that knows the astronaut."""
    with FacePipeline.load(gallery, create_gallery=True) as pipeline:
        faces = pipeline.embed(astronaut)
        assert faces.embeddings is not None
        assert pipeline.gallery is not None
        pipeline.gallery.add(NAME, [NewTemplate(embedding=faces.embeddings[0])])


def write_archive(folder: Path, photo: UInt8Array, count: int) -> list[Path]:
    """`count` photos: of several sizes and formats, turned by EXIF, some twice, every 20th broken."""
    return [_write(folder, photo, number) for number in range(count)]


def _write(folder: Path, photo: UInt8Array, number: int) -> Path:
    side = (224, 256, 320, 288)[number % 4]
    rgb = Image.fromarray(photo).resize((side, side))
    places = [
        "plain{}.jpg",
        "Ünï çode/фото 顔 {}.jpg",
        "turned/{}.jpg",
        "deep/er/{}.png",
        "same/{}.jpg",
        "{}.webp",
    ]
    path = folder / places[number % len(places)].format(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if path.parent.name == "turned":
        exif[EXIF_ORIENTATION] = 6
        rgb = rgb.rotate(90, expand=True)
    if path.parent.name == "same":
        rgb = Image.fromarray(photo).resize((256, 256))
    if number % 7 == 3:
        rgb = Image.fromarray(noise(number, 128, 160))
    rgb.save(path, exif=exif)
    if number % 20 == 10:
        path.write_bytes(path.read_bytes()[:900])
    return path


def work_through(
    pipeline: FacePipeline, folders: Sequence[Path], out: Path, options: BatchOptions | None = None
) -> tuple[Summary, list[str]]:
    """A batch from beginning to end, and its records as `facepipe identify --json` has them."""
    with Job(out, create=True) as job:
        batch = Batch(pipeline, job, options)
        batch.find(folders)
        summary = batch.run()
        return summary, [to_json(record.result) for record in job.records()]


def identified(pipeline: FacePipeline, paths: Sequence[Path]) -> Iterator[str]:
    """What `facepipe identify --json` says."""
    for result in pipeline.identify_files(paths):
        yield to_json(result.without_photo())


def large_jpeg(path: Path, photo: UInt8Array, scale: int, quality: int = 92) -> UInt8Array:
    """The photo enlarged, as a JPEG; answers what a plain read gives."""
    side = photo.shape[0] * scale
    Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS).save(path, quality=quality)
    return read_image(path)


def in_a_corner(photo: UInt8Array, side: int) -> UInt8Array:
    """The photo in the corner of a large gray one: its face is small in it."""
    wide = np.full((side, side, 3), 128, np.uint8)
    wide[: photo.shape[0], : photo.shape[1]] = photo
    return wide


def as_of_before(out: Path, *, version: int = 1, without: Sequence[str] = ()) -> None:
    """Turn a job into one of an earlier facepipe: without these columns of photos, nor what came later."""
    with closing(sqlite3.connect(out / JOB_FILE)) as database:
        (encrypted,) = database.execute("SELECT count(*) FROM encryption").fetchone()
        if version < FACE_IDS_SINCE:
            database.execute("ALTER TABLE encryption ADD COLUMN wiped INTEGER")
            if not encrypted:
                database.execute("DROP TABLE encryption")
        for table in NEW_IN_4 if version == FACE_IDS_SINCE else (*NEW_IN_3, *NEW_IN_4):
            database.execute(f"DROP TABLE {table}")
        if version < FACE_IDS_SINCE:
            database.execute("ALTER TABLE photos DROP COLUMN face_ids")
            database.execute("ALTER TABLE photos DROP COLUMN taken_at")
            if version >= CHECKSUMS_SINCE:
                write_checksums(database, CHECKED_COLUMNS_OF_2)
        for table in CHECKED_COLUMNS_OF_2 if version < CHECKSUMS_SINCE else ():
            if encrypted or table != "encryption":
                database.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        for column in without:
            database.execute(f"ALTER TABLE photos DROP COLUMN {column}")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()


def decide_something(job: Job) -> None:
    """Put a row into every table that holds what people decided."""
    photo = job.faces.of_photo(1, 4)
    numbers = face_bytes(photo.faces.select([0]), photo.reasons[:1])[0]
    sha256 = job.faces.sha256(1)
    assert sha256 is not None
    decision = Decision(
        photo.ids[0], sha256, (0, 0, 1, 1), Verdict.IS, "Ada", frozenset({"Bob"}), "Eve", True, now()
    )
    tables = LibraryTables(job)
    with job.file.changing():
        job.decisions.put(StoredDecision(decision, numbers, VECTORS[0]))
        tables.show_person("Ada", PersonDisplay(True, photo.ids[0]))
        tables.set_templates({photo.ids[0]: 1}, [])
        job.writes.begin([PhotoWrite((1,), sha256, "0" * 64, FileState(1, 1))])
        tables.add_step("a step", {"decisions": []}, StepState.DONE)
    job.groups.write({photo.ids[0]: 1})
    job.remember_naming(job.folder / "gallery", options_to_dict(NamingOptions()))


def write_checksums(
    database: sqlite3.Connection, checked_columns: Mapping[str, str] = CHECKED_COLUMNS
) -> None:
    """Those of rows as they are now, as somebody writes them who makes a job file of their own."""
    database.create_function("row_checksum", -1, row_checksum)
    for table, columns in checked_columns.items():
        database.execute(f"UPDATE {table} SET checksum = row_checksum({columns})")
    database.commit()


def job_of(folder: Path, people: Mapping[Path, Sequence[str]]) -> Path:
    """A batch's folder: these photos, in this order, with these people, the largest face first."""
    with Job(folder, create=True) as job:
        job.plan(people)
        for task in job.waiting():
            names = people[task.path]
            faces = faces_at(*((0, 0, 90 - 10 * i, 90 - 10 * i) for i in range(len(names))))
            faces = faces.with_embeddings(np.full((len(names), 4), 0.5, np.float32))
            faces = faces.with_enrollable(np.ones(len(names), bool))
            faces = faces.with_matches(Match(name, 0.5, 1.0) for name in names)
            reasons = (None,) * len(names)
            found = PhotoAnalysis(task, photo_sha256(task.path), (100, 100), faces, reasons=reasons)
            job.save([found], "names")
    return folder


SOMEBODY, NOBODY = Match("Somebody", 0.5, 1.0, "Other", 0.9), Match(None, 1.4, 1.0, reason="nobody_near")

TOO_SMALL = Match(None, None, 1.0, reason="too_small")

MATCHES = (SOMEBODY, TOO_SMALL, NOBODY)

VECTORS = np.array([[0.5, 0.5, 0.5, -0.5], [0.5, -0.5, 0.5, -0.5]], np.float32)


def each(name: Callable[[Faces, Sequence[Reason | None]], Sequence[Match]]) -> NameFaces:
    """Name one photo after the other."""
    return lambda photos: [name(*photo) for photo in photos]


def files(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(f"content of {name}")
    return [folder / name for name in names]


def analyzed(task: PhotoTask, matches: Sequence[Match] = MATCHES) -> PhotoAnalysis:
    """Three faces: good, too small to be compared, compared though enrollment would not take it."""
    from facepipe.images.reading import photo_sha256

    faces = faces_at((1, 2, 30, 40), (50, 60, 55, 66), (99, 9, 120, 30), scores=(0.9, 0.8, 0.8))
    vectors = np.full((3, 4), np.nan, np.float32)
    vectors[0], vectors[2] = VECTORS
    faces = faces.with_embeddings(vectors).with_enrollable(np.array([True, False, False]))
    return PhotoAnalysis(
        task,
        photo_sha256(task.path),
        (640, 480),
        faces.with_matches(matches),
        reasons=(None, Reason.TOO_SMALL, None),
        pictures={0: b"webp", -1: b"all"},
    )


def do(job: Job, *, failing: frozenset[str] = frozenset()) -> list[str]:
    """Deal with what waits; answers the names."""
    tasks = job.waiting()
    for task in tasks:
        if task.path.name in failing:
            job.save([FailedPhoto(task, f"{task.path}: broken")], "names")
        else:
            job.save([analyzed(task)], "names")
    return [task.path.name for task in tasks]
