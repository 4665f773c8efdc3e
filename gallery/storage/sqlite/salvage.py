"""What can still be read of a damaged database, row by row."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.gallery.storage.salvaged import SalvagedTable
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SCHEMA_VERSION
from facepipe.gallery.storage.sqlite.schema import OLDEST_READABLE_VERSION, columns_of

_PROBED_IDS_MAX = 10_000_000
_DISPENSABLE = ("settings", "key_copy", "unknown_faces")
"""Tables that a gallery can be repaired without."""


def read_tables(file: Path, sql: sqlite3.Connection) -> dict[str, SalvagedTable]:
    """Read what can be read of all tables with checksums, by name.

    Raises:
        GalleryError: Not even their columns can be read.
    """
    return {name: _read_table(sql, name, columns) for name, columns in _columns(file, sql).items()}


def _columns(file: Path, sql: sqlite3.Connection) -> dict[str, list[str]]:
    """By table, its columns: only their number is read from the file, since their names may be damaged."""
    counts = {
        name: len(readable_rows(sql, f"SELECT cid FROM pragma_table_info('{name}')"))
        for name in CHECKED_COLUMNS
    }
    for version in range(OLDEST_READABLE_VERSION, SCHEMA_VERSION + 1):
        known = columns_of(version)
        known.update({name: [] for name in _DISPENSABLE if not counts[name]})
        if counts == {name: len(columns) for name, columns in known.items()}:
            return known
    raise GalleryError(f"{file}: SQLite's own table of contents is damaged, or of schema 1: restore a backup")


def _read_table(sql: sqlite3.Connection, name: str, columns: list[str]) -> SalvagedTable:
    """All rows up to the damage, from the end down to it, and those between that can be read singly."""
    table = SalvagedTable(name, columns, {})
    # By names of our own: Python can't read rows of columns whose names are no text.
    named = f"WITH found (row, {', '.join(columns)}) AS (SELECT rowid, * FROM {name} NOT INDEXED)"
    query = f"{named} SELECT * FROM found"
    found: list[tuple[Any, ...]] = []
    if columns and not _read(sql, f"{query} ORDER BY row", found):
        gap = max((rowid for rowid, *_ in found), default=0) + 1
        _read(sql, f"{query} ORDER BY row DESC", found)
        last = min((rowid for rowid, *_ in found if rowid >= gap), default=last_id(sql, name))
        for rowid in range(gap, min(last + 1, gap + _PROBED_IDS_MAX)):
            _read(sql, f"{query} WHERE row = {rowid}", found)
    table.rows.update((rowid, tuple(values)) for rowid, *values in found)
    return table


def readable_rows(sql: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query up to the first that can't be read."""
    found: list[tuple[Any, ...]] = []
    _read(sql, query, found)
    return found


def _read(sql: sqlite3.Connection, query: str, into: list[tuple[Any, ...]]) -> bool:
    """Append the rows that can be read; returns whether there was no error."""
    try:
        for row in sql.execute(query):
            into.append(row)
    except (sqlite3.DatabaseError, UnicodeError):
        return False
    return True


def last_id(sql: sqlite3.Connection, name: str) -> int:
    """Return the last id that a table gave; 0: it can't be read, or none was."""
    return largest(sql, "seq", f"sqlite_sequence WHERE name = '{name}'")


def largest(sql: sqlite3.Connection, column: str, source: str) -> int:
    """Return the largest whole number in a column; 0: none can be read."""
    found = readable_rows(sql, f"SELECT {column} FROM {source}")
    return max((value for (value,) in found if isinstance(value, int)), default=0)
