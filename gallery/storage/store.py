"""The gallery's truth: people and faces in SQLite.

Reading methods are called inside `Store.reading()`, changing ones inside `Store.changing()`.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from facepipe.core.errors import FacepipeError, GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.impostors import FARTHEST_L2
from facepipe.gallery.index.file import EMPTY_STATE, IdArray, VectorState
from facepipe.gallery.matching import PersonDistance, distances_to_people
from facepipe.gallery.models import (
    Contents,
    EncoderIdentity,
    Finding,
    NewTemplate,
    Person,
    PersonContents,
    Template,
    UnknownFace,
    is_threshold,
    require_vectors,
)
from facepipe.gallery.names import mended_name
from facepipe.gallery.storage.database import Database, create_database, text_of_any_bytes
from facepipe.gallery.storage.encryption import (
    KEY_SETTINGS,
    Codec,
    KeyRecord,
    PlainCodec,
    SealingCodec,
    codec_of_gallery,
    key_records,
    key_statements,
    new_codec,
    setting_statement,
)
from facepipe.gallery.storage.errors import DAMAGED, BusyDatabaseError, DamagedDatabaseError
from facepipe.gallery.storage.integrity import RowCheck, database_findings
from facepipe.gallery.storage.schema import (
    APPLICATION_ID,
    CHECKED_COLUMNS,
    FACE_COLUMNS,
    OLDEST_READABLE_VERSION,
    SCHEMA_VERSION,
    SEALED_COLUMNS,
    THRESHOLD_SETTING,
    creating_statements,
    migrating_statements,
    row_checksum,
    shadowing_statements,
    state_statement,
)
from facepipe.gallery.storage.snapshot import Snapshot

SAME_VECTOR_L2 = 0.02
"""Vectors of one face in one photo are this near each other whatever runtime or batch size made them."""

FaceTable = Literal["templates", "unknown_faces"]

_READ_ROWS = 4096
_KEY_PLACES = 2
_IS_TOO_OLD = (
    "of schema 1, which is only read after it was brought up to date: open it once where it may be written "
    "(`facepipe gallery list --gallery DIR`)"
)
_IDS_AT_ONCE = 999  # SQLite's smallest limit of values in a statement.
_VECTOR_DTYPE = np.dtype("<f4")

logger = logging.getLogger("facepipe")


class Store:
    """The rows of one gallery.

    Args:
        file: The SQLite file.
        secret: The key of an encrypted gallery.
        scratch: As for `Snapshot`; where it is given, the gallery is read, and its folder left as it is.

    Attributes:
        read_only: Changing raises an error.
        encoder: Whose vectors these are, as written when the gallery was made.
        opened_state: The state of the vectors when the gallery was opened.
        was_older: It was of an older schema until then.
    """

    encoder: EncoderIdentity
    _sql: sqlite3.Connection  # Inside a transaction only.

    def __init__(self, file: Path, secret: bytes | None = None, scratch: Path | None = None) -> None:
        self._file = file
        self._database = Database(file) if scratch is None else Snapshot(file, scratch)
        self._version = SCHEMA_VERSION
        self._codec: Codec = PlainCodec()
        self._has_unused_key, self._known_salts = secret is not None, (None, None)
        self.read_only = self._database.read_only
        try:
            with self._database.reading() as self._sql:
                self._version = self._known_version()
            self.was_older = self._version < SCHEMA_VERSION and not self.read_only
            if self._version >= OLDEST_READABLE_VERSION:
                self._unlock(secret)
            elif not self.was_older:
                raise GalleryError(f"{file}: {_IS_TOO_OLD}")
            if self.was_older:
                self._migrate()
                self._unlock(secret)
            with self.reading():
                self.opened_state = self.vector_state()
                self._warn_of_unusable_thresholds()
            if not self.read_only:
                self.wipe_deleted(wait=False)
        except DamagedDatabaseError:
            self._database.discard()
            raise
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(file: Path, encoder: EncoderIdentity, secret: bytes | None = None) -> None:
        """Make an empty gallery for the vectors of `encoder`, unless another process makes one first."""
        create_database(file, chain(creating_statements(encoder), key_statements(new_codec(secret))))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state for all reads inside."""
        with self._database.reading(shadowing_statements(self._version)) as self._sql:
            self._require_same_key()
            yield

    @contextmanager
    def changing(self, wait_s: float | None = None) -> Iterator[None]:
        """One transaction, alone among all processes; if it changed any row, a new generation and state.

        `wait_s` is how long to wait for other writers, as in `Database.writing`.
        """
        before_changing = self._codec, self._known_salts
        try:
            with self._database.writing(wait_s) as self._sql:
                self._require_same_key()
                before = self._sql.total_changes
                yield
                if self._sql.total_changes != before:
                    self._sql.execute("UPDATE meta SET generation = generation + 1")
                    self._sql.execute(*state_statement())
        except BaseException:
            self._codec, self._known_salts = before_changing  # What was encrypted or decrypted is not.
            raise

    def wipe_deleted(self, wait: bool = True) -> None:
        """Leave no byte of forgotten names and vectors in the SQLite file and its log, where that is due.

        Outside of any transaction. SQLite's secure_delete alone leaves copies in pages that were split.
        With `wait`, another process that reads is waited for.
        """
        with self.reading():
            due = self._value("SELECT wipe_due FROM meta")
        if due and self._database.wipe_deleted(wait):
            with (  # Where another process writes, the next opening wipes once more.
                suppress(BusyDatabaseError),
                self._database.writing(None if wait else 0) as sql,
            ):
                # Unless more was forgotten meanwhile.
                sql.execute("UPDATE meta SET wipe_due = 0 WHERE wipe_due = ?", (due,))

    def backup(self, file: Path) -> None:
        """Copy the present state to a new file, while other processes read and write."""
        self._database.backup(file)

    # Opening

    def _known_version(self) -> int:
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise GalleryError(f"{self._file}: not a facepipe gallery (another program's SQLite file)")
        version = self._value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise GalleryError(
                f"{self._file}: made by a newer facepipe (schema {version}, this one knows {SCHEMA_VERSION}):"
                " upgrade facepipe"
            )
        return int(version)

    def _migrate(self) -> None:
        """Bring the schema up to date in one transaction, unless another process is first."""
        with self._database.writing() as self._sql:
            version = self._known_version()
            for statement in migrating_statements(version):
                self._sql.execute(statement)
            if version < SCHEMA_VERSION:
                self._require_same_key()
                self._write_key()
                self._sql.execute(*state_statement())
        logger.info("%s: brought from schema %d to %d", self._file, self._version, SCHEMA_VERSION)
        self._version = SCHEMA_VERSION

    def _read_encoder(self) -> EncoderIdentity:
        row = self._sql.execute(
            "SELECT encoder_name, encoder_fingerprint, dimensions, threshold_l2 FROM meta"
        ).fetchone()
        try:
            return EncoderIdentity(*row)
        except (TypeError, FacepipeError) as error:  # TypeError: there is no row, or a value of another kind.
            raise DamagedDatabaseError(f"{self._file}: {DAMAGED}") from error

    def bind_to(self, encoder: EncoderIdentity) -> None:
        """Take the fingerprint of an encoder that makes the same vectors, where the earlier one is stored."""
        if self.read_only or self.encoder.fingerprint == encoder.fingerprint:
            return
        with self.changing():
            self._sql.execute("UPDATE meta SET encoder_fingerprint = ?", (encoder.fingerprint,))
            self._sql.execute(f"UPDATE meta SET checksum = row_checksum({CHECKED_COLUMNS['meta']})")
        self.encoder = replace(self.encoder, fingerprint=encoder.fingerprint)

    def _warn_of_unusable_thresholds(self) -> None:
        """Earlier versions stored thresholds beyond every distance, which would name any face."""
        count = self._value(
            "SELECT (SELECT COUNT(*) FROM people WHERE threshold_l2 NOT BETWEEN 0 AND ?1)"
            " + (SELECT COUNT(*) FROM settings WHERE key = ?2 AND value NOT BETWEEN 0 AND ?1)",
            FARTHEST_L2,
            THRESHOLD_SETTING,
        )
        if count:
            logger.warning(
                "%s: stored thresholds outside 0..2 are not used (%d): set others with `facepipe gallery"
                " threshold`, or let `facepipe gallery repair` remove them",
                self._file.parent,
                count,
            )

    # Encryption

    @property
    def is_encrypted(self) -> bool:
        """Whether names, paths, vectors and pictures stand in the file as ciphertext."""
        return isinstance(self._codec, SealingCodec)

    @property
    def has_unused_key(self) -> bool:
        """Whether a key was given, but the gallery is not encrypted."""
        return self._has_unused_key and not self.is_encrypted

    def _unlock(self, secret: bytes | None) -> None:
        with self._database.reading(shadowing_statements(self._version)) as self._sql:
            self.encoder = self._read_encoder()
            records = self._key_records()
            with text_of_any_bytes(self._sql):  # One damaged name must not close the gallery to all.
                self._codec = codec_of_gallery(
                    self._file, self.encoder.dimensions, records, self._samples(), secret
                )
            self._known_salts = self._salts()
        if self.is_encrypted and self._version == SCHEMA_VERSION and not _are_whole(records):
            logger.warning(
                "%s: what the gallery keeps of its key is damaged in one of two places: run `facepipe "
                "gallery repair`",
                self._file.parent,
            )

    def _key_records(self) -> list[KeyRecord]:
        copies = self._sql.execute(f"SELECT {CHECKED_COLUMNS['key_copy']}, checksum FROM key_copy")
        return key_records(self._settings(), copies)

    def _samples(self) -> Iterator[tuple[str, Any]]:
        """Some stored values of rows that agree with their checksums, with their columns."""
        for table, columns in SEALED_COLUMNS.items():
            checked = CHECKED_COLUMNS[table].split(", ")
            for *values, checksum in self._sql.execute(
                f"SELECT {', '.join(checked)}, checksum FROM {table} NOT INDEXED"
            ):
                if row_checksum(*values) == checksum:
                    yield from ((column, values[checked.index(column)]) for column in columns)
                    break

    def _write_key(self) -> None:
        for statement, values in key_statements(self._codec):
            self._sql.execute(statement, values)
        self._known_salts = self._salts()

    def _salts(self) -> tuple[Any, Any]:
        """The salts as they are in both places, to notice that another process has changed them."""
        setting, copy = self._sql.execute(
            "SELECT (SELECT value FROM settings WHERE key = ?), (SELECT salt FROM key_copy)", KEY_SETTINGS[:1]
        ).fetchone()
        return setting, copy

    def _require_same_key(self) -> None:
        if self._salts() != self._known_salts:
            raise GalleryError(
                f"{self._file}: another process has encrypted or decrypted the gallery: open it again"
            )

    def convert(self, secret: bytes | None) -> None:
        """Encrypt everything with a key from `secret`; None: decrypt. `wipe_deleted` is due afterwards."""
        old = self._codec
        self._codec = new_codec(secret)
        for table, columns in SEALED_COLUMNS.items():
            self._require_whole(table)
            self._reseal(table, columns, old, self._codec)
        self._write_key()
        self._note_wipe_due()

    def _reseal(self, table: str, columns: tuple[str, ...], old: Codec, new: Codec) -> None:
        assignments = ", ".join(f"{column} = ?" for column in columns)
        for id in self._ids(table):
            row = self._sql.execute(
                f"SELECT {', '.join(columns)} FROM {table} WHERE id = ?", (id,)
            ).fetchone()
            values = [new.seal(c, old.open(c, stored)) for c, stored in zip(columns, row, strict=True)]
            self._sql.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*values, id))
        self._sql.execute(f"UPDATE {table} SET checksum = row_checksum({CHECKED_COLUMNS[table]})")

    # Reading

    def generation(self) -> int:
        """Number of changes so far."""
        return int(self._value("SELECT generation FROM meta"))

    def state(self) -> str:
        """Names all that the gallery holds: another text after every change, in every copy of the gallery."""
        return str(self._value("SELECT generation || '-' || lower(hex(state)) FROM meta"))

    def vector_state(self) -> VectorState:
        """The present state of the set of vectors."""
        row = self._sql.execute(
            "SELECT generation, token FROM vector_states ORDER BY generation DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return EMPTY_STATE
        if not (isinstance(row[0], int) and isinstance(row[1], bytes)):
            raise DamagedDatabaseError(f"{self._file}: {DAMAGED}")
        return VectorState(*row)

    def went_through(self, state: VectorState) -> bool:
        """Whether the set of vectors was once in this state: ids of then mean the same vectors now."""
        return state == EMPTY_STATE or self._exists(
            "SELECT 1 FROM vector_states WHERE generation = ? AND token = ?", state.generation, state.token
        )

    def people(self) -> list[Person]:
        """Everybody, in no order."""
        self._require_whole("people")
        rows = self._sql.execute(
            "SELECT name, COUNT(*), MIN(added_at), MAX(added_at), threshold_l2 FROM people"
            " JOIN templates ON person_id = people.id GROUP BY people.id"
        )
        people = [Person(self._codec.open("name", name), *rest) for name, *rest in rows]
        for person in people:
            _require_text(person.name, person.first_added_at, person.last_added_at)
            _require_numbers(person.threshold_l2)
        return [
            person if is_threshold(person.threshold_l2) else replace(person, threshold_l2=None)
            for person in people
        ]

    def counts(self) -> tuple[int, int, int]:
        """Number of people, of templates and of unknown faces."""
        people, templates, unknown = (
            int(self._value(f"SELECT COUNT(*) FROM {table}"))
            for table in ("people", "templates", "unknown_faces")
        )
        return people, templates, unknown

    def has_photo(self, photo_sha256: str, person: str | None) -> bool:
        """Whether a template of this photo is stored, of anybody or of one person."""
        return self._exists(
            "SELECT 1 FROM templates JOIN people ON people.id = person_id"
            " WHERE photo_sha256 = ?1 AND (?2 IS NULL OR name = ?2)",
            self._codec.seal("photo_sha256", photo_sha256),
            self._codec.seal("name", person),
        )

    def templates(self, person: str) -> tuple[list[Template], FloatArray]:
        """A person's templates, oldest first, and their vectors float32 (n, d)."""
        rows = self._sql.execute(
            f"SELECT vector, id, {FACE_COLUMNS} FROM templates WHERE person_id = ? ORDER BY id",
            (self._person_id(person),),
        ).fetchall()
        templates = [Template(row[1], person, *self._face(row[2:])) for row in rows]
        return templates, self._as_vectors([row[0] for row in rows], f"templates of {person}")

    def unknown_faces(self) -> list[UnknownFace]:
        """All faces remembered without a name, oldest first."""
        rows = self._sql.execute(
            f"SELECT vector, id, {FACE_COLUMNS} FROM unknown_faces ORDER BY id"
        ).fetchall()
        vectors = self._as_vectors([row[0] for row in rows], "unknown faces")
        return [
            UnknownFace(row[1], vector, *self._face(row[2:]))
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def crop(self, table: FaceTable, id: int) -> bytes | None:
        """The encoded picture of a face; None: it was not kept."""
        row = self._sql.execute(f"SELECT crop FROM {table} WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise GalleryError(f"{self._file.parent}: there is no face {id} (any more) among its {table}")
        crop: bytes | None = self._codec.open("crop", row[0])
        return crop

    def has_person(self, name: str) -> bool:
        """Whether somebody has this name."""
        return self._exists("SELECT 1 FROM people WHERE name = ?", self._codec.seal("name", name))

    def people_of(self, template_ids: IdArray) -> IdArray:
        """The person ids of templates, in the same shape; -1 where there is no such template."""
        wanted, places = np.unique(template_ids, return_inverse=True)
        people = dict(self._of_ids("SELECT id, person_id FROM templates WHERE id IN", wanted.tolist()))
        _require_ids(*people.values())
        found = np.array([people.get(id, -1) for id in wanted.tolist()], np.int64)
        return found[places].reshape(template_ids.shape)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """The templates of people: person ids (n,), rising, and template ids (n,)."""
        rows = sorted(self._of_ids("SELECT person_id, id FROM templates WHERE person_id IN", person_ids))
        owners, ids = np.array(rows, np.int64).reshape(-1, 2).T
        return owners, ids

    def names_of(self, person_ids: Iterable[int]) -> dict[int, str]:
        """Person id to name; checked, so that nobody is given a damaged one."""
        person_ids = list(person_ids)
        self._require_whole("people", person_ids)
        rows = self._of_ids("SELECT id, name FROM people WHERE id IN", person_ids)
        return {id: self._codec.open("name", name) for id, name in rows}

    def thresholds_of(self, person_ids: Iterable[int]) -> dict[int, float]:
        """Person id to threshold, of those people who have one of their own that can be used."""
        rows = self._of_ids("SELECT id, threshold_l2 FROM people WHERE id IN", person_ids)
        thresholds = {id: threshold_l2 for id, threshold_l2 in rows if threshold_l2 is not None}
        _require_numbers(*thresholds.values())
        return {id: threshold_l2 for id, threshold_l2 in thresholds.items() if is_threshold(threshold_l2)}

    def threshold(self) -> float | None:
        """The gallery's own threshold; None: it has none that can be used."""
        threshold = None
        for key, value, checksum in self._settings():
            if row_checksum(key, value) != checksum and key not in KEY_SETTINGS:
                raise GalleryError(
                    f"{self._file.parent}: a setting, perhaps the threshold, is damaged: run "
                    "`facepipe gallery repair`"
                )
            if key == THRESHOLD_SETTING:
                threshold = value
        return threshold if is_threshold(threshold) else None

    def vectors_after(self, template_id: int) -> Iterator[tuple[IdArray, FloatArray]]:
        """The vectors of all templates with larger ids, rising, in batches of ids and float32 (n, d)."""
        while True:
            rows = self._sql.execute(
                "SELECT id, vector FROM templates WHERE id > ? ORDER BY id LIMIT ?", (template_id, _READ_ROWS)
            ).fetchall()
            if not rows:
                return
            ids = np.array([row[0] for row in rows], np.int64)
            yield ids, self._as_vectors([row[1] for row in rows], "the gallery")
            template_id = int(ids[-1])

    def count_after(self, template_id: int) -> int:
        """How many templates have larger ids."""
        return int(self._value("SELECT COUNT(*) FROM templates WHERE id > ?", template_id))

    def removed_after(self, generation: int) -> IdArray:
        """The ids of the templates that later changes than that one removed."""
        rows = self._sql.execute(
            "SELECT template_id FROM removed_templates WHERE generation > ?", (generation,)
        ).fetchall()
        return np.array(rows, np.int64).reshape(-1)

    def contents(self) -> Contents:
        """Everything that may be stored elsewhere, without its ids: with names and thresholds as allowed.

        Raises:
            GalleryError: A row is damaged; elsewhere it would get a new checksum, and nobody would know.
        """
        for table in SEALED_COLUMNS:
            self._require_whole(table)
        people: dict[str, PersonContents] = {}
        taken = set(self.names())
        for person in sorted(self.people(), key=lambda person: person.name):
            templates, vectors = self.templates(person.name)
            name = mended_name(person.name, taken)
            taken.add(name)
            people[name] = PersonContents(
                [
                    template.as_new_template(vector, self.crop("templates", template.id))
                    for template, vector in zip(templates, vectors, strict=True)
                ],
                person.threshold_l2,
            )
        unknown = [face.as_new_template(self.crop("unknown_faces", face.id)) for face in self.unknown_faces()]
        return Contents(people, unknown, self.threshold())

    def _as_vectors(self, blobs: list[bytes], what: str) -> FloatArray:
        dimensions = self.encoder.dimensions
        if self.is_encrypted:
            blobs = [self._codec.open("vector", blob) for blob in blobs]
        expected_bytes = dimensions * _VECTOR_DTYPE.itemsize
        if any(not isinstance(blob, bytes) or len(blob) != expected_bytes for blob in blobs):
            raise GalleryError(f"{what}: a stored vector is cut (damaged: run `facepipe gallery repair`)")
        vectors = np.frombuffer(b"".join(blobs), _VECTOR_DTYPE).reshape(-1, dimensions).astype(np.float32)
        require_vectors(vectors, dimensions, f"{what} (damaged: run `facepipe gallery repair`)")
        return vectors

    def _face(self, columns: Sequence[Any]) -> tuple[Any, ...]:
        """`FACE_COLUMNS` as the fields that templates and unknown faces end with."""
        source, left, top, right, bottom, quality, photo_sha256, added_at = columns
        _require_numbers(left, top, right, bottom, quality)
        _require_text(added_at)
        box = None if None in (left, top, right, bottom) else (left, top, right, bottom)
        source = self._codec.open("source", source)
        return source, box, quality, self._codec.open("photo_sha256", photo_sha256), added_at

    def findings(self) -> Iterator[Finding]:
        """What is wrong with the database."""
        yield from database_findings(self._sql, RowCheck(self.encoder.dimensions, self._codec))
        if self.is_encrypted and self._version == SCHEMA_VERSION and not _are_whole(self._key_records()):
            yield Finding("key", "its salt and check are damaged in one of two places")

    # Changing

    def add(self, person: str, templates: Iterable[NewTemplate]) -> list[int]:
        """Store templates, making the person if need be; answers the ids of those not stored before."""
        self.require_no_unused_key()
        name = self._codec.seal("name", person)
        self._sql.execute(
            "INSERT OR IGNORE INTO people (name, checksum) VALUES (?, ?)", (name, row_checksum(name, None))
        )
        person_id = self._person_id(person)
        ids = [
            self._insert("templates", {"person_id": person_id}, new)
            for new in templates
            if not self._holds("templates", {"person_id": person_id}, new.embedding, new.photo_sha256)
        ]
        if ids:
            self._note_vectors_changed()
        return ids

    def add_contents(self, contents: Contents) -> int:
        """Store what is not stored yet, and the thresholds of new people; answers how many templates."""
        is_new = not any(self.counts())
        known = set(self.names())
        count = 0
        for name, person in contents.people.items():
            count += len(self.add(name, person.templates))
            if name not in known and person.threshold_l2 is not None:
                self.set_person_threshold(name, person.threshold_l2)
        self.add_unknown(contents.unknown)
        if is_new and contents.threshold_l2 is not None:
            self.set_threshold(contents.threshold_l2)
        return count

    def rename(self, old: str, new: str) -> None:
        """Give a person another name that nobody has. `wipe_deleted` is due afterwards."""
        self.require_no_unused_key()
        person_id = self._person_id(old)
        name = self._codec.seal("name", new)
        if old != new and self._exists("SELECT 1 FROM people WHERE name = ?", name):
            raise GalleryError(
                f"somebody is named {new!r} already: to make one person of both, merge {old!r} into {new!r}"
            )
        self._update("people", person_id, name=name)
        self._note_wipe_due()

    def set_threshold(self, threshold_l2: float | None) -> None:
        """Give the gallery its own threshold; None: take it away."""
        self._set(THRESHOLD_SETTING, None if threshold_l2 is None else float(threshold_l2))

    def set_person_threshold(self, person: str, threshold_l2: float | None) -> None:
        """Give a person their own threshold; None: take it away."""
        threshold_l2 = None if threshold_l2 is None else float(threshold_l2)
        self._update("people", self._person_id(person), threshold_l2=threshold_l2)

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
            if not self._holds("templates", {"person_id": into_id}, vector, template.photo_sha256)
        ]
        for template_id in moved:
            self._update("templates", template_id, person_id=into_id)
        self._delete_person(source)
        return len(moved)

    def remove(self, person: str, unknown_within_l2: float) -> int:
        """Delete a person, all templates, and the unknown faces as near to one of them or to their mean.

        The person's own threshold goes before `unknown_within_l2`. `wipe_deleted` is due afterwards.

        Returns:
            How many templates were deleted.
        """
        unknown = self.unknown_faces()
        if unknown:
            vectors = self.templates(person)[1]
            person_id = self._person_id(person)
            unknown_within_l2 = self.thresholds_of([person_id]).get(person_id, unknown_within_l2)
            one_person, measure = np.zeros(1, np.int64), PersonDistance.NEAREST_OR_MEAN
            for face in unknown:
                (distance_l2,) = distances_to_people(face.embedding, vectors, one_person, measure)
                if distance_l2 <= unknown_within_l2:
                    self._sql.execute("DELETE FROM unknown_faces WHERE id = ?", (face.id,))
        return self._delete_person(person)

    def remove_photo(self, sources: Sequence[str], photo_sha256: str | None) -> int:
        """Delete all faces of a photo, by its paths or content, and people of whom nothing is left.

        `wipe_deleted` is due afterwards.

        Returns:
            How many templates and unknown faces were deleted.
        """
        where = "source = ?" + " OR source = ?" * (len(sources) - 1) + " OR photo_sha256 = ?"
        values = [self._codec.seal("source", _storable(source)) for source in sources]
        values.append(self._codec.seal("photo_sha256", photo_sha256))
        templates, unknown = (
            self._sql.execute(f"DELETE FROM {table} WHERE {where}", values).rowcount
            for table in ("templates", "unknown_faces")
        )
        self._sql.execute("DELETE FROM people WHERE id NOT IN (SELECT person_id FROM templates)")
        if templates:
            self._note_vectors_changed()
        if templates or unknown:
            self._note_wipe_due()
        return templates + unknown

    def add_unknown(self, faces: Sequence[NewTemplate]) -> list[int]:
        """Store faces without a name; answers the ids of those not stored before."""
        self.require_no_unused_key()
        return [
            self._insert("unknown_faces", {}, new)
            for new in faces
            if not self._holds("unknown_faces", {}, new.embedding, new.photo_sha256)
        ]

    def remove_unknown(self, ids: Sequence[int]) -> None:
        """Delete unknown faces. `wipe_deleted` is due afterwards."""
        for id in dict.fromkeys(ids):
            if not self._sql.execute("DELETE FROM unknown_faces WHERE id = ?", (id,)).rowcount:
                raise GalleryError(
                    f"{self._file.parent}: there is no unknown face {id} (any more); nothing was changed"
                )
        self._note_wipe_due()

    def enroll_unknown(self, ids: Sequence[int], person: str) -> list[int]:
        """Hand unknown faces to a person, making the person if need be; answers their ids as templates."""
        wanted = set(ids)
        templates = [
            face.as_new_template(self.crop("unknown_faces", face.id))
            for face in self.unknown_faces()
            if face.id in wanted
        ]
        self._require_whole("unknown_faces", ids)
        self.remove_unknown(ids)
        return self.add(person, templates)

    def require_no_unused_key(self) -> None:
        """Who gives a key expects that no name is stored in the clear."""
        if self.has_unused_key:
            raise GalleryError(
                f"{self._file.parent}: a key is given, but the gallery is not encrypted, so nothing is "
                "added: encrypt it (`facepipe gallery encrypt`), or leave the key out"
            )

    def _delete_person(self, name: str) -> int:
        person_id = self._person_id(name)
        removed = self._sql.execute("DELETE FROM templates WHERE person_id = ?", (person_id,)).rowcount
        self._sql.execute("DELETE FROM people WHERE id = ?", (person_id,))
        if removed:
            self._note_vectors_changed()
        self._note_wipe_due()
        return removed

    def _holds(
        self, table: FaceTable, owner: dict[str, int], vector: FloatArray, photo_sha256: str | None
    ) -> bool:
        """The same face of the same photo; where the photo is not known, only the very same vector counts."""
        of_owner = "".join(f" AND {column} = ?" for column in owner)
        if photo_sha256 is None:
            return self._exists(
                f"SELECT 1 FROM {table} WHERE photo_sha256 IS NULL AND vector = ?{of_owner}",
                self._codec.seal("vector", _blob(vector)),
                *owner.values(),
            )
        rows = self._sql.execute(
            f"SELECT vector FROM {table} WHERE photo_sha256 = ?{of_owner}",
            (self._codec.seal("photo_sha256", photo_sha256), *owner.values()),
        ).fetchall()
        stored = self._as_vectors([row[0] for row in rows], "the gallery")
        return bool((np.linalg.norm(stored - vector, axis=1) <= SAME_VECTOR_L2).any())

    def _insert(self, table: FaceTable, owner: dict[str, int], new: NewTemplate) -> int:
        # Adding 0.0 makes zero of minus zero, as SQLite does, whose checksum would be another.
        box = (None,) * 4 if new.box_xyxy is None else tuple(float(side) + 0.0 for side in new.box_xyxy)
        values = (
            *owner.values(),
            self._codec.seal("vector", _blob(new.embedding)),
            self._codec.seal("source", _storable(new.source)),
            *box,
            None if new.quality is None else float(new.quality) + 0.0,
            self._codec.seal("photo_sha256", new.photo_sha256),
            new.added_at or datetime.now(UTC).isoformat(timespec="seconds"),
            self._codec.seal("crop", new.crop),
        )
        cursor = self._sql.execute(
            f"INSERT INTO {table} ({CHECKED_COLUMNS[table]}, checksum) VALUES ({'?, ' * len(values)}?)",
            (*values, row_checksum(*values)),
        )
        return int(cursor.lastrowid or 0)

    def _update(self, table: str, id: int, **value_by_column: Any) -> None:
        """Change some columns of a row, and its checksum accordingly: damage must not get a fitting one."""
        self._require_whole(table, [id])
        assignments = ", ".join(f"{column} = ?" for column in value_by_column)
        self._sql.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*value_by_column.values(), id))
        self._sql.execute(
            f"UPDATE {table} SET checksum = row_checksum({CHECKED_COLUMNS[table]}) WHERE id = ?", (id,)
        )

    def _note_vectors_changed(self) -> None:
        """The same change may note it several times; the generation is raised at its end."""
        token = secrets.token_bytes(16)
        self._sql.execute("INSERT OR IGNORE INTO vector_states SELECT generation + 1, ? FROM meta", (token,))

    def _note_wipe_due(self) -> None:
        self._sql.execute("UPDATE meta SET wipe_due = generation + 1")

    # Small things

    def _require_whole(self, table: str, ids: Iterable[int] | None = None) -> None:
        """Check rows, all or those of some ids, against their checksums.

        Raises:
            GalleryError: One is damaged.
        """
        query = f"SELECT id FROM {table} WHERE checksum IS NOT row_checksum({CHECKED_COLUMNS[table]})"
        found = self._sql.execute(query) if ids is None else self._of_ids(f"{query} AND id IN", ids)
        for (id,) in list(found)[:1]:
            raise GalleryError(
                f"{self._file.parent}: {table} {id} is damaged (its checksum is not that of its bytes): run "
                "`facepipe gallery repair`"
            )

    def require_whole_encoder(self) -> None:
        """Check what is stored of the encoder; raises as `_require_whole`."""
        with self.reading():
            self._require_whole("meta")

    def _person_id(self, name: str) -> int:
        sealed = self._codec.seal("name", name)
        row = self._sql.execute("SELECT id FROM people WHERE name = ?", (sealed,)).fetchone()
        if row is None:
            raise GalleryError(f"nobody is named {name!r}: see `facepipe gallery list`")
        return int(row[0])

    def _settings(self) -> list[tuple[Any, Any, Any]]:
        """All rows: key, value and checksum. Not by the key's index, so that damaged keys are seen too."""
        return self._sql.execute(
            f"SELECT {CHECKED_COLUMNS['settings']}, checksum FROM settings NOT INDEXED"
        ).fetchall()

    def _set(self, key: str, value: Any) -> None:
        self._sql.execute("DELETE FROM settings WHERE key = ?", (key,))
        if value is not None:
            self._sql.execute(*setting_statement(key, value))

    def names(self) -> list[str]:
        """The names of all people, in no order."""
        self._require_whole("people")
        return [self._codec.open("name", name) for (name,) in self._sql.execute("SELECT name FROM people")]

    def _of_ids(self, query: str, ids: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """The rows of a query that ends with IN, for any number of ids."""
        every = list(ids)
        for at in range(0, len(every), _IDS_AT_ONCE):
            some = every[at : at + _IDS_AT_ONCE]
            yield from self._sql.execute(f"{query} ({', '.join('?' * len(some))})", some).fetchall()

    def _ids(self, table: str) -> list[int]:
        return [row[0] for row in self._sql.execute(f"SELECT id FROM {table} ORDER BY id")]

    def _exists(self, query: str, *values: object) -> bool:
        return self._sql.execute(query, values).fetchone() is not None

    def _value(self, query: str, *values: object) -> Any:
        return self._sql.execute(query, values).fetchone()[0]


def _are_whole(records: Sequence[KeyRecord]) -> bool:
    return len(records) == _KEY_PLACES and all(record.is_whole for record in records)


def _require_numbers(*values: object) -> None:
    """Check what a flipped bit makes another kind of value; only `verify` looks at all checksums."""
    if not all(value is None or isinstance(value, float) for value in values):
        raise GalleryError("a stored number is damaged: run `facepipe gallery repair`")


def _require_ids(*values: object) -> None:
    if not all(isinstance(value, int) for value in values):
        raise GalleryError("a stored id is damaged: run `facepipe gallery repair`")


def _require_text(*values: object) -> None:
    if not all(isinstance(value, str) for value in values):
        raise GalleryError("a stored text is damaged: run `facepipe gallery repair`")


def _blob(vector: FloatArray) -> bytes:
    return vector.astype(_VECTOR_DTYPE).tobytes()


def _storable(text: str | None) -> str | None:
    """File names may hold bytes that are no text; SQLite takes text only."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
