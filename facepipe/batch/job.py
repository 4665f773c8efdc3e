"""The job file: which photos there are, what is done, what was seen. Killed processes lose seconds of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from facepipe.errors import FacepipeError, OutputError, PhotoError, UsageError
from facepipe.faces import Faces, FloatArray, Match
from facepipe.images import photo_sha256
from facepipe.pipeline import PhotoResult, rows_to_compare
from facepipe.quality import Reason
from gallery.matching import Doubt

JOB_FILE = "job.sqlite3"
PREVIEW = -1
"""Number of the picture that shows the whole photo; the others have their face's."""

_APPLICATION_ID = 0x46504A31  # "FPJ1" in the SQLite header, so that any other program's file is recognised
_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE photos (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    place INTEGER,                -- in the order of the last command, NULL: not one of its photos
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'failed')),
    sha256 TEXT,
    error TEXT,
    width INTEGER, height INTEGER,
    numbers BLOB,                 -- float32 (n, 15): box, score, landmarks
    vectors BLOB,                 -- float32 (m, d) of the faces without a reason
    enrollable BLOB,              -- bool (n,)
    reasons TEXT,                 -- why a face was not compared, or null
    matches TEXT, named_by TEXT); -- what the gallery said, and which settings and state of it
CREATE INDEX photos_by_place ON photos (place) WHERE place IS NOT NULL;
CREATE TABLE pictures (
    photo_id INTEGER NOT NULL, face INTEGER NOT NULL, webp BLOB NOT NULL,
    PRIMARY KEY (photo_id, face)) WITHOUT ROWID;
CREATE TABLE products (           -- files made of a photo's result, and of which
    kind TEXT NOT NULL, photo_id INTEGER NOT NULL, made_of TEXT NOT NULL, files TEXT NOT NULL,
    PRIMARY KEY (kind, photo_id)) WITHOUT ROWID;
"""
_MISSING_FILE = (-1, -1)


@dataclass(frozen=True, slots=True)
class Task:
    """A photo to be looked at; `id` is its row in the job file."""

    id: int
    path: Path


@dataclass(frozen=True, slots=True)
class Look:
    """What looking at a photo gave: all that naming and telling need, without the pixels.

    Attributes:
        sha256: Of the file.
        size_wh: Width and height of the upright photo in pixels.
        faces: With `enrollable` and vectors, rows of NaN where a face is not to be compared.
        reasons: Why a face is not to be compared; None where it is.
        pictures: WebP files: of each face by its row, of the photo under `PREVIEW`.
    """

    sha256: str
    size_wh: tuple[int, int]
    faces: Faces
    reasons: tuple[Reason | None, ...]
    pictures: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task that has ended: with a look, or with an error that names the file."""

    task: Task
    look: Look | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A photo of the last command that has been dealt with.

    Attributes:
        id: Row in the job file.
        result: Its faces with names, or the error.
        size_wh: Width and height of the upright photo; None after an error.
    """

    id: int
    result: PhotoResult
    size_wh: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Stranger:
    """A face near nobody that enrolment would take: its photo, its row there, and its vector (d,)."""

    photo_id: int
    photo_sha256: str
    face: int
    vector: FloatArray


@dataclass(frozen=True, slots=True)
class Product:
    """Files made of one photo's result.

    Attributes:
        made_of: Names that result.
        files: None where there was nothing to make.
    """

    made_of: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Photos of the last command by state, and the faces of those that are done."""

    waiting: int
    done: int
    failed: int
    faces: int
    known: int

    @property
    def total(self) -> int:
        """All photos."""
        return self.waiting + self.done + self.failed


