"""Errors of SQLite and the system, as errors that name the file and the cure."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.gallery.storage.errors import (
    DAMAGED,
    BusyDatabaseError,
    DamagedDatabaseError,
    LostDatabaseError,
)

_ROOM_BYTES = 1 << 16  # SQLite's index of its log has half as many.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IN_USE = "another process has the gallery open: close it first"


@contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """Raise errors of SQLite and the system as one kind of error, which names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _kind_of(error)(f"{file}: {explanation_of(error, file)}") from error
    except UnicodeError as error:  # Of a name in a damaged schema, perhaps in SQLite's own complaint.
        raise DamagedDatabaseError(f"{file}: {DAMAGED}") from error
    except FileNotFoundError as error:
        raise LostDatabaseError(f"{error.filename or file}: not there (is its disk mounted?)") from error
    except OSError as error:
        cause = full_disk(file) if error.errno in _NO_ROOM else error.strerror or error
        raise GalleryError(f"{error.filename or file}: {cause}") from error


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
    ("SQLITE_CANTOPEN", "can't be opened: check the permissions of the file and its folder"),
    ("SQLITE_READONLY", "may not be written: check the permissions of the file and its folder"),
)


def explanation_of(error: sqlite3.Error, file: Path) -> str:
    """Return what is wrong with the file, and the cure, for people."""
    if is_for_want_of_room(error, file):
        return f"{full_disk(file)}; nothing was changed"
    name = sqlite_name_of(error)
    if sqlite_name_of(error).startswith("SQLITE_IOERR_WRITE"):
        return f"can't be written ({error}): {full_disk(file)}; nothing was changed"
    return next((text for prefix, text in _EXPLANATIONS if name.startswith(prefix)), str(error))


def is_for_want_of_room(error: sqlite3.Error, file: Path) -> bool:
    """Return whether SQLite failed because nothing more can be written beside the file.

    SQLite reports a full disk as such only where it writes the file itself.
    """
    name = sqlite_name_of(error)
    if name.startswith("SQLITE_FULL"):
        return True
    return name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and not _has_room(file.parent)


def _has_room(folder: Path) -> bool:
    """Try by writing: what a quota leaves, or a disk keeps for root, can't be measured otherwise."""
    try:
        with tempfile.TemporaryFile(dir=folder) as out:
            out.write(bytes(_ROOM_BYTES))
            out.flush()
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True


def full_disk(file: Path) -> str:
    """That there is no room on the disk of a file, and how much is left."""
    free_bytes = shutil.disk_usage(file.parent).free
    return f"the disk is full, or a quota or limit is reached (free: {free_bytes} bytes): make room first"


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
