"""What the server stores beside people: API keys, and subjects without faces.

For a gallery in a folder that is a small SQLite file in it, for one in PostgreSQL two tables of its schema:
all servers of a gallery know the same keys.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from facepipe.core.errors import GalleryError
from facepipe.core.files import PRIVATE_FILE_MODE, make_private_folder
from facepipe.gallery.address import GalleryAddress, PostgresAddress
from facepipe.gallery.opening import open_existing
from facepipe.server.settings import SERVER_FILE

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    scope TEXT NOT NULL,
    secret_sha256 BLOB NOT NULL,
    created_at TEXT NOT NULL,
    revoked_at TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS active_names ON keys (name) WHERE revoked_at IS NULL;
CREATE TABLE IF NOT EXISTS empty_subjects (name TEXT PRIMARY KEY);
"""
_WAIT_S = 10.0


class Statements(Protocol):
    """A connection inside a transaction."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run a statement with `?` where a value stands; returns a cursor."""


class ServerDatabase(Protocol):
    """The tables `keys` and `empty_subjects`. Threads and processes may share them.

    Attributes:
        is_remote: They may be on another machine.
    """

    is_remote: bool

    def reading(self) -> AbstractContextManager[Statements | None]:
        """Begin a transaction that reads; None: nothing was ever stored.

        Raises:
            GalleryError: The tables can't be read.
        """

    def writing(self) -> AbstractContextManager[Statements]:
        """Begin the only transaction that writes; what it wrote is durable at the end.

        Raises:
            GalleryError: The tables can't be changed.
        """

    def close(self) -> None:
        """Close connections that were kept."""


class ServerFile:
    """The tables in an SQLite file, private, and not there before something is stored.

    Args:
        file: The SQLite file.
    """

    is_remote = False

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def reading(self) -> Iterator[Statements | None]:
        """As `ServerDatabase.reading`."""
        if not self.file.exists():
            yield None
            return
        with self._opened() as database:
            yield database

    @contextmanager
    def writing(self) -> Iterator[Statements]:
        """As `ServerDatabase.writing`; makes the file where there is none."""
        make_private_folder(self.file.parent)
        os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, PRIVATE_FILE_MODE))
        with self._opened() as database:
            database.executescript(_SCHEMA)
            with database:
                database.execute("BEGIN IMMEDIATE")
                yield database

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=_WAIT_S)) as database:
                database.execute("PRAGMA secure_delete = ON")
                yield database
        except sqlite3.Error as error:
            raise GalleryError(f"{self.file}: can't be read or changed ({error})") from error


class ServerSchema:
    """The tables in the schema of a gallery in PostgreSQL, on a connection of their own.

    Args:
        address: Of the gallery, which is there.

    Raises:
        GalleryError: It is not there, or can't be reached.
    """

    is_remote = True

    def __init__(self, address: PostgresAddress) -> None:
        self._home = open_existing(address)

    def reading(self) -> AbstractContextManager[Statements]:
        """As `ServerDatabase.reading`."""
        return self._home.reading()

    def writing(self) -> AbstractContextManager[Statements]:
        """As `ServerDatabase.writing`."""
        return self._home.writing()

    def close(self) -> None:
        """Close the connection."""
        self._home.close()


def server_database(gallery: GalleryAddress) -> ServerDatabase:
    """Return the server's tables beside a gallery.

    Raises:
        GalleryError: A gallery in PostgreSQL is not there or can't be reached.
    """
    return ServerFile(gallery / SERVER_FILE) if isinstance(gallery, Path) else ServerSchema(gallery)
