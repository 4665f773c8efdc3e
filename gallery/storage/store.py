"""The gallery's truth: people and faces in a database."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.impostors import FARTHEST_L2
from facepipe.gallery.index.file import EMPTY_STATE, VectorState
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.models import EncoderIdentity, Finding, NewTemplate, is_threshold
from facepipe.gallery.storage.encoder_rows import EncoderRows
from facepipe.gallery.storage.encryption import codec_of_gallery, new_codec
from facepipe.gallery.storage.errors import DAMAGED, BusyDatabaseError, DamagedDatabaseError
from facepipe.gallery.storage.home import Home
from facepipe.gallery.storage.integrity import RowCheck, database_findings
from facepipe.gallery.storage.key_rows import KeyRows
from facepipe.gallery.storage.people_table import PeopleTable
from facepipe.gallery.storage.rows import Rows
from facepipe.gallery.storage.schema import (
    CHECKED_SINCE_VERSION,
    SCHEMA_VERSION,
    THRESHOLD_SETTING,
    state_statement,
)
from facepipe.gallery.storage.settings import Settings
from facepipe.gallery.storage.template_table import TemplateTable
from facepipe.gallery.storage.unknown_face_table import UnknownFaceTable
from facepipe.gallery.storage.whole_rows import WholeRows

logger = logging.getLogger("facepipe")


class Store:
    """The rows of one gallery.

    What reads is called inside `reading()`, what changes inside `changing()`: methods of the tables, too.

    Args:
        home: The database that they are in; closed with the store, also where opening it fails.
        secret: The key of an encrypted gallery.

    Attributes:
        people: The table of people.
        templates: The table of their faces.
        unknown: The table of faces without a name.
        settings: The table of settings.
        whole: All rows with their ids, for another gallery.
        encoder_rows: What the database says of the encoder.
        opened_state: The state of the vectors when the gallery was opened.
        was_older: It was of an older schema until then.
    """

    def __init__(self, home: Home, secret: bytes | None = None) -> None:
        self._home = home
        self._version = SCHEMA_VERSION
        self._rows = Rows(home.name, home.gallery)
        self._key = KeyRows(self._rows)
        self.people = PeopleTable(self._rows)
        self.templates = TemplateTable(self._rows)
        self.unknown = UnknownFaceTable(self._rows)
        self.settings = Settings(self._rows)
        self.whole = WholeRows(self._rows)
        self.encoder_rows = EncoderRows(self._rows)
        self._known_salts: tuple[Any, Any] = (None, None)
        self._known_vectors = EMPTY_STATE
        self._is_key_given = secret is not None
        self._recorded: list[tuple[str, str]] | None = None
        try:
            self._open(secret)
        except DamagedDatabaseError:
            self._home.discard()
            raise
        except BaseException:
            self.close()
            raise

    @property
    def read_only(self) -> bool:
        """Whether changing raises an error."""
        return self._home.read_only

    def close(self) -> None:
        """Close the database."""
        self._home.close()

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One consistent state for all reads inside."""
        with self._home.reading(self._version) as self._rows.sql:
            self._require_same_gallery()
            yield

    @contextmanager
    def changing(self, wait_s: float | None = None) -> Iterator[None]:
        """One transaction, alone among all processes; if it changed any row, a new generation and state.

        `wait_s` is how long to wait for other writers, as in `Home.writing`.
        """
        before_changing = self._rows.codec, self._known_salts, self._known_vectors
        try:
            with self._home.writing(wait_s) as sql:
                self._rows.sql = sql
                self._require_same_gallery()
                before = sql.total_changes
                state_before = None if self._recorded is None else self.state()
                yield
                if sql.total_changes != before:
                    sql.execute("UPDATE meta SET generation = generation + 1")
                    sql.execute(*state_statement())
                state_after = None if state_before is None else self.state()
        except BaseException:  # What was encrypted, decrypted or added is not.
            self._rows.codec, self._known_salts, self._known_vectors = before_changing
            raise
        if self._recorded is not None and state_before is not None and state_after is not None:
            self._recorded.append((state_before, state_after))

    @contextmanager
    def recorded_changes(self) -> Iterator[list[tuple[str, str]]]:
        """Collect the states before and after each change that is made inside by this store."""
        changes: list[tuple[str, str]] = []
        self._recorded = changes
        try:
            yield changes
        finally:
            self._recorded = None

    def wipe_deleted(self, wait: bool = True) -> None:
        """Leave no byte of forgotten names and vectors in the database's files, where that is due.

        Outside of any transaction. With `wait`, another process that reads is waited for.
        """
        with self.reading():
            due = self._rows.value("SELECT wipe_due FROM meta")
        if due and self._home.wipe_deleted(wait):
            with (  # Where another process writes, the next opening wipes once more.
                suppress(BusyDatabaseError),
                self._home.writing(None if wait else 0) as sql,
            ):
                # Unless more was forgotten meanwhile.
                sql.execute("UPDATE meta SET wipe_due = 0 WHERE wipe_due = ?", (due,))

    def backup(self, file: Path) -> None:
        """Copy the present state to a new SQLite file, while other processes read and write."""
        self._home.backup(file)

    # Opening

    def _open(self, secret: bytes | None) -> None:
        with self._home.reading() as self._rows.sql:
            self._version = self._home.version(self._rows.sql)
        self.was_older = self._version < SCHEMA_VERSION and not self.read_only
        if self._version >= CHECKED_SINCE_VERSION:
            self._unlock(secret)
        if self.was_older:
            self._migrate()
            self._unlock(secret)
        with self.reading():
            self.opened_state = self.vector_state()
            self._warn_of_unusable_thresholds()
        if not self.read_only:
            self.wipe_deleted(wait=False)

    def _migrate(self) -> None:
        """Bring the schema up to date in one transaction, unless another process is first."""
        with self._home.migrating() as sql:
            self._rows.sql = sql
            version = self._home.version(sql)
            self._home.migrate(sql, version)
            if version < SCHEMA_VERSION:
                self._require_same_key()
                self._key.write()
                self._known_salts = self._key.salts()
                sql.execute(*state_statement())
        logger.info("%s: brought from schema %d to %d", self._home.name, self._version, SCHEMA_VERSION)
        self._version = SCHEMA_VERSION

    def _unlock(self, secret: bytes | None) -> None:
        """Read the encoder, and choose the codec by the key."""
        with self._home.reading(self._version) as self._rows.sql:
            self._rows.encoder = self.encoder_rows.read()
            records = self._key.records()
            with self._home.any_text(self._rows.sql):  # One damaged name must not close the gallery to all.
                self._rows.codec = codec_of_gallery(
                    self._home.name, self.encoder.dimensions, records, self._key.samples(), secret
                )
            self._known_salts = self._key.salts()
            is_damaged = self._version == SCHEMA_VERSION and self._key.are_damaged()
        if is_damaged:
            logger.warning(
                "%s: what the gallery keeps of its key is damaged in one of two places: run `facepipe "
                "gallery repair`",
                self._home.gallery,
            )

    def _warn_of_unusable_thresholds(self) -> None:
        """Earlier versions stored thresholds beyond every distance, which would name any face."""
        count = self._rows.value(
            "SELECT COUNT(*) FROM people WHERE threshold_l2 NOT BETWEEN 0 AND ?", FARTHEST_L2
        ) + sum(key == THRESHOLD_SETTING and not is_threshold(value) for key, value, _ in self.settings.all())
        if count:
            logger.warning(
                "%s: stored thresholds outside 0..2 are not used (%d): set others with `facepipe gallery"
                " threshold`, or let `facepipe gallery repair` remove them",
                self._home.gallery,
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
            self.encoder_rows.set_fingerprint(encoder.fingerprint)
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
                f"{self._home.gallery}: a key is given, but the gallery is not encrypted, so nothing is "
                "added: encrypt it (`facepipe gallery encrypt`), or leave the key out"
            )

    def convert(self, secret: bytes | None) -> None:
        """Encrypt everything with a key from `secret`; None: decrypt. `wipe_deleted` is due afterwards."""
        self._key.change(new_codec(secret), self._home)
        self._known_salts = self._key.salts()

    def _require_same_gallery(self) -> None:
        """Check that no process has given the gallery another key or the vectors of another encoder.

        Raises:
            GalleryError: One has.
        """
        self._require_same_key()
        if self._known_vectors == EMPTY_STATE:
            is_same = self.encoder_rows.read().fingerprint == self.encoder.fingerprint
        else:
            is_same = self.went_through(self._known_vectors)
        if not is_same:
            raise GalleryError(
                f"{self._home.gallery}: the gallery was made anew for another encoder, "
                f"{self.encoder_rows.read().name}, while it was open: open it again with this one"
            )

    def _require_same_key(self) -> None:
        if self._key.salts() != self._known_salts:
            raise GalleryError(
                f"{self._home.name}: another process has encrypted or decrypted the gallery: open it again"
            )

    # The whole gallery

    def size_bytes(self) -> int:
        """Return what the database takes of the disk."""
        return self._home.size_bytes()

    def generation(self) -> int:
        """Number of changes so far."""
        return int(self._rows.value("SELECT generation FROM meta"))

    def state(self) -> str:
        """Name of all that the gallery holds: another after every change, in every copy of the gallery."""
        generation, state = self._rows.sql.execute("SELECT generation, state FROM meta").fetchone()
        return f"{generation}-{(state or b'').hex()}"

    def counts(self) -> tuple[int, int, int]:
        """Number of people, of templates and of unknown faces."""
        return self.people.count(), self.templates.count(), self.unknown.count()

    def sizes(self) -> tuple[int, int]:
        """Number of templates and of people."""
        return self.templates.count(), self.people.count()

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the database."""
        yield from self._home.findings(self._rows.sql)
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

    def add_all(self, people: Mapping[str, Iterable[NewTemplate]]) -> list[int]:
        """Store templates of people by name; returns the ids of those not stored before."""
        self.require_no_unused_key()
        ids = self.people.add_all(people)
        return self.templates.add_of_people(
            ((ids[name],), template) for name, templates in people.items() for template in templates
        )

    def add_unknown(self, faces: Iterable[NewTemplate]) -> list[int]:
        """Store faces without a name; returns the ids of those not stored before."""
        self.require_no_unused_key()
        return self.unknown.insert_new(((), face) for face in faces)

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

    def has_faces_of(self, photo_sha256: str) -> bool:
        """Return whether there are faces, named or unknown, of a photo with this content."""
        return any(table.ids_of_photo(photo_sha256) for table in (self.templates, self.unknown))

    def change_photo(self, former_sha256: str, photo_sha256: str) -> int:
        """Give the faces of a photo its new content hash; returns how many there are."""
        tables = self.templates, self.unknown
        return sum(table.change_photo(former_sha256, photo_sha256) for table in tables)

    def forget_people_without_templates(self) -> None:
        """Delete people whose last templates were deleted or given away. `wipe_deleted` is due afterwards."""
        self.people.delete_those_without_templates()
        self._rows.note_wipe_due()

    # What an index follows

    @property
    def notes_moves(self) -> bool:
        """Whether a file notes which templates were given to other people: not one of an older schema."""
        return self._version == SCHEMA_VERSION

    def vector_state(self) -> VectorState:
        """Return the present state of the set of vectors."""
        row = self._rows.sql.execute(
            "SELECT generation, token FROM vector_states ORDER BY generation DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return EMPTY_STATE
        if not (isinstance(row[0], int) and isinstance(row[1], bytes)):
            raise DamagedDatabaseError(f"{self._home.name}: {DAMAGED}")
        self._known_vectors = VectorState(*row)
        return self._known_vectors

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
