"""The job file: which photos there are, what is done, what was seen. Killed processes lose seconds of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from facepipe.batch.planning import NO_FILE, Planner, Taken
from facepipe.batch.rows import (
    FACE_BYTES,
    face_bytes,
    faces_of,
    known_count,
    matches_of,
    matches_to_text,
    reasons_of,
    reasons_to_text,
    strangers_of,
    vectors_of,
)
from facepipe.batch.seal import SEALED_COLUMNS, Seal, known_seal, new_seal
from facepipe.detector import DetectorOptions
from facepipe.errors import FacepipeError, OutputError, UsageError
from facepipe.faces import Faces, FloatArray, Match
from facepipe.files import PRIVATE_FILE_MODE, make_private_folder, remove_dead_temporaries
from facepipe.pipeline import PhotoResult
from facepipe.quality import Reason
from gallery.codec import secret_of_environment

JOB_FILE = "job.sqlite3"
PREVIEW = -1
"""Number of the picture that shows the whole photo; the others have their face's."""

_APPLICATION_ID = 0x46504A31  # "FPJ1" in the SQLite header, so that any other program's file is recognised
_VERSION = 1
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
    matches TEXT, named_by TEXT,  -- what the gallery said, and which settings and state of it
    known INTEGER,                -- how many faces have a name
    told INTEGER);                -- 1: an earlier command has ended and told this error
CREATE INDEX photos_by_place ON photos (place) WHERE place IS NOT NULL;
CREATE TABLE pictures (
    photo_id INTEGER NOT NULL, face INTEGER NOT NULL, webp BLOB NOT NULL,
    PRIMARY KEY (photo_id, face)) WITHOUT ROWID;
CREATE TABLE products (           -- files made of a photo's result, and of which
    kind TEXT NOT NULL, photo_id INTEGER NOT NULL, made_of TEXT NOT NULL, files TEXT NOT NULL,
    PRIMARY KEY (kind, photo_id)) WITHOUT ROWID;
