"""The server's own small SQLite file beside the gallery's: API keys, and subjects without faces."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.core.files import PRIVATE_FILE_MODE, make_private_folder

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


class ServerDatabase:
    """The file, private, and not there before something is stored. Processes may share it.

    Args:
        file: The SQLite file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def exists(self) -> bool:
        """Whether anything was ever stored."""
        return self.file.exists()

    def make(self) -> None:
        """Make the file where there is none."""
        make_private_folder(self.file.parent)
        os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY, PRIVATE_FILE_MODE))
        with self.opened() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """Open the file, which must be there; changes inside `with database:` are one transaction.

        Raises:
            sqlite3.IntegrityError: What is to be stored is there already.
            GalleryError: It can't be read or changed.
        """
        try:
            with closing(sqlite3.connect(self.file, timeout=_WAIT_S)) as database:
                database.execute("PRAGMA secure_delete = ON")
                yield database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise GalleryError(f"{self.file}: can't be read or changed ({error})") from error
