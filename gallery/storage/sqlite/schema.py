"""The tables of the gallery's SQLite file in each schema version, and the migrations between them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import chain

from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.home import Sql
from facepipe.gallery.storage.raw_rows import NUMBERED_TABLES, RAW_COLUMNS, raw_rows
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SCHEMA_VERSION, row_checksum, state_statement

APPLICATION_ID = 0x46504731
"""In the SQLite header, so that any other program's file is recognised ("FPG1")."""

_V1 = (
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
    # Every state that the vectors went through: that of an index that is merely behind is among them.
    """CREATE TABLE vector_states (
        generation INTEGER PRIMARY KEY,
        token BLOB NOT NULL)""",
)
_V2 = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value, checksum INTEGER)",
    "ALTER TABLE people ADD COLUMN threshold_l2 REAL",
    """CREATE TABLE unknown_faces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        vector BLOB NOT NULL,
        source TEXT,
        box_left REAL, box_top REAL, box_right REAL, box_bottom REAL,
        quality REAL,
        photo_sha256 TEXT,
        added_at TEXT NOT NULL,
        checksum INTEGER,
        crop BLOB)""",
    "CREATE INDEX unknown_faces_by_photo ON unknown_faces (photo_sha256)",
    "ALTER TABLE meta ADD COLUMN checksum INTEGER",
    "ALTER TABLE people ADD COLUMN checksum INTEGER",
    "ALTER TABLE templates ADD COLUMN checksum INTEGER",
    # The last column, so that reading a row without its crop does not read the crop's pages.
    "ALTER TABLE templates ADD COLUMN crop BLOB",
    # So that an index that is behind need not read all templates to find those that were removed.
    "CREATE TABLE removed_templates (generation INTEGER NOT NULL, template_id INTEGER NOT NULL)",
    "CREATE INDEX removed_templates_by_generation ON removed_templates (generation)",
    """CREATE TRIGGER template_is_removed AFTER DELETE ON templates BEGIN
        INSERT INTO removed_templates SELECT generation + 1, OLD.id FROM meta; END""",
    *(
        f"UPDATE {table} SET checksum = row_checksum({CHECKED_COLUMNS[table]})"
        for table in ("meta", "people")
    ),
    f"UPDATE templates SET checksum = row_checksum({CHECKED_COLUMNS['templates']})",
)
_V3 = (
    # A second copy of what a key needs, in a page of its own: without the salt no row can be decrypted.
    """CREATE TABLE key_copy (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        salt BLOB,
        key_check BLOB,
        checksum INTEGER)""",
    # Random, and new with every change: galleries that went apart from one backup are never in one state.
    "ALTER TABLE meta ADD COLUMN state BLOB",
)
_V4 = (
    # So that whoever knows the person of each template need not read all of them after a change.
    "CREATE TABLE moved_templates (generation INTEGER NOT NULL, template_id INTEGER NOT NULL)",
    "CREATE INDEX moved_templates_by_generation ON moved_templates (generation)",
    """CREATE TRIGGER template_is_moved AFTER UPDATE OF person_id ON templates
        WHEN OLD.person_id <> NEW.person_id BEGIN
        INSERT INTO moved_templates SELECT generation + 1, NEW.id FROM meta; END""",
)
_VERSIONS = (_V1, _V2, _V3, _V4)

OLDEST_READABLE_VERSION = 2
"""Of a gallery that may not be written: version 1 has no checksums, and is only read after its migration."""

_EMPTY_KEY_COPY = "CREATE TEMP TABLE key_copy (id, salt, key_check, checksum)"
_STATE_OF_VECTORS = "(SELECT token FROM vector_states ORDER BY generation DESC LIMIT 1) AS state"
_V2_SEEN_AS_NEW = (
    _EMPTY_KEY_COPY,
    f"CREATE TEMP VIEW meta AS SELECT *, {_STATE_OF_VECTORS} FROM main.meta",
)


def creating_statements(encoder: EncoderIdentity) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Statements, with their values, that make an empty gallery for the embeddings of `encoder`."""
    yield f"PRAGMA application_id = {APPLICATION_ID}", ()
    for statement in _V1:
        yield statement, ()
    yield (
        "INSERT INTO meta VALUES (1, 0, ?, ?, ?, ?, 0)",
        (encoder.name, encoder.fingerprint, encoder.dimensions, encoder.threshold_l2),
    )
    for statement in migrating_statements(1):
        yield statement, ()
    yield state_statement()


def copying_statements(sql: Sql) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield statements that make a gallery with all rows of another one, inside a transaction on that."""
    yield f"PRAGMA application_id = {APPLICATION_ID}", ()
    for statement in chain(_V1, migrating_statements(1)):
        yield statement, ()
    for table, columns in RAW_COLUMNS.items():
        marks = ", ".join("?" * len(columns.split(", ")))
        for row in raw_rows(sql, table):
            yield f"INSERT INTO {table} ({columns}) VALUES ({marks})", row
    for table in NUMBERED_TABLES:
        yield "DELETE FROM sqlite_sequence WHERE name = ?", (table,)
        yield "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, sql.last_id(table))


def migrating_statements(version: int) -> Iterator[str]:
    """Statements that bring a gallery of an older schema `version` up to date, within one transaction."""
    for statements in _VERSIONS[version:]:
        yield from statements
    yield f"PRAGMA user_version = {SCHEMA_VERSION}"


def shadowing_statements(version: int) -> tuple[str, ...]:
    """Statements by which a gallery of an older `version` that may not be written is read as if up to date.

    Temporary tables and views go before those of the file; they last until the transaction is rolled back.
    """
    return _V2_SEEN_AS_NEW if version == OLDEST_READABLE_VERSION else ()


def columns_of(version: int) -> dict[str, list[str]]:
    """By table of `CHECKED_COLUMNS`, its columns in a file of that schema version; empty: no such table."""
    with closing(sqlite3.connect(":memory:")) as sql:
        sql.create_function("row_checksum", -1, row_checksum)
        for statement in chain(*_VERSIONS[:version]):
            sql.execute(statement)
        return {
            table: [column for _, column, *_ in sql.execute(f"PRAGMA table_info({table})")]
            for table in CHECKED_COLUMNS
        }