class Job:
    """A folder's job file, held by one process at a time. Every change is one transaction.

    Args:
        folder: Holds the file.
        create: Whether a missing one is made, in a private folder: it holds vectors of faces.

    Raises:
        UsageError: There is none, and none is to be made.
        OutputError: It can't be opened, or another process works with it.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder, self.file = folder, folder / JOB_FILE
        if create:
            _make_private(folder)
        elif not self.file.exists():
            raise UsageError(f"{folder}: no batch was run with this folder as --out (it has no {JOB_FILE})")
        with self._failures_named():
            self._database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        self._database.close()

    # What is to be done

    def require_settings(self, settings: dict[str, Any], *, again: bool) -> None:
        """Bind the job to what looking at a photo depends on.

        Args:
            settings: By name; values that JSON holds.
            again: Look at all photos again, with these settings.

        Raises:
            UsageError: The job was begun with other settings; the message names them.
        """
        wanted = {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}
        with self._changing() as database:
            held = dict(database.execute("SELECT key, value FROM settings"))
            different = sorted(key for key in wanted if held.get(key) != wanted[key])
            if held and different and not again:
                told = ", ".join(f"{key} {held.get(key)} (now {wanted[key]})" for key in different)
                raise UsageError(
                    f"{self.folder}: this job was begun with {told}; use the same, or --again to look at "
                    "all photos again, or another --out"
                )
            database.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", wanted.items())
            if again:
                database.execute("UPDATE photos SET state = 'waiting'")

    def plan(self, photos: Iterable[Path], *, retry_failed: bool = False) -> None:
        """Take these photos, in this order, for those of the command. What is new or changed waits.

        A photo has changed where its size has, or where its time has and its content too. Photos that were
        taken before and are not among these stay remembered, and are left out of everything.
        """
        paths = [Path(os.path.abspath(photo)) for photo in photos]
        with self._changing() as database:
            database.execute("UPDATE photos SET place = NULL")
            self._take(database, paths, first_place=0)
            if retry_failed:
                database.execute(
                    "UPDATE photos SET state = 'waiting' WHERE state = 'failed' AND place IS NOT NULL"
                )

    def plan_more(self, photos: Iterable[Path]) -> None:
        """As `plan`, in addition to the photos taken before."""
        with self._changing() as database:
            (last,) = database.execute("SELECT coalesce(max(place), -1) FROM photos").fetchone()
            self._take(database, [Path(os.path.abspath(photo)) for photo in photos], first_place=last + 1)

    def leave_out(self, photos: Iterable[Path]) -> None:
        """Take these photos out of those of the command; they stay remembered."""
        with self._changing() as database:
            keys = [(os.fsencode(photo),) for photo in photos]
            database.executemany("UPDATE photos SET place = NULL WHERE path = ?", keys)

    def waiting(self) -> list[Task]:
        """The photos to be looked at, in the order of the command."""
        rows = self._database.execute(
            "SELECT id, path FROM photos WHERE place IS NOT NULL AND state = 'waiting' ORDER BY place"
        )
        return [Task(id, Path(os.fsdecode(path))) for id, path in rows]

    # What was seen

    def save(self, outcomes: Sequence[tuple[Outcome, Sequence[Match]]], named_by: str) -> None:
        """Remember how tasks ended, each with what the gallery said of its faces, in one transaction."""
        with self._changing() as database:
            for outcome, matches in outcomes:
                _save(database, outcome, matches, named_by)

    def name_again(
        self,
        name: Callable[[Faces, Sequence[Reason | None]], Sequence[Match]],
        named_by: str,
        dimensions: int,
    ) -> int:
        """Ask the gallery again about photos that other settings or another state of it named.

        Nothing is read but the job file. In transactions of some hundred photos: what a killed process has
        named stays named.

        Returns:
            How many photos were named again.
        """
        rows = self._database.execute(
            "SELECT id FROM photos WHERE place IS NOT NULL AND state = 'done' AND named_by != ?", (named_by,)
        ).fetchall()
        for at in range(0, len(rows), 512):
            with self._changing() as database:
                for (id,) in rows[at : at + 512]:
                    columns = "numbers, vectors, reasons"
                    row = database.execute(f"SELECT {columns} FROM photos WHERE id = ?", (id,)).fetchone()
                    reasons = _reasons(row[2])
                    faces = _faces(row[0]).with_embeddings(_vectors(row[1], reasons, dimensions))
                    matches = _matches_to_text(name(faces, reasons))
                    values = (matches, named_by, id)
                    database.execute("UPDATE photos SET matches = ?, named_by = ? WHERE id = ?", values)
        return len(rows)

    def records(self) -> Iterator[Record]:
        """The photos of the command that have been dealt with, in its order."""
        rows = self._database.execute(
            """SELECT id, path, state, error, width, height, numbers, matches FROM photos
            WHERE place IS NOT NULL AND state != 'waiting' ORDER BY place"""
        )
        for id, path, state, error, width, height, numbers, matches in rows:
            photo = Path(os.fsdecode(path))
            if state == "failed":
                yield Record(id, PhotoResult(photo, error=error), None)
                continue
            faces = _faces(numbers).with_matches(_matches_from_text(matches))
            yield Record(id, PhotoResult(photo, faces=faces), (width, height))

    def photos(self) -> list[Path]:
        """All photos of the command, in its order."""
        rows = self._database.execute("SELECT path FROM photos WHERE place IS NOT NULL ORDER BY place")
        return [Path(os.fsdecode(path)) for (path,) in rows]

    def pictures(self, photo_id: int) -> dict[int, bytes]:
        """The WebP files of a photo; see `Look.pictures`."""
        rows = self._database.execute("SELECT face, webp FROM pictures WHERE photo_id = ?", (photo_id,))
        return dict(rows.fetchall())

    def sha256(self, photo_id: int) -> str | None:
        """Of the file that was looked at; None where that failed."""
        row = self._database.execute("SELECT sha256 FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return None if row is None else row[0]

    def strangers(self) -> list[Stranger]:
        """The faces near nobody that enrolment would take, with their vectors."""
        rows = self._database.execute(
            """SELECT id, sha256, vectors, enrollable, reasons, matches FROM photos
            WHERE place IS NOT NULL AND state = 'done' AND length(vectors) > 0 ORDER BY place"""
        )
        return [stranger for row in rows for stranger in _strangers(*row)]

    def counts(self) -> Counts:
        """Photos and faces of the command."""
        rows = self._database.execute(
            """SELECT state, count(*), total(length(numbers)) FROM photos
            WHERE place IS NOT NULL GROUP BY state"""
        ).fetchall()
        by_state = {state: count for state, count, _ in rows}
        faces = sum(int(size) for state, _, size in rows if state == "done") // _FACE_BYTES
        (known,) = self._database.execute(
            """SELECT count(*) FROM photos, json_each(photos.matches)
            WHERE place IS NOT NULL AND state = 'done' AND json_each.value ->> '$.name' IS NOT NULL"""
        ).fetchone()
        waiting, done, failed = (by_state.get(state, 0) for state in ("waiting", "done", "failed"))
        return Counts(waiting, done, failed, faces, known)

    # Files made of results

    def product(self, kind: str, photo_id: int) -> Product | None:
        """The photo's files of this kind; None: never made."""
        found = self._database.execute(
            "SELECT made_of, files FROM products WHERE kind = ? AND photo_id = ?", (kind, photo_id)
        ).fetchone()
        return None if found is None else Product(found[0], tuple(map(Path, json.loads(found[1]))))

    def note_products(self, kind: str, products: dict[int, Product]) -> None:
        """Remember files by photo, and remove those that these photos no longer have."""
        for id, product in products.items():
            old = self.product(kind, id)
            for file in set(old.files if old else ()) - set(product.files):
                file.unlink(missing_ok=True)
        rows = [
            (kind, id, product.made_of, json.dumps(list(map(str, product.files))))
            for id, product in products.items()
        ]
        with self._changing() as database:
            database.executemany("INSERT OR REPLACE INTO products VALUES (?, ?, ?, ?)", rows)

    # Inside

    def _open(self) -> None:
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        with self._changing() as database:  # takes the lock, which the system lets go however we end
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if tables and application != _APPLICATION_ID:
                raise OutputError(f"{self.file}: not a job file of facepipe; choose another --out")
            if not tables:
                for statement in _SCHEMA.split(";")[:-1]:
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            columns = {row[1] for row in database.execute("PRAGMA table_info(photos)")}
            if "enrollable" not in columns:  # a job of before it was measured
                database.execute("ALTER TABLE photos ADD COLUMN enrollable BLOB")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._failures_named():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.commit()
            finally:
                self._database.rollback()  # nothing, after a commit

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except FacepipeError:
            raise
        except sqlite3.Error as error:
            locked = "locked" in str(error)
            cure = "another facepipe works with it: wait for it" if locked else f"can't be used ({error})"
            raise OutputError(f"{self.file}: {cure}, or choose another --out") from error

    def _take(self, database: sqlite3.Connection, paths: Sequence[Path], first_place: int) -> None:
        columns = "path, id, size_bytes, mtime_ns, state, sha256"
        known = {row[0]: row[1:] for row in database.execute(f"SELECT {columns} FROM photos")}
        for place, path in enumerate(paths, first_place):
            key, (size, time_ns) = os.fsencode(path), _size_and_time(path)
            if key not in known:
                database.execute(
                    """INSERT INTO photos (path, place, size_bytes, mtime_ns, state)
                    VALUES (?, ?, ?, ?, 'waiting')""",
                    (key, place, size, time_ns),
                )
                continue
            id, old_size, old_time_ns, state, sha256 = known[key]
            if (size, time_ns) != (old_size, old_time_ns) and not (
                state == "done" and size == old_size and _same_content(path, sha256)
            ):
                state = "waiting"
            database.execute(
                "UPDATE photos SET place = ?, size_bytes = ?, mtime_ns = ?, state = ? WHERE id = ?",
                (place, size, time_ns, state, id),
            )


