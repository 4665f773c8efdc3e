"""The tables of the job file, with a checksum in every row, and the way forward from those of before."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from facepipe.batch.face_ids import face_ids_to_text
from facepipe.batch.output_files import names_of_before, names_to_text
from facepipe.batch.rows import faces_of
from facepipe.batch.seal import Seal
from facepipe.core.face_ids import new_face_ids

APPLICATION_ID = 0x46504A31
"""In the SQLite header, so that any other program's file is recognised ("FPJ1")."""
VERSION = 4
"""1: panoramas are analyzed at a larger scale. 2: names of files are relative, and rows have checksums.
3: faces have ids, and what people decided about them is kept. 4: names are written into photos."""
REPORT = "report"
"""Key of settings: how the report was last written."""
SHARD = "shard"
"""Key of settings: which share of all photos those of the command are, as in "1/4"; none: all."""
FOLLOWED = "gallery followed"
"""Key of settings: the state of the gallery whose people and thresholds all names follow."""
CHECKSUMS_SINCE, FACE_IDS_SINCE = 2, 3
WIPE_DUE, PANORAMAS_DUE = "wipe due", "look again at panoramas"
"""Keys of settings: remains of deleted rows may be in the file; panoramas wait to be analyzed anew."""
NOT_OF_ANALYSIS = (REPORT, WIPE_DUE, PANORAMAS_DUE, SHARD, FOLLOWED)
"""Keys of settings that the analysis of a photo does not depend on."""
_TABLES = {
    "settings": "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER)",
    # place: in the order of the last command, NULL: not one of its photos. numbers: float32 (n, 15), box,
    # score and landmarks. vectors: float32 (m, d) of the faces without a reason. enrollable: bool (n,).
    # reasons: why a face was not compared, or null. matches, named_by: the gallery's answers, and which
    # settings and state of it gave them. known: how many faces have a name. told: 1, an earlier command has
    # ended and reported this error. face_ids: of all faces. taken_at: by EXIF, or empty.
    "photos": """CREATE TABLE photos (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, place INTEGER,
    size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'failed')),
    sha256 TEXT, error TEXT, width INTEGER, height INTEGER,
    numbers BLOB, vectors BLOB, enrollable BLOB, reasons TEXT, matches TEXT, named_by TEXT, known INTEGER,
    told INTEGER, face_ids TEXT, taken_at TEXT, checksum INTEGER)""",
    # webp: JPEG files. They were WebP first, and encryption is bound to the column's name.
    "pictures": """CREATE TABLE pictures (
    photo_id INTEGER NOT NULL, face INTEGER NOT NULL, webp BLOB NOT NULL, checksum INTEGER,
    PRIMARY KEY (photo_id, face)) WITHOUT ROWID""",
    # Output files of a photo, and the hash of the result that they show.
    "products": """CREATE TABLE products (
    kind TEXT NOT NULL, photo_id INTEGER NOT NULL, made_of TEXT NOT NULL, files TEXT NOT NULL,
    checksum INTEGER, PRIMARY KEY (kind, photo_id)) WITHOUT ROWID""",
    # One row: a photo is being moved, or was when a process was killed; its old and new path.
    "moves": """CREATE TABLE moves (
    id INTEGER PRIMARY KEY CHECK (id = 1), paths TEXT NOT NULL, checksum INTEGER)""",
    # What people decided about faces, by photo content and box. numbers: as of photos, of one face. vectors:
    # of a face drawn by hand, where it could be encoded.
    "decisions": """CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, face_id TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, numbers BLOB NOT NULL,
    verdict TEXT CHECK (verdict IN ('is', 'not_a_face', 'ignore')), name TEXT, not_names TEXT NOT NULL,
    found_name TEXT, is_drawn INTEGER NOT NULL, vectors BLOB, decided_at TEXT NOT NULL, checksum INTEGER)""",
    # Changes that can be undone: what they changed, before and after. A step that is doing or undoing has
    # still to change the gallery.
    "steps": """CREATE TABLE steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT NOT NULL, changes TEXT NOT NULL, made_at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('doing', 'done', 'undoing', 'undone')), checksum INTEGER)""",
    # How people are shown.
    "people": """CREATE TABLE people (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, is_hidden INTEGER NOT NULL, cover TEXT,
    checksum INTEGER)""",
    # The groups of unknown faces, whose numbers stay.
    "face_groups": """CREATE TABLE face_groups (
    id INTEGER PRIMARY KEY, face_id TEXT NOT NULL UNIQUE, number INTEGER NOT NULL, checksum INTEGER)""",
    # Templates of the gallery that confirmed faces have become.
    "templates": """CREATE TABLE templates (
    id INTEGER PRIMARY KEY, face_id TEXT NOT NULL UNIQUE, template_id INTEGER NOT NULL, checksum INTEGER)""",
    # Photos that names are being written into, or were, before the gallery knows: content before, file after.
    "photo_writes": """CREATE TABLE photo_writes (
    id INTEGER PRIMARY KEY, photo_id INTEGER NOT NULL, sha256_before TEXT NOT NULL, sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, is_written INTEGER NOT NULL,
    checksum INTEGER)""",
    # One row: which gallery named the faces, and how.
    "library": """CREATE TABLE library (
    id INTEGER PRIMARY KEY CHECK (id = 1), gallery BLOB NOT NULL, naming TEXT NOT NULL, checksum INTEGER)""",
    # One row: the job is encrypted. None: it is plain.
    "encryption": "CREATE TABLE encryption (salt BLOB NOT NULL, key_check BLOB NOT NULL, checksum INTEGER)",
}
CHECKED_COLUMNS = {
    "settings": "key, value",
    "photos": "id, path, size_bytes, mtime_ns, state, sha256, error, width, height, numbers, vectors, "
    "enrollable, reasons, matches, named_by, known, told, face_ids, taken_at",
    "pictures": "photo_id, face, webp",
    "products": "kind, photo_id, made_of, files",
    "moves": "id, paths",
    "decisions": "id, face_id, sha256, numbers, verdict, name, not_names, found_name, "
    "is_drawn, vectors, decided_at",
    "steps": "id, label, changes, made_at, state",
    "people": "id, name, is_hidden, cover",
    "face_groups": "id, face_id, number",
    "templates": "id, face_id, template_id",
    "library": "id, gallery, naming",
    "photo_writes": "id, photo_id, sha256_before, sha256, size_bytes, mtime_ns, is_written",
    "encryption": "salt, key_check",
}
"""By table, what its column `checksum` is the checksum of. Places are checked by their index."""
NEW_IN_3 = ("decisions", "steps", "people", "face_groups", "templates", "library")
NEW_IN_4 = ("photo_writes",)
CHECKED_COLUMNS_OF_3 = {table: columns for table, columns in CHECKED_COLUMNS.items() if table not in NEW_IN_4}
"""The same of version 3."""
CHECKED_COLUMNS_OF_2 = {
    table: columns for table, columns in CHECKED_COLUMNS_OF_3.items() if table not in NEW_IN_3
} | {"photos": CHECKED_COLUMNS["photos"].removesuffix(", face_ids, taken_at")}
"""The same of version 2."""
CHECKED_COLUMNS_BEFORE = {2: CHECKED_COLUMNS_OF_2, 3: CHECKED_COLUMNS_OF_3}
"""By version."""
_KEYS = {
    "settings": ("key",),
    "photos": ("id",),
    "pictures": ("photo_id", "face"),
    "products": ("kind", "photo_id"),
    "moves": ("id",),
    **dict.fromkeys((*NEW_IN_3, *NEW_IN_4), ("id",)),
    "encryption": ("rowid",),
}
_INDEX = "CREATE INDEX photos_by_place ON photos (place) WHERE place IS NOT NULL"
_COUNT_KNOWN = """UPDATE photos SET known = (SELECT count(*) FROM json_each(photos.matches)
    WHERE json_each.value ->> '$.name' IS NOT NULL) WHERE matches IS NOT NULL"""


