"""Connections to the gallery's SQLite file: for writing, without the right to, and without room to."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.core.files import size_bytes
from facepipe.gallery.storage.schema import row_checksum
from facepipe.gallery.storage.sqlite.errors import sqlite_name_of

BUSY_TIMEOUT_S = 30.0
"""How long to wait for other processes; their transactions take milliseconds, index files up to a second."""
_RETRY_S_MAX = 0.02


class Connection(sqlite3.Connection):
    """A connection as `facepipe.gallery.storage.home.Sql` has it."""

    def stream(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a query; SQLite reads its rows one by one."""
        return self.execute(query, values)

    def insert(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> list[int]:
        """Insert rows into a table with ids; returns the new ids."""
        marks = ", ".join("?" * len(columns.split(",")))
        statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
        return [int(self.execute(statement, row).lastrowid or 0) for row in rows]

    def copy(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Store rows with all their values, ids too."""
        marks = ", ".join("?" * len(columns.split(",")))
        self.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

    def last_id(self, table: str) -> int:
        """Return the largest id that was ever given in a table; 0: none."""
        row = self.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return 0 if row is None else int(row[0])

    def raise_last_id(self, table: str, id: int) -> None:
        """Give larger ids only than `id`, and than those of all rows that are there."""
        last = max(id, self.last_id(table))
        self.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))


def connect(file: Path, options: str) -> Connection:
    """Return a connection for several threads in turn, with our function of SQL; nothing is read yet."""
    return connect_to(f"{file.absolute().as_uri()}?{options}")


def connect_to(uri: str) -> Connection:
    """Do what `connect` does, for any address of SQLite's."""
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.create_function("row_checksum", -1, row_checksum, deterministic=True)
    # Or VACUUM, large sorts and large changes would write rows to the system's temporary folder.
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Set what a connection that writes needs."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA synchronous = FULL")


def connect_read_only(file: Path) -> Connection:
    """Read what may not be written: with locks where possible, else as a file that no process changes."""
    connection = connect(file, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        if not sqlite_name_of(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
            raise
    return _connect_unchanging(file)


def connect_alone(file: Path) -> Connection:
    """Read, log and all, where there is no room for the log's index.

    Until it is closed, nobody else can read.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        connection = connect(file, "mode=rw")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # The index is in memory then.
        connection.execute("PRAGMA busy_timeout = 0")  # Two that waited would wait for each other.
        try:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            name = sqlite_name_of(error)
            if name.startswith("SQLITE_CANTOPEN"):  # Not even an empty log can be made.
                return _connect_unchanging(file)
            if not name.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, _RETRY_S_MAX))


def _connect_unchanging(file: Path) -> Connection:
    """Read a file that no process changes. SQLite then ignores its log, so there must be none."""
    log = file.with_name(f"{file.name}-wal")
    if size_bytes(log):
        raise GalleryError(
            f"{file}: the last changes are still in {log.name} and can't be read without write access: "
            "open the gallery once where it may be written"
        )
    return connect(file, "mode=ro&immutable=1")
