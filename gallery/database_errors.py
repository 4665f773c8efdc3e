"""What SQLite and the system complain about, as errors that name the file and the cure."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facepipe.errors import GalleryError

DAMAGED = "the gallery is damaged: restore a backup, or run `facepipe gallery repair`"
IN_USE = "another process has the gallery open: close it first"


class DamagedDatabaseError(GalleryError):
    """The file is no SQLite file, or a torn one."""


class BusyDatabaseError(GalleryError):
    """Another process has kept a lock for longer than the caller would wait."""


@contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """What SQLite and the system complain about, as one error that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _kind_of(error)(f"{file}: {explanation_of(error)}") from error
    except UnicodeError as error:  # Of a name in a damaged schema, perhaps in SQLite's own complaint.
        raise DamagedDatabaseError(f"{file}: {DAMAGED}") from error
    except OSError as error:
        raise GalleryError(f"{error.filename or file}: {error.strerror or error}") from error


def _kind_of(error: sqlite3.Error) -> type[GalleryError]:
    kinds = (
        ("SQLITE_CORRUPT", DamagedDatabaseError),
        ("SQLITE_NOTADB", DamagedDatabaseError),
        ("SQLITE_BUSY", BusyDatabaseError),
    )
    return next((kind for prefix, kind in kinds if sqlite_name_of(error).startswith(prefix)), GalleryError)


_EXPLANATIONS = (
    ("SQLITE_NOTADB", "not a facepipe gallery (not an SQLite file)"),
    ("SQLITE_CORRUPT", DAMAGED),
    ("SQLITE_BUSY", "another process has kept the gallery busy: try again"),
    ("SQLITE_FULL", "the disk is full; nothing was changed"),
    ("SQLITE_CANTOPEN", "can't be opened: check the permissions of the file and its folder"),
    ("SQLITE_READONLY", "may not be written: check the permissions of the file and its folder"),
)


def explanation_of(error: sqlite3.Error) -> str:
    """What is wrong, and the cure, for people."""
    name = sqlite_name_of(error)
    return next((text for prefix, text in _EXPLANATIONS if name.startswith(prefix)), str(error))


_SIGNS_OF_DAMAGE = (
    "Could not decode",  # Text that is no Unicode,
    "user-defined function raised exception",  # also where it was to be given to `row_checksum`.
    "no such table",  # The schema's version is checked first, so its name is damaged.
    "no such column",
)


def sqlite_name_of(error: sqlite3.Error) -> str:
    """SQLite's name of the error, such as SQLITE_BUSY; empty: it has none.

    Python's own errors have none, and some that have one are signs of damage all the same.
    """
    if str(error).startswith(_SIGNS_OF_DAMAGE):
        return "SQLITE_CORRUPT"
    return getattr(error, "sqlite_errorname", None) or ""