def create_tables(database: sqlite3.Connection) -> None:
    """Make the tables of an empty job."""
    for statement in (*_TABLES.values(), _INDEX):
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def bring_up_to_date(database: sqlite3.Connection, seal: Seal, folder: Path) -> None:
    """Give a job of an earlier version the present tables, in one transaction.

    Args:
        database: In a transaction, with the function `row_checksum`.
        seal: Of the job.
        folder: Of the job.

    Raises:
        ValueError: It holds what no facepipe wrote.
        sqlite3.Error: Likewise.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    columns = {table: _columns(database, table) for table in _TABLES}
    database.execute("DROP INDEX IF EXISTS photos_by_place")
    there = [table for table in _TABLES if columns[table]]
    for table in there:
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    create_tables(database)
    for table in there:
        kept = ", ".join(column for column in _columns(database, table) if column in columns[table])
        database.execute(f"INSERT INTO {table} ({kept}) SELECT {kept} FROM old_{table}")
        database.execute(f"DROP TABLE old_{table}")
    if "known" not in columns["photos"]:
        database.execute(_COUNT_KNOWN)
    if version < CHECKSUMS_SINCE:
        _make_names_relative(database, seal, folder)
    if version < FACE_IDS_SINCE:
        _give_face_ids(database, seal)
    note(database, WIPE_DUE)
    if version < 1:
        note(database, PANORAMAS_DUE)
    for table, checked in CHECKED_COLUMNS.items():
        database.execute(f"UPDATE {table} SET checksum = row_checksum({checked})")


def keep_checksums(database: sqlite3.Connection) -> None:
    """Write the checksum of every row that this connection adds or changes."""
    for table, checked in CHECKED_COLUMNS.items():
        new = ", ".join(f"NEW.{column}" for column in checked.split(", "))
        row = " AND ".join(f"{key} = NEW.{key}" for key in _KEYS[table])
        for when in ("INSERT", f"UPDATE OF {checked}"):
            database.execute(
                f"""CREATE TEMP TRIGGER {table}_{when.split()[0].lower()} AFTER {when} ON main.{table}
                BEGIN UPDATE {table} SET checksum = row_checksum({new}) WHERE {row}; END"""
            )


def schema_of(database: sqlite3.Connection) -> list[tuple[str, str, str, str | None]]:
    """Type, name, table and statement of all that is in a file."""
    return database.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"
    ).fetchall()


@cache
def created_schema() -> list[tuple[str, str, str, str | None]]:
    """Read what is in a job file."""
    with closing(sqlite3.connect(":memory:")) as database:
        create_tables(database)
        return schema_of(database)


def note(database: sqlite3.Connection, key: str) -> None:
    """Remember that something is due."""
    database.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, 'true')", (key,))


def is_noted(database: sqlite3.Connection, key: str) -> bool:
    """Return whether something is due."""
    return database.execute("SELECT 1 FROM settings WHERE key = ?", (key,)).fetchone() is not None


def strike(database: sqlite3.Connection, key: str) -> None:
    """Forget that something was due."""
    database.execute("DELETE FROM settings WHERE key = ?", (key,))


def note_shard(database: sqlite3.Connection, shard: str | None) -> None:
    """Remember which share of all photos those of the command are; None: all."""
    strike(database, SHARD)
    if shard is not None:
        database.execute("INSERT INTO settings (key, value) VALUES (?, ?)", (SHARD, json.dumps(shard)))


def analyse_panoramas_again(database: sqlite3.Connection) -> None:
    """Let photos beyond 2:1 wait in a job of before they were analyzed at a larger scale."""
    if is_noted(database, PANORAMAS_DUE):
        database.execute(
            """UPDATE photos SET state = 'waiting'
            WHERE state = 'done' AND max(width, height) > 2 * min(width, height)"""
        )
        strike(database, PANORAMAS_DUE)


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _give_face_ids(database: sqlite3.Connection, seal: Seal) -> None:
    """Until version 3 faces had no ids."""
    rows = database.execute("SELECT id, sha256, numbers FROM photos WHERE numbers IS NOT NULL").fetchall()
    for id, sha256, numbers in rows:
        if sha256 is not None:
            boxes = faces_of(numbers).boxes_xyxy
            ids = new_face_ids(seal.open("sha256", sha256), boxes)
            row = seal.seal("face_ids", face_ids_to_text(ids)), id
            database.execute("UPDATE photos SET face_ids = ? WHERE id = ?", row)


def _make_names_relative(database: sqlite3.Connection, seal: Seal, folder: Path) -> None:
    """Until version 2 they were whole paths, as --out was spelled."""
    rows = database.execute("SELECT kind, photo_id, files FROM products").fetchall()
    for kind, photo_id, files in rows:
        names = names_of_before(folder, kind, seal.open("files", files))
        key = kind, photo_id
        if names is None:
            database.execute("DELETE FROM products WHERE kind = ? AND photo_id = ?", key)
            continue
        sealed = seal.seal("files", names_to_text(names))
        database.execute("UPDATE products SET files = ? WHERE kind = ? AND photo_id = ?", (sealed, *key))
