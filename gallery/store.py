"""The gallery's truth: people and face templates in SQLite.

Reading methods are called inside `Store.reading()`, changing ones inside `Store.changing()`.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.errors import GalleryError
from facepipe.faces import FloatArray
from gallery.database import Database, create_database
from gallery.index import EMPTY_STATE, IdArray, VectorState
from gallery.records import EncoderIdentity, NewTemplate, Person, Template, require_vectors

SCHEMA_VERSION = 1
APPLICATION_ID = 0x46504731
"""In the SQLite header, so that any other program's file is recognised ("FPG1")."""

SAME_VECTOR_L2 = 0.02
"""Vectors of one face in one photo are this near each other whatever runtime or batch size made them."""

_READ_ROWS = 4096
_VECTOR_DTYPE = np.dtype("<f4")

_SCHEMA = (
    """CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        generation INTEGER NOT NULL,
        encoder_name TEXT NOT NULL,
        encoder_fingerprint TEXT NOT NULL,
        dimensions INTEGER NOT NULL,
        threshold_l2 REAL NOT NULL,
        wipe_due INTEGER NOT NULL)""",  # Generation of the last change that left remains, or 0.
    # AUTOINCREMENT: the id of a removed row is never given again, so an index can't confuse the two.
    """CREATE TABLE people (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE)""",
    """CREATE TABLE templates (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        person_id INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        vector BLOB NOT NULL,
        source TEXT,
        box_left REAL, box_top REAL, box_right REAL, box_bottom REAL,
        quality REAL,
        photo_sha256 TEXT,
        added_at TEXT NOT NULL)""",
    "CREATE INDEX templates_by_person ON templates (person_id)",
    "CREATE INDEX templates_by_photo ON templates (photo_sha256)",
    # Every state that the vectors went through: tells an index that is merely behind from a foreign one.
    """CREATE TABLE vector_states (
        generation INTEGER PRIMARY KEY,
        token BLOB NOT NULL)""",
)


