"""A gallery's SQLite file read as it is: no byte of it, nor of the files beside it, is changed."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.core.files import size_bytes, stat_or_none, temporary_folder
from facepipe.gallery.storage.sqlite.connections import Connection, connect, connect_to
from facepipe.gallery.storage.sqlite.database import Database
from facepipe.gallery.storage.sqlite.log_check import logs_of

_TRIES = 50
_BETWEEN_TRIES_S = 0.02


class Snapshot(Database):
    """A copy in memory of the present state of a file.

    Args:
        file: The SQLite file.
        scratch: A private folder, where a copy of the file is for a moment, if there is something in its log.
    """

    def __init__(self, file: Path, scratch: Path) -> None:
        self._scratch = scratch
        super().__init__(file, read_only=True)

    def _connected(self) -> Connection:
        return _snapshot(self.file, self._scratch)

    def _refresh(self) -> None:
        """Do nothing: it stays the state it was."""

    def discard(self) -> None:
        """Close; nothing was made beside the file."""
        self.close()


def _snapshot(file: Path, scratch: Path) -> Connection:
    """Copy the present state into memory, without a lock: again where somebody wrote meanwhile."""
    for _ in range(_TRIES):
        before = _extents(file)
        snapshot = connect_to("file::memory:")
        try:
            _copy(file, scratch, snapshot)
        except BaseException:
            snapshot.close()
            raise
        if _extents(file) == before:
            return snapshot
        snapshot.close()
        time.sleep(_BETWEEN_TRIES_S)
    raise GalleryError(f"{file}: another process changes the gallery all the time: try again")


def _extents(file: Path) -> list[tuple[int, int, int]]:
    """Inode, size and time of the file and its log: others whenever one of them was written."""
    stats = map(stat_or_none, (file, logs_of(file)[0]))
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats if stat is not None]


def _copy(file: Path, scratch: Path, target: sqlite3.Connection) -> None:
    """Copy a file and what is in its log. In its own folder SQLite would write into the log, or delete it."""
    log = logs_of(file)[0]
    with closing(connect(file, "mode=ro&immutable=1")) as source:
        if not size_bytes(log):
            source.backup(target)
            return
        pages = source.serialize()
    with temporary_folder(scratch) as folder:
        copy = folder / file.name
        copy.write_bytes(pages)
        logs_of(copy)[0].write_bytes(log.read_bytes())
        with closing(connect(copy, "mode=rw")) as source:
            source.backup(target)
