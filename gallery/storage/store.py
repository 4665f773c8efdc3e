"""The gallery's truth: people and faces in SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import FacepipeError, GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.impostors import FARTHEST_L2
from facepipe.gallery.index.file import EMPTY_STATE, VectorState
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.models import EncoderIdentity, Finding, NewTemplate
from facepipe.gallery.storage.database import Database, create_database, text_of_any_bytes
from facepipe.gallery.storage.encryption import codec_of_gallery, key_statements, new_codec
from facepipe.gallery.storage.errors import DAMAGED, BusyDatabaseError, DamagedDatabaseError
from facepipe.gallery.storage.integrity import RowCheck, database_findings
from facepipe.gallery.storage.key_rows import KeyRows
from facepipe.gallery.storage.people_table import PeopleTable
from facepipe.gallery.storage.rows import Rows
from facepipe.gallery.storage.schema import (
    APPLICATION_ID,
    CHECKED_COLUMNS,
    OLDEST_READABLE_VERSION,
    SCHEMA_VERSION,
    THRESHOLD_SETTING,
    creating_statements,
    migrating_statements,
    shadowing_statements,
    state_statement,
)
from facepipe.gallery.storage.settings import Settings
from facepipe.gallery.storage.snapshot import Snapshot
from facepipe.gallery.storage.template_table import TemplateTable
from facepipe.gallery.storage.unknown_face_table import UnknownFaceTable

_IS_TOO_OLD = (
    "of schema 1, which is only read after it was brought up to date: open it once where it may be written "
    "(`facepipe gallery list --gallery DIR`)"
)

logger = logging.getLogger("facepipe")


class Store:
    """The rows of one gallery.

    What reads is called inside `reading()`, what changes inside `changing()`: methods of the tables, too.

    Args:
        file: The SQLite file.
        secret: The key of an encrypted gallery.
        scratch: As for `Snapshot`; where it is given, the gallery is read, and its folder left as it is.

    Attributes:
        people: The table of people.
        templates: The table of their faces.
        unknown: The table of faces without a name.
        settings: The table of settings.
        read_only: Changing raises an error.
        opened_state: The state of the vectors when the gallery was opened.
        was_older: It was of an older schema until then.
    """

    def __init__(self, file: Path, secret: bytes | None = None, scratch: Path | None = None) -> None:
        self._file = file
        self._database = Database(file) if scratch is None else Snapshot(file, scratch)
        self._rows = Rows(file)
        self._key = KeyRows(self._rows)
        self.people = PeopleTable(self._rows)
        self.templates = TemplateTable(self._rows)
        self.unknown = UnknownFaceTable(self._rows)
        self.settings = Settings(self._rows)
        self._known_salts: tuple[Any, Any] = (None, None)
        self._is_key_given = secret is not None
        self.read_only = self._database.read_only
        try:
            self._open(secret)
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

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state for all reads inside."""
        with self._database.reading(shadowing_statements(self._version)) as self._rows.sql:
            self._require_same_key()
            yield

    @contextmanager
    def changing(self, wait_s: float | None = None) -> Iterator[None]:
        """One transaction, alone among all processes; if it changed any row, a new generation and state.

        `wait_s` is how long to wait for other writers, as in `Database.writing`.
        """
        before_changing = self._rows.codec, self._known_salts
        try:
            with self._database.writing(wait_s) as sql:
                self._rows.sql = sql
                self._require_same_key()
                before = sql.total_changes
                yield
                if sql.total_changes != before:
                    sql.execute("UPDATE meta SET generation = generation + 1")
                    sql.execute(*state_statement())
        except BaseException:
            self._rows.codec, self._known_salts = before_changing  # What was encrypted or decrypted is not.
            raise

    def wipe_deleted(self, wait: bool = True) -> None:
        """Leave no byte of forgotten names and vectors in the SQLite file and its log, where that is due.

        Outside of any transaction. SQLite's secure_delete alone leaves copies in pages that were split.
        With `wait`, another process that reads is waited for.
        """
        with self.reading():
            due = self._rows.value("SELECT wipe_due FROM meta")
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

    def _open(self, secret: bytes | None) -> None:
        with self._database.reading() as self._rows.sql:
            self._version = self._known_version()
        self.was_older = self._version < SCHEMA_VERSION and not self.read_only
        if self._version >= OLDEST_READABLE_VERSION:
            self._unlock(secret)
        elif not self.was_older:
            raise GalleryError(f"{self._file}: {_IS_TOO_OLD}")
        if self.was_older:
            self._migrate()
            self._unlock(secret)
        with self.reading():
            self.opened_state = self.vector_state()
            self._warn_of_unusable_thresholds()
        if not self.read_only:
            self.wipe_deleted(wait=False)

    def _known_version(self) -> int:
        if self._rows.value("PRAGMA application_id") != APPLICATION_ID:
            raise GalleryError(f"{self._file}: not a facepipe gallery (another program's SQLite file)")
        version = self._rows.value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise GalleryError(
                f"{self._file}: made by a newer facepipe (schema {version}, this one knows {SCHEMA_VERSION}):"
                " upgrade facepipe"
            )
        return int(version)

    def _migrate(self) -> None:
        """Bring the schema up to date in one transaction, unless another process is first."""
        with self._database.writing() as sql:
            self._rows.sql = sql
            version = self._known_version()
            for statement in migrating_statements(version):
                sql.execute(statement)
            if version < SCHEMA_VERSION:
                self._require_same_key()
                self._key.write()
                self._known_salts = self._key.salts()
                sql.execute(*state_statement())
        logger.info("%s: brought from schema %d to %d", self._file, self._version, SCHEMA_VERSION)
        self._version = SCHEMA_VERSION

    def _unlock(self, secret: bytes | None) -> None:
        """Read the encoder, and choose the codec by the key."""
        with self._database.reading(shadowing_statements(self._version)) as self._rows.sql:
            self._rows.encoder = self._read_encoder()
            records = self._key.records()
            with text_of_any_bytes(self._rows.sql):  # One damaged name must not close the gallery to all.
                self._rows.codec = codec_of_gallery(
                    self._file, self.encoder.dimensions, records, self._key.samples(), secret
                )
            self._known_salts = self._key.salts()
            is_damaged = self._version == SCHEMA_VERSION and self._key.are_damaged()
        if is_damaged:
            logger.warning(
                "%s: what the gallery keeps of its key is damaged in one of two places: run `facepipe "
                "gallery repair`",
                self._file.parent,
            )

    def _read_encoder(self) -> EncoderIdentity:
        row = self._rows.sql.execute(
            "SELECT encoder_name, encoder_fingerprint, dimensions, threshold_l2 FROM meta"
        ).fetchone()
        try:
            return EncoderIdentity(*row)
        except (TypeError, FacepipeError) as error:  # TypeError: there is no row, or a value of another kind.
            raise DamagedDatabaseError(f"{self._file}: {DAMAGED}") from error

    def _warn_of_unusable_thresholds(self) -> None:
        """Earlier versions stored thresholds beyond every distance, which would name any face."""
        count = self._rows.value(
            "SELECT (SELECT COUNT(*) FROM people WHERE threshold_l2 NOT BETWEEN 0 AND ?)"
            " + (SELECT COUNT(*) FROM settings WHERE key = ? AND value NOT BETWEEN 0 AND ?)",
            FARTHEST_L2,
            THRESHOLD_SETTING,
            FARTHEST_L2,
        )
        if count:
            logger.warning(
                "%s: stored thresholds outside 0..2 are not used (%d): set others with `facepipe gallery"
                " threshold`, or let `facepipe gallery repair` remove them",
                self._file.parent,
                count,
            )

    # The encoder

    @property
    def encoder(self) -> EncoderIdentity:
        """Whose vectors these are, as written when the gallery was made."""
        return self._rows.encoder

    def bind_to(self, encoder: EncoderIdentity) -> None:
        """Take the fingerprint of an encoder that makes the same vectors, where the earlier one is stored."""
        if self.read_only or self.encoder.fingerprint == encoder.fingerprint:
            return
        with self.changing():
            sql = self._rows.sql
            sql.execute("UPDATE meta SET encoder_fingerprint = ?", (encoder.fingerprint,))
            sql.execute(f"UPDATE meta SET checksum = row_checksum({CHECKED_COLUMNS['meta']})")
        self._rows.encoder = replace(self.encoder, fingerprint=encoder.fingerprint)

    # Encryption

    @property
    def is_encrypted(self) -> bool:
        """Whether names, paths, vectors and pictures stand in the file as ciphertext."""
        return self._rows.is_encrypted

    @property
    def has_unused_key(self) -> bool:
        """Whether a key was given, but the gallery is not encrypted."""
        return self._is_key_given and not self.is_encrypted

    def require_no_unused_key(self) -> None:
        """Refuse to add plain rows where a key is given: with a key, no name should be stored in the clear.

        Raises:
            GalleryError: A key was given, but the gallery is not encrypted.
        """
        if self.has_unused_key:
            raise GalleryError(
                f"{self._file.parent}: a key is given, but the gallery is not encrypted, so nothing is "
                "added: encrypt it (`facepipe gallery encrypt`), or leave the key out"
            )

    def convert(self, secret: bytes | None) -> None:
        """Encrypt everything with a key from `secret`; None: decrypt. `wipe_deleted` is due afterwards."""
        self._key.change(new_codec(secret))
        self._known_salts = self._key.salts()

    def _require_same_key(self) -> None:
        if self._key.salts() != self._known_salts:
            raise GalleryError(
                f"{self._file}: another process has encrypted or decrypted the gallery: open it again"
            )

    # The whole gallery

    def generation(self) -> int:
        """Number of changes so far."""
        return int(self._rows.value("SELECT generation FROM meta"))

    def state(self) -> str:
        """Name of all that the gallery holds: another after every change, in every copy of the gallery."""
        return str(self._rows.value("SELECT generation || '-' || lower(hex(state)) FROM meta"))

    def counts(self) -> tuple[int, int, int]:
        """Number of people, of templates and of unknown faces."""
        return self.people.count(), self.templates.count(), self.unknown.count()

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the database."""
        yield from database_findings(self._rows.sql, RowCheck(self.encoder.dimensions, self._rows.codec))
        if self._version == SCHEMA_VERSION and self._key.are_damaged():
            yield Finding("key", "its salt and check are damaged in one of two places")

    def require_whole(self, table: str) -> None:
        """Check all rows of a table against their checksums.

        Raises:
            GalleryError: One is damaged.
        """
        self._rows.require_whole(table)

    def add(self, person: str, templates: Iterable[NewTemplate]) -> list[int]:
        """Store templates, making the person if need be; returns the ids of those not stored before."""
        self.require_no_unused_key()
        return self.templates.add(self.people.add(person), templates)

    def add_unknown(self, faces: Iterable[NewTemplate]) -> list[int]:
        """Store faces without a name; returns the ids of those not stored before."""
        self.require_no_unused_key()
        return self.unknown.insert_new(faces)

    def delete_person(self, person_id: int) -> int:
        """Delete a person; returns how many templates. `wipe_deleted` is due afterwards."""
        count = self.templates.delete_of_person(person_id)
        self.people.delete(person_id)
        return count

    def delete_photo(self, sources: list[str], photo_sha256: str | None) -> int:
        """Delete all faces of a photo, by its paths or content, and people of whom nothing is left.

        `wipe_deleted` is due afterwards.

        Returns:
            How many templates and unknown faces were deleted.
        """
        count = sum(table.delete_photo(sources, photo_sha256) for table in (self.templates, self.unknown))
        if count:
            self.forget_people_without_templates()
        return count

    def forget_people_without_templates(self) -> None:
        """Delete people whose last templates were deleted or given away. `wipe_deleted` is due afterwards."""
        self.people.delete_those_without_templates()
        self._rows.note_wipe_due()

    # What an index follows

    def vector_state(self) -> VectorState:
        """Return the present state of the set of vectors."""
        row = self._rows.sql.execute(
            "SELECT generation, token FROM vector_states ORDER BY generation DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return EMPTY_STATE
        if not (isinstance(row[0], int) and isinstance(row[1], bytes)):
            raise DamagedDatabaseError(f"{self._file}: {DAMAGED}")
        return VectorState(*row)

    def went_through(self, state: VectorState) -> bool:
        """Return whether the set of vectors was once in this state: ids of then mean the same vectors now."""
        return state == EMPTY_STATE or self._rows.exists(
            "SELECT 1 FROM vector_states WHERE generation = ? AND token = ?", state.generation, state.token
        )

    def vectors_after(self, template_id: int) -> Iterator[tuple[IdArray, FloatArray]]:
        """The vectors of all templates with larger ids, rising, in batches of ids and float32 (n, d)."""
        return self.templates.vectors_after(template_id)

    def count_after(self, template_id: int) -> int:
        """Return how many templates have larger ids."""
        return int(self._rows.value("SELECT COUNT(*) FROM templates WHERE id > ?", template_id))

    def removed_after(self, generation: int) -> IdArray:
        """Return the ids of the templates that later changes than that one removed."""
        rows = self._rows.sql.execute(
            "SELECT template_id FROM removed_templates WHERE generation > ?", (generation,)
        ).fetchall()
        return np.array(rows, np.int64).reshape(-1)