_FACE_NUMBERS = 15
_FACE_BYTES = _FACE_NUMBERS * 4


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder ({error.strerror}); choose another") from error


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # the look says why
        return _MISSING_FILE
    return status.st_size, status.st_mtime_ns


def _same_content(path: Path, sha256: str | None) -> bool:
    try:
        return photo_sha256(path) == sha256
    except PhotoError:
        return False


def _save(database: sqlite3.Connection, outcome: Outcome, matches: Sequence[Match], named_by: str) -> None:
    id, look = outcome.task.id, outcome.look
    database.execute("DELETE FROM pictures WHERE photo_id = ?", (id,))
    if look is None:
        database.execute(
            "UPDATE photos SET state = 'failed', error = ?, sha256 = NULL WHERE id = ?", (outcome.error, id)
        )
        return
    reasons = json.dumps([reason and reason.value for reason in look.reasons])
    named = _matches_to_text(matches), named_by
    database.execute(
        """UPDATE photos SET state = 'done', error = NULL, sha256 = ?, width = ?, height = ?, numbers = ?,
        vectors = ?, enrollable = ?, reasons = ?, matches = ?, named_by = ? WHERE id = ?""",
        (look.sha256, *look.size_wh, *_face_bytes(look), reasons, *named, id),
    )
    pictures = ((id, face, webp) for face, webp in look.pictures.items())
    database.executemany("INSERT INTO pictures VALUES (?, ?, ?)", pictures)