"""
_ENCRYPTION = "CREATE TABLE IF NOT EXISTS encryption (salt BLOB, key_check BLOB, wiped INTEGER)"
"""One row: the job is encrypted, and whether every byte of before is wiped. None: it is plain."""
_MOVES = "CREATE TABLE IF NOT EXISTS moves (id INTEGER PRIMARY KEY CHECK (id = 1), paths TEXT NOT NULL)"
"""One row: a photo is being moved, or was when a process was killed; its old and new path."""
_LATER_COLUMNS = {"enrollable": "BLOB", "known": "INTEGER", "told": "INTEGER"}
"""Of photos, in the order in which they came: a job of before gets them when it is opened."""


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
    """A task that has ended: with a look, or with an error that names the file.

    Attributes:
        passing: The error may pass without a change of the file: the next command looks again.
    """

    task: Task
    look: Look | None = None
    error: str | None = None
    passing: bool = False


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
    """Photos of the last command by state, and the faces of those that are done.

    Attributes:
        newly_failed: Those of the failed whose errors no earlier command has told.
    """

    waiting: int
    done: int
    failed: int
    newly_failed: int
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
        secret: The key of an encrypted job; None: that of the environment (`FACEPIPE_GALLERY_KEY`).

    Raises:
        UsageError: There is none, and none is to be made.
        OutputError: It can't be opened, or another process works with it.
        GalleryError: It is encrypted, and the secret is not its key.
    """

    def __init__(self, folder: Path, *, create: bool = False, secret: bytes | None = None) -> None:
        self.folder, self.file = folder, folder / JOB_FILE
        self._secret, self._seal = secret, Seal(self.file)
        if create:
            _make_private(folder, self.file)
        elif not self.file.exists():
            raise UsageError(f"{folder}: no batch was run with this folder as --out (it has no {JOB_FILE})")
        remove_dead_temporaries(folder)
        with self._failures_named():
            self._database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        self._database.close()

    def require_encryption(self) -> bool:
        """Encrypt paths, names, vectors and pictures, unless they are; no plain byte is left in the file.

        Returns:
            Whether they were not.

        Raises:
            GalleryError: There is no secret.
        """
        if self._seal.is_encrypting:
            return False
        seal = new_seal(self.file, self._secret or secret_of_environment())
        with self._changing() as database:
            for table, columns in SEALED_COLUMNS.items():
                _reseal(database, table, columns, seal)
            database.execute("INSERT INTO encryption VALUES (?, ?, 0)", seal.salt_and_check)
        self._seal = seal
        self._wipe()
        return True

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

    def plan(self, photos: Iterable[Path], *, retry_failed: bool = False) -> Taken:
        """Take these photos, in this order, for those of the command. What is new or changed waits.

        A photo has changed where its size has, or where its time has and its content too. One that was moved
        or renamed is known by its content. Photos that were taken before and are not among these stay
        remembered, and are left out of everything.
        """
        with self._changing() as database:
            _look_again_at_panoramas(database)
            taken = Planner(database, self._seal, self.folder).take_only(photos)
            if retry_failed:
                database.execute(
                    "UPDATE photos SET state = 'waiting' WHERE state = 'failed' AND place IS NOT NULL"
                )
            return taken

    def plan_more(self, photos: Iterable[Path]) -> None:
        """As `plan`, in addition to the photos taken before."""
        with self._changing() as database:
            Planner(database, self._seal, self.folder).take_more(photos)

    def leave_out(self, photos: Iterable[Path]) -> None:
        """Take these photos out of those of the command; they stay remembered."""
        with self._changing() as database:
            keys = [(self._seal.seal_path(photo),) for photo in photos]
            database.executemany("UPDATE photos SET place = NULL WHERE path = ?", keys)

    def waiting(self) -> list[Task]:
        """The photos to be looked at, in the order of the command."""
        rows = self._database.execute(
            "SELECT id, path FROM photos WHERE place IS NOT NULL AND state = 'waiting' ORDER BY place"
        )
        return [Task(id, self._seal.open_path(path)) for id, path in rows]

    # What was seen

    def save(self, outcomes: Sequence[tuple[Outcome, Sequence[Match]]], named_by: str) -> None:
        """Remember how tasks ended, each with what the gallery said of its faces, in one transaction."""
        with self._changing() as database:
            for outcome, matches in outcomes:
                self._save(database, outcome, matches, named_by)

    def note_failures_told(self) -> None:
        """Remember that the failures of the command were told, with what was wrong."""
        with self._changing() as database:
            database.execute("UPDATE photos SET told = 1 WHERE place IS NOT NULL AND state = 'failed'")

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
                    reasons = reasons_of(row[2])
                    vectors = vectors_of(self._seal.open("vectors", row[1]), reasons, dimensions)
                    matches = name(faces_of(row[0]).with_embeddings(vectors), reasons)
                    text = self._seal.seal("matches", matches_to_text(matches))
                    database.execute(
                        "UPDATE photos SET matches = ?, named_by = ?, known = ? WHERE id = ?",
                        (text, named_by, known_count(matches), id),
                    )
        return len(rows)

    def records(self) -> Iterator[Record]:
        """The photos of the command that have been dealt with, in its order."""
        options = self._detector_options()
        rows = self._database.execute(
            """SELECT id, path, state, error, width, height, numbers, matches FROM photos
            WHERE place IS NOT NULL AND state != 'waiting' ORDER BY place"""
        )
        for id, path, state, error, width, height, numbers, matches in rows:
            photo = self._seal.open_path(path)
            if state == "failed":
                yield Record(id, PhotoResult(photo, error=self._seal.open("error", error)), None)
                continue
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            scale = options.scale_of((width, height))
            yield Record(id, PhotoResult(photo, faces=faces, scale=scale), (width, height))

    def photos(self) -> list[Path]:
        """All photos of the command, in its order."""
        rows = self._database.execute("SELECT path FROM photos WHERE place IS NOT NULL ORDER BY place")
        return [self._seal.open_path(path) for (path,) in rows]

    def pictures(self, photo_id: int) -> dict[int, bytes]:
        """The WebP files of a photo; see `Look.pictures`."""
        rows = self._database.execute("SELECT face, webp FROM pictures WHERE photo_id = ?", (photo_id,))
        return {face: self._seal.open("webp", webp) for face, webp in rows}

    def sha256(self, photo_id: int) -> str | None:
        """Of the file that was looked at; None where that failed."""
        row = self._database.execute("SELECT sha256 FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return None if row is None else self._seal.open("sha256", row[0])

    def strangers(self) -> list[Stranger]:
        """The faces near nobody that enrolment would take, with their vectors."""
        rows = self._database.execute(
            """SELECT id, sha256, vectors, enrollable, reasons, matches FROM photos
            WHERE place IS NOT NULL AND state = 'done' AND length(vectors) > 0 ORDER BY place"""
        )
        opened = self._seal.open
        strangers = []
        for id, sha256, vectors, enrollable, reasons, matches in rows:
            columns = opened("vectors", vectors), enrollable, reasons, opened("matches", matches)
            photo_sha256 = opened("sha256", sha256)
            strangers += [Stranger(id, photo_sha256, row, vector) for row, vector in strangers_of(*columns)]
        return strangers

    def counts(self) -> Counts:
        """Photos and faces of the command."""
        rows = self._database.execute(
            """SELECT state, count(*), total(length(numbers)), total(known), total(coalesce(told, 0) = 0)
            FROM photos WHERE place IS NOT NULL GROUP BY state"""
        ).fetchall()
        photos = {state: count for state, count, *_ in rows}
        waiting, done, failed = (photos.get(state, 0) for state in ("waiting", "done", "failed"))
        faces, known = next(
            ((int(size) // FACE_BYTES, int(known)) for state, _, size, known, _ in rows if state == "done"),
            (0, 0),
        )
        newly_failed = sum(int(new) for state, *_, new in rows if state == "failed")
        return Counts(waiting, done, failed, newly_failed, faces, known)

    # Files made of results

    def product(self, kind: str, photo_id: int) -> Product | None:
        """The photo's files of this kind; None: never made."""
        found = self._database.execute(
            "SELECT made_of, files FROM products WHERE kind = ? AND photo_id = ?", (kind, photo_id)
        ).fetchone()
        if found is None:
            return None
        return Product(found[0], tuple(map(Path, json.loads(self._seal.open("files", found[1])))))

    def note_products(self, kind: str, products: Mapping[int, Product]) -> None:
        """Remember files by photo."""
        rows = [
            (kind, id, product.made_of, self._seal.seal("files", json.dumps(list(map(str, product.files)))))
            for id, product in products.items()
        ]
        with self._changing() as database:
            database.executemany("INSERT OR REPLACE INTO products VALUES (?, ?, ?, ?)", rows)

    # Photos that are moved

    def begin_move(self, source: Path, target: Path) -> None:
        """Remember that a photo is being moved, so that a killed process is known to have left it halfway."""
        paths = self._seal.seal("paths", json.dumps([str(source), str(target)]))
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO moves VALUES (1, ?)", (paths,))

    def end_move(self) -> None:
        """Forget it: it was moved, or is where it was."""
        with self._changing() as database:
            database.execute("DELETE FROM moves")

    def unfinished_move(self) -> tuple[Path, Path] | None:
        """The old and the new path of a photo whose move has begun and not ended."""
        row = self._database.execute("SELECT paths FROM moves").fetchone()
        if row is None:
            return None
        source, target = json.loads(self._seal.open("paths", row[0]))
        return Path(source), Path(target)

    # Inside

    def _detector_options(self) -> DetectorOptions:
        """Those that decide how large photos are analysed."""
        key = "detector options"
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return DetectorOptions(max_side=json.loads(row[0])["max_side"]) if row else DetectorOptions()

    def _open(self) -> None:
        self._database.execute("PRAGMA temp_store = MEMORY")  # no paths in the system's temporary folder
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
            _bring_up_to_date(database)
            encryption = database.execute("SELECT salt, key_check, wiped FROM encryption").fetchone()
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        if encryption is not None:
            salt, check, wiped = encryption
            self._seal = known_seal(self.file, salt, check, self._secret or secret_of_environment())
            if not wiped:
                self._wipe()

    def _wipe(self) -> None:
        """Leave no byte of what was there before it was encrypted, also where a killed process began this."""
        with self._failures_named():
            self._database.execute("VACUUM")
            self._database.execute("UPDATE encryption SET wiped = 1")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

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

    def _save(
        self, database: sqlite3.Connection, outcome: Outcome, matches: Sequence[Match], named_by: str
    ) -> None:
        id, look, seal = outcome.task.id, outcome.look, self._seal.seal
        database.execute("DELETE FROM pictures WHERE photo_id = ?", (id,))
        if look is None:
            error = seal("error", outcome.error)
            database.execute(
                """UPDATE photos SET state = 'failed', told = coalesce(told, 0) AND error IS ?, error = ?,
                sha256 = NULL WHERE id = ?""",
                (error, error, id),
            )
            if outcome.passing:
                database.execute(
                    "UPDATE photos SET size_bytes = ?, mtime_ns = ? WHERE id = ?", (*NO_FILE, id)
                )
            return
        numbers, vectors, enrollable = face_bytes(look.faces, look.reasons)
        named = seal("matches", matches_to_text(matches)), named_by, known_count(matches)
        seen = numbers, seal("vectors", vectors), enrollable, reasons_to_text(look.reasons)
        database.execute(
            """UPDATE photos SET state = 'done', error = NULL, sha256 = ?, width = ?, height = ?, numbers = ?,
            vectors = ?, enrollable = ?, reasons = ?, matches = ?, named_by = ?, known = ? WHERE id = ?""",
            (seal("sha256", look.sha256), *look.size_wh, *seen, *named, id),
        )
        pictures = ((id, face, seal("webp", webp)) for face, webp in look.pictures.items())
        database.executemany("INSERT INTO pictures VALUES (?, ?, ?)", pictures)


def _make_private(folder: Path, file: Path) -> None:
    """Make the folder, and in it the file for the user alone: SQLite's logs get its permissions."""
    try:
        make_private_folder(folder)
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE))
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder ({error.strerror}); choose another") from error


def _look_again_at_panoramas(database: sqlite3.Connection) -> None:
    """Let photos beyond 2:1 wait in a job of before they were analysed at a larger scale."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < _VERSION:
        database.execute(
            """UPDATE photos SET state = 'waiting'
            WHERE state = 'done' AND max(width, height) > 2 * min(width, height)"""
        )
        database.execute(f"PRAGMA user_version = {_VERSION}")


def _bring_up_to_date(database: sqlite3.Connection) -> None:
    """Give a job of an earlier facepipe what it lacks."""
    columns = {row[1] for row in database.execute("PRAGMA table_info(photos)")}
    for column, kind in _LATER_COLUMNS.items():
        if column not in columns:
            database.execute(f"ALTER TABLE photos ADD COLUMN {column} {kind}")
    if "known" not in columns:
        database.execute(
            """UPDATE photos SET known = (SELECT count(*) FROM json_each(photos.matches)
            WHERE json_each.value ->> '$.name' IS NOT NULL) WHERE matches IS NOT NULL"""
        )
    database.execute(_ENCRYPTION)
    database.execute(_MOVES)


def _reseal(database: sqlite3.Connection, table: str, columns: tuple[str, ...], seal: Seal) -> None:
    keys = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5]]
    found = database.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
    where = " AND ".join(f"{key} = ?" for key in keys)
    values = ", ".join(f"{column} = ?" for column in columns)
    for key in found:
        plain = database.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}", key).fetchone()
        sealed = [seal.seal(column, value) for column, value in zip(columns, plain, strict=True)]
        database.execute(f"UPDATE {table} SET {values} WHERE {where}", (*sealed, *key))