class Store:
    """The rows of one gallery.

    Attributes:
        read_only: Changing raises an error.
        encoder: Whose vectors these are, as written when the gallery was made.
        opened_state: The state of the vectors when the gallery was opened.
    """

    _sql: sqlite3.Connection  # Inside a transaction only.

    def __init__(self, file: Path) -> None:
        self._database = Database(file)
        self.read_only = self._database.read_only
        try:
            with self.reading():
                self._require_our_schema(file)
                self.encoder = self._read_encoder()
                self.opened_state = self.vector_state()
            if not self.read_only:
                self.wipe_deleted()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(file: Path, encoder: EncoderIdentity) -> None:
        """Make an empty gallery for the vectors of `encoder`, unless another process makes one first."""
        create_database(file, _creating_statements(encoder))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state for all reads inside."""
        with self._database.reading() as self._sql:
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One transaction, alone among all processes; raises the generation if it changed any row."""
        with self._database.writing() as self._sql:
            before = self._sql.total_changes
            yield
            if self._sql.total_changes != before:
                self._sql.execute("UPDATE meta SET generation = generation + 1")

    def wipe_deleted(self) -> None:
        """Leave no byte of forgotten names and vectors in the SQLite file and its log, where that is due.

        Outside of any transaction. SQLite's secure_delete alone leaves copies in pages that were split.
        """
        with self.reading():
            due = self._value("SELECT wipe_due FROM meta")
        if due and self._database.wipe_deleted():
            with self._database.writing() as sql:  # Unless more was forgotten meanwhile.
                sql.execute("UPDATE meta SET wipe_due = 0 WHERE wipe_due = ?", (due,))

    def _require_our_schema(self, file: Path) -> None:
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise GalleryError(f"{file}: not a facepipe gallery (another program's SQLite file)")
        version = self._value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise GalleryError(
                f"{file}: made by a newer facepipe (schema {version}, this one knows {SCHEMA_VERSION}): "
                "upgrade facepipe"
            )

    def _read_encoder(self) -> EncoderIdentity:
        row = self._sql.execute(
            "SELECT encoder_name, encoder_fingerprint, dimensions, threshold_l2 FROM meta"
        ).fetchone()
        if row is None:
            raise GalleryError("the gallery is damaged: restore it from a copy or an exported archive")
        return EncoderIdentity(*row)

    # Reading

    def generation(self) -> int:
        """Number of changes so far."""
        return int(self._value("SELECT generation FROM meta"))

    def vector_state(self) -> VectorState:
        """The present state of the set of vectors."""
        row = self._sql.execute(
            "SELECT generation, token FROM vector_states ORDER BY generation DESC LIMIT 1"
        ).fetchone()
        return VectorState(*row) if row else EMPTY_STATE

    def went_through(self, state: VectorState) -> bool:
        """Whether the set of vectors was once in this state: ids of then mean the same vectors now."""
        return state == EMPTY_STATE or self._exists(
            "SELECT 1 FROM vector_states WHERE generation = ? AND token = ?", state.generation, state.token
        )

    def people(self) -> list[Person]:
        """Everybody, by name."""
        rows = self._sql.execute(
            "SELECT name, COUNT(*), MIN(added_at), MAX(added_at) FROM people"
            " JOIN templates ON person_id = people.id GROUP BY people.id ORDER BY name"
        )
        return [Person(*row) for row in rows]

    def counts(self) -> tuple[int, int]:
        """Number of people and of templates."""
        people = self._value("SELECT COUNT(*) FROM people")
        return int(people), int(self._value("SELECT COUNT(*) FROM templates"))

    def has_photo(self, photo_sha256: str, person: str | None) -> bool:
        """Whether a template of this photo is stored, of anybody or of one person."""
        return self._exists(
            "SELECT 1 FROM templates JOIN people ON people.id = person_id"
            " WHERE photo_sha256 = ?1 AND (?2 IS NULL OR name = ?2)",
            photo_sha256,
            person,
        )

    def templates(self, person: str) -> tuple[list[Template], FloatArray]:
        """A person's templates, oldest first, and their vectors float32 (n, d)."""
        rows = self._sql.execute(
            "SELECT vector, id, source, box_left, box_top, box_right, box_bottom, quality, photo_sha256,"
            " added_at FROM templates WHERE person_id = ? ORDER BY id",
            (self._person_id(person),),
        ).fetchall()
        templates = [_template(person, *row[1:]) for row in rows]
        return templates, self._as_vectors([row[0] for row in rows], f"templates of {person}")

    def template_people(self) -> tuple[IdArray, IdArray]:
        """Template ids, rising, and the id of each one's person; int64 (n,) both."""
        pairs = self._sql.execute("SELECT id, person_id FROM templates ORDER BY id").fetchall()
        columns = np.array(pairs, np.int64).reshape(-1, 2)
        return columns[:, 0].copy(), columns[:, 1].copy()

    def names(self) -> dict[int, str]:
        """Person id to name."""
        return dict(self._sql.execute("SELECT id, name FROM people"))

    def vectors(self, ids: IdArray) -> Iterator[tuple[IdArray, FloatArray]]:
        """The vectors of templates `ids` (rising), in batches of ids and float32 (n, d)."""
        for start in range(0, len(ids), _READ_ROWS):
            wanted = ids[start : start + _READ_ROWS]
            rows = self._sql.execute(
                "SELECT id, vector FROM templates WHERE id BETWEEN ? AND ? ORDER BY id",
                (int(wanted[0]), int(wanted[-1])),
            ).fetchall()
            found = np.array([row[0] for row in rows], np.int64)
            keep = np.isin(found, wanted)
            yield found[keep], self._as_vectors([row[1] for row in rows], "the gallery")[keep]

    def _as_vectors(self, blobs: list[bytes], what: str) -> FloatArray:
        dimensions = self.encoder.dimensions
        if any(len(blob) != dimensions * _VECTOR_DTYPE.itemsize for blob in blobs):
            raise GalleryError(f"{what}: a stored vector is cut (damaged: restore it)")
        vectors = np.frombuffer(b"".join(blobs), _VECTOR_DTYPE).reshape(-1, dimensions).astype(np.float32)
        require_vectors(vectors, dimensions, f"{what} (damaged: restore it)")
        return vectors

    # Changing

    def add(self, person: str, templates: Sequence[NewTemplate]) -> list[int]:
        """Store templates, making the person if need be; answers the ids of those not stored before."""
        self._sql.execute("INSERT OR IGNORE INTO people (name) VALUES (?)", (person,))
        person_id = self._person_id(person)
        ids = [
            self._insert(person_id, new)
            for new in templates
            if not self._is_stored(person_id, new.embedding, new.photo_sha256)
        ]
        if ids:
            self._note_vectors_changed()
        return ids

    def rename(self, old: str, new: str) -> None:
        """Give a person another name that nobody has. `wipe_deleted` is due afterwards."""
        person_id = self._person_id(old)
        if self._exists("SELECT 1 FROM people WHERE name = ?", new):
            raise GalleryError(
                f"somebody is named {new!r} already: to make one person of both, merge {old!r} into {new!r}"
            )
        self._sql.execute("UPDATE people SET name = ? WHERE id = ?", (new, person_id))
        self._note_wipe_due()

    def merge(self, source: str, into: str) -> int:
        """Hand the templates of one person to another, who may hold some already, and forget the first.

        `wipe_deleted` is due afterwards.

        Returns:
            How many were handed over.
        """
        into_id = self._person_id(into)
        templates, vectors = self.templates(source)
        moved = [
            template.id
            for template, vector in zip(templates, vectors, strict=True)
            if not self._is_stored(into_id, vector, template.photo_sha256)
        ]
        self._sql.executemany(
            "UPDATE templates SET person_id = ? WHERE id = ?",
            [(into_id, template_id) for template_id in moved],
        )
        self._delete_person(source)
        return len(moved)

    def remove(self, person: str) -> int:
        """Delete a person and all templates; answers how many. `wipe_deleted` is due afterwards."""
        return self._delete_person(person)

    def _delete_person(self, name: str) -> int:
        person_id = self._person_id(name)
        removed = self._sql.execute("DELETE FROM templates WHERE person_id = ?", (person_id,)).rowcount
        self._sql.execute("DELETE FROM people WHERE id = ?", (person_id,))
        if removed:
            self._note_vectors_changed()
        self._note_wipe_due()
        return removed

    def _is_stored(self, person_id: int, vector: FloatArray, photo_sha256: str | None) -> bool:
        """The same face of the same photo; where the photo is not known, only the very same vector counts."""
        if photo_sha256 is None:
            return self._exists(
                "SELECT 1 FROM templates WHERE person_id = ? AND photo_sha256 IS NULL AND vector = ?",
                person_id,
                _blob(vector),
            )
        rows = self._sql.execute(
            "SELECT vector FROM templates WHERE person_id = ? AND photo_sha256 = ?", (person_id, photo_sha256)
        ).fetchall()
        stored = self._as_vectors([row[0] for row in rows], "the gallery")
        return bool((np.linalg.norm(stored - vector, axis=1) <= SAME_VECTOR_L2).any())

    def _insert(self, person_id: int, new: NewTemplate) -> int:
        box = (None,) * 4 if new.box_xyxy is None else tuple(float(side) for side in new.box_xyxy)
        quality = None if new.quality is None else float(new.quality)
        added_at = new.added_at or datetime.now(UTC).isoformat(timespec="seconds")
        cursor = self._sql.execute(
            "INSERT INTO templates (person_id, vector, source, box_left, box_top, box_right, box_bottom,"
            " quality, photo_sha256, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                person_id,
                _blob(new.embedding),
                _storable(new.source),
                *box,
                quality,
                new.photo_sha256,
                added_at,
            ),
        )
        return int(cursor.lastrowid or 0)

    def _note_vectors_changed(self) -> None:
        """The same change may note it several times; the generation is raised at its end."""
        token = secrets.token_bytes(16)
        self._sql.execute("INSERT OR IGNORE INTO vector_states SELECT generation + 1, ? FROM meta", (token,))

    def _note_wipe_due(self) -> None:
        self._sql.execute("UPDATE meta SET wipe_due = generation + 1")

    # Small things

    def _person_id(self, name: str) -> int:
        row = self._sql.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise GalleryError(f"nobody is named {name!r}: see `facepipe gallery list`")
        return int(row[0])

    def _exists(self, query: str, *values: object) -> bool:
        return self._sql.execute(query, values).fetchone() is not None

    def _value(self, query: str) -> Any:
        return self._sql.execute(query).fetchone()[0]


def _creating_statements(encoder: EncoderIdentity) -> Iterator[tuple[str, tuple[object, ...]]]:
    yield f"PRAGMA application_id = {APPLICATION_ID}", ()
    yield f"PRAGMA user_version = {SCHEMA_VERSION}", ()
    for statement in _SCHEMA:
        yield statement, ()
    yield (
        "INSERT INTO meta VALUES (1, 0, ?, ?, ?, ?, 0)",
        (encoder.name, encoder.fingerprint, encoder.dimensions, encoder.threshold_l2),
    )


def _template(
    person: str,
    id: int,
    source: str | None,
    left: float | None,
    top: float | None,
    right: float | None,
    bottom: float | None,
    quality: float | None,
    photo_sha256: str | None,
    added_at: str,
) -> Template:
    box = None
    if left is not None and top is not None and right is not None and bottom is not None:
        box = (left, top, right, bottom)
    return Template(id, person, source, box, quality, photo_sha256, added_at)


def _blob(vector: FloatArray) -> bytes:
    return vector.astype(_VECTOR_DTYPE).tobytes()


def _storable(text: str | None) -> str | None:
    """File names may hold bytes that are no text; SQLite takes text only."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