def _face_bytes(look: Look) -> tuple[bytes, bytes, bytes]:
    faces, n = look.faces, len(look.faces)
    assert faces.embeddings is not None
    assert faces.enrollable is not None
    columns = (faces.boxes_xyxy, faces.scores[:, None], faces.landmarks.reshape(n, 10))
    vectors = faces.embeddings[rows_to_compare(look.reasons)]
    numbers = np.hstack(columns).astype("<f4").tobytes()
    return numbers, vectors.astype("<f4").tobytes(), faces.enrollable.tobytes()


def _faces(numbers: bytes) -> Faces:
    table = np.frombuffer(numbers, "<f4").astype(np.float32).reshape(-1, _FACE_NUMBERS)
    return Faces(table[:, :4], table[:, 4], table[:, 5:].reshape(-1, 5, 2))


def _reasons(text: str) -> list[Reason | None]:
    return [None if code is None else Reason(code) for code in json.loads(text)]


def _vectors(stored: bytes, reasons: Sequence[Reason | None], dimensions: int) -> FloatArray:
    vectors = np.full((len(reasons), dimensions), np.nan, np.float32)
    vectors[rows_to_compare(reasons)] = np.frombuffer(stored, "<f4").reshape(-1, dimensions)
    return vectors


def _strangers(
    id: int, sha256: str, vectors: bytes, enrollable: bytes | None, reasons: str, matches: str
) -> Iterator[Stranger]:
    if enrollable is None:
        return
    rows = rows_to_compare(_reasons(reasons))
    table = np.frombuffer(vectors, "<f4").reshape(len(rows), -1)
    found = _matches_from_text(matches)
    for row, vector in zip(rows.tolist(), table, strict=True):
        if enrollable[row] and found[row].reason == Doubt.NOBODY_NEAR.value:
            yield Stranger(id, sha256, row, vector)


def _matches_to_text(matches: Sequence[Match]) -> str:
    return json.dumps([asdict(match) for match in matches], ensure_ascii=False)


def _matches_from_text(text: str) -> list[Match]:
    return [Match(**fields) for fields in json.loads(text)]
