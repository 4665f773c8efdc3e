"""The gallery's SQLite file: created whole, opened for writing or reading, locked, and wiped clean."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.core.files import (
    atomic_path,
    remove_dead_temporaries,
    size_bytes,
    stat_or_none,
    sync_folder,
)
from facepipe.core.forks import never_free, watch_forks
from facepipe.gallery.models import Finding
from facepipe.gallery.storage.errors import LostDatabaseError, newer_schema
from facepipe.gallery.storage.home import Sql
from facepipe.gallery.storage.raw_rows import HISTORY_SETTING
from facepipe.gallery.storage.schema import SCHEMA_VERSION, row_checksum
from facepipe.gallery.storage.sqlite.connections import (
    BUSY_TIMEOUT_S,
    Connection,
    connect,
    connect_alone,
    connect_read_only,
    prepare,
)
from facepipe.gallery.storage.sqlite.errors import (
    IN_USE,
    errors_of,
    explanation_of,
    full_disk,
    is_for_want_of_room,
    sqlite_name_of,
)
from facepipe.gallery.storage.sqlite.log_check import check_log, logs_of, note_closed, note_open
from facepipe.gallery.storage.sqlite.log_file import stamp_after
from facepipe.gallery.storage.sqlite.schema import (
    APPLICATION_ID,
    OLDEST_READABLE_VERSION,
    migrating_statements,
    shadowing_statements,
)

_ATTEMPT_S = 0.25
"""How long SQLite may wait for readers while it empties the log: it keeps writers out meanwhile."""
_RETRY_S = 0.2
"""Between two attempts, long enough for every waiting writer to get its turn."""
_IS_TOO_OLD = (
    "of schema 1, which is only read after it was brought up to date: open it once where it may be written "
    "(`facepipe gallery list --gallery DIR`)"
)
_IN_USE = "another process is reading or writing"

logger = logging.getLogger("facepipe")


class Database:
    """An SQLite file as the home of a gallery.

    Threads may share its connection, one transaction at a time.

    A forked process connects again: SQLite's locks belong to the process that took them.

    Args:
        file: The SQLite file.
        read_only: Leave it as it is.

    Attributes:
        file: The SQLite file.
        name: The same, as text.
        gallery: The gallery's folder, as text.
        read_only: The file or its folder may not be written, or its disk is full.
    """

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        self.file, self.name, self.gallery = file, str(file), str(file.parent)
        self.read_only = read_only or not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
        self._lock = threading.RLock()
        self._open: Connection | None = None
        self._is_closed = False
        self._is_disk_full = False
        self._found_logs = [log for log in logs_of(file) if log.exists()]
        with errors_of(file):
            if not file.stat().st_size:
                raise GalleryError(f"{file} is empty, so its gallery is lost: restore it or delete the file")
            self._inode = file.stat().st_ino
            check_log(self, file, self.read_only)
            try:
                self._begin()
            except BaseException:
                self.discard()
                raise
        watch_forks(self)

    def _begin(self) -> None:
        """Connect; where SQLite finds no room for what it puts beside the file, to read only."""
        try:
            self._connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError as error:
            if self.read_only or not is_for_want_of_room(error, self.file):
                raise
            self.read_only = self._is_disk_full = True
            self._release()
            logger.warning(
                "%s: %s: the gallery is read, but nothing can be changed", self.file, full_disk(self.file)
            )

    def _refresh(self) -> None:
        """Connect anew at the next use."""
        self._release()

    def _release(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    @property
    def _connection(self) -> Connection:
        """This process's."""
        if self._open is None:
            if self._is_closed:
                raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
            note_open(self, self.file)
            connection = self._connected()
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._open = connection
        return self._open

    def _connected(self) -> Connection:
        if self._is_disk_full:
            return connect_alone(self.file)
        return connect_read_only(self.file) if self.read_only else connect(self.file, "mode=rw")

    def leave_to_parent(self) -> None:
        """Forget the connection without closing it, and what the parent's threads have locked."""
        if self._open is not None:
            never_free(self._open)
        note_closed(self)
        self._open, self._lock = None, threading.RLock()

    def close(self) -> None:
        """Close; the last process to do so folds the write-ahead log into the file."""
        with self._lock, errors_of(self.file):
            self._release()
            self._is_closed = True
            note_closed(self)

    @contextmanager
    def reading(self, version: int = SCHEMA_VERSION) -> Iterator[Connection]:
        """One consistent state, however long it takes and whoever writes meanwhile.

        Inside of another one it is that one. A schema of an older `version` is seen as if it were up to date.
        """
        with self._lock, errors_of(self.file):
            if self._connection.in_transaction:
                yield self._connection
                return
            if self.read_only:  # What SQLite has cached of a file it can't lock may be out of date.
                self._refresh()
            self._connection.execute("BEGIN")
            try:
                self._require_same_file()
                for statement in shadowing_statements(version):
                    self._connection.execute(statement)
                yield self._connection
            finally:
                self._connection.rollback()
                if self._is_disk_full:  # So that others can read.
                    self._release()

    @contextmanager
    def writing(self, wait_s: float | None = None) -> Iterator[Connection]:
        """One transaction: all of it is on disk afterwards, or, where anything fails, none.

        Args:
            wait_s: How long to wait for other writers; None: `BUSY_TIMEOUT_S`.

        Raises:
            BusyDatabaseError: Another process was writing all the time.
        """
        if self._is_disk_full:
            raise GalleryError(f"{self.file.parent}: {full_disk(self.file)}; nothing was changed")
        if self.read_only:
            raise GalleryError(
                f"{self.file.parent}: the gallery is read-only (its file or folder may not be written), "
                "so nothing can be changed: change the permissions, or work on a copy"
            )
        with self._lock, errors_of(self.file):
            if self._connection.in_transaction:
                raise GalleryError(f"{self.file.parent}: nothing can be changed while one state is read")
            with self._waiting(BUSY_TIMEOUT_S if wait_s is None else wait_s):
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._require_same_file()
                before = self._connection.total_changes
                yield self._connection
                if self._connection.total_changes != before:
                    _stamp(self._connection)
                self._connection.commit()
            finally:
                self._connection.rollback()  # Nothing, after a commit.

    def _require_same_file(self) -> None:
        """What is written to a file that was replaced by a repaired or restored one would be lost."""
        if self.file.stat().st_ino != self._inode:
            raise LostDatabaseError(
                f"{self.file}: the file was replaced while it was open: open the gallery again, "
                "or start this command again"
            )

    def version(self, sql: Sql) -> int:
        """Return the version of the schema.

        Raises:
            GalleryError: It is another program's file, of a newer facepipe, or of version 1 and read-only.
        """
        if sql.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise GalleryError(f"{self.file}: not a facepipe gallery (another program's SQLite file)")
        version = int(sql.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise GalleryError(newer_schema(self.name, version))
        if version < OLDEST_READABLE_VERSION and self.read_only:
            raise GalleryError(f"{self.file}: {_IS_TOO_OLD}")
        return version

    def migrating(self) -> AbstractContextManager[Connection]:
        """Begin a transaction as `writing` does."""
        return self.writing()

    def migrate(self, sql: Sql, version: int) -> None:
        """Bring the schema from a version up to date, inside `migrating`."""
        for statement in migrating_statements(version):
            sql.execute(statement)

    def any_text(self, sql: Sql) -> AbstractContextManager[None]:
        """Read text that is no Unicode too, with escapes, inside the block."""
        return text_of_any_bytes(self._connection)

    def rewrite(
        self, sql: Sql, table: str, columns: Sequence[str], batches: Iterable[list[Any]], is_sealed: bool
    ) -> None:
        """Write columns and checksums anew; a column holds text and ciphertext alike."""
        assignments = ", ".join(f"{column} = ?" for column in (*columns, "checksum"))
        for rows in batches:
            sql.executemany(f"UPDATE {table} SET {assignments} WHERE id = ?", rows)

    def findings(self, sql: Sql) -> Iterator[Finding]:
        """Yield what SQLite finds wrong with its pages."""
        for (message,) in sql.execute("PRAGMA integrity_check"):
            if message != "ok":
                yield Finding("database", message)

    def size_bytes(self) -> int:
        """Bytes of the file and its log."""
        return sum(map(size_bytes, self.file.parent.glob(f"{self.file.name}*")))

    def discard(self) -> None:
        """Close a file that turned out to be damaged, and leave nothing beside it that was not there."""
        with self._lock:
            self.close()
            log, shared = logs_of(self.file)
            found = stat_or_none(log)
            if not self._found_logs and found is not None and not found.st_size:
                log.unlink(missing_ok=True)
                shared.unlink(missing_ok=True)

    def backup(self, target: Path) -> None:
        """Copy the present state to a new file, atomically, while other processes read and write."""
        with (
            self.reading() as connection,
            _new_file(target) as temporary,
            closing(connect(temporary, "mode=rw")) as copy,
        ):
            connection.backup(copy)
            _stamp(copy)  # A log of the original does not belong to it.

    @contextmanager
    def _waiting(self, wait_s: float) -> Iterator[None]:
        """Let SQLite wait so long for other processes inside."""
        (before_ms,) = self._connection.execute("PRAGMA busy_timeout").fetchone()
        self._connection.execute(f"PRAGMA busy_timeout = {wait_s * 1000:.0f}")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {before_ms}")

    def wipe_deleted(self, wait: bool) -> bool:
        """Rewrite the file without the remains of deleted rows, and empty the write-ahead log.

        Copies of the file that a killed process left are deleted. Other threads and processes read and
        write between two attempts; while another process reads, the file is not rewritten.

        Args:
            wait: Try again for `BUSY_TIMEOUT_S` where others are in the way; False: try once.

        Returns:
            Whether it was done; if not, why is logged: another process was reading, the disk is full.
        """
        deadline = time.monotonic() + (BUSY_TIMEOUT_S if wait else 0)
        while obstacle := self._wipe_once(_ATTEMPT_S if wait else 0):
            if obstacle != _IN_USE or time.monotonic() > deadline:
                logger.warning(
                    "%s: what was removed is gone from the gallery, but not yet wiped from the file (%s); "
                    "the next opening wipes it",
                    self.file,
                    obstacle,
                )
                return False
            time.sleep(_RETRY_S)
        return True

    def _wipe_once(self, wait_s: float) -> str | None:
        """Wipe once; returns what prevented it, None where it is done."""
        with self._lock, errors_of(self.file):
            remove_dead_temporaries(self.file.parent)
            with self._waiting(wait_s):
                try:
                    if not self._empty_log():  # Else the log would grow by the whole file at every attempt.
                        return _IN_USE
                    _stamp_alone(self._connection)  # A log that began with a rewritten file would bear none.
                    self._connection.execute("VACUUM")
                    return None if self._empty_log() else _IN_USE
                except sqlite3.OperationalError as error:
                    return (
                        _IN_USE
                        if sqlite_name_of(error).startswith("SQLITE_BUSY")
                        else explanation_of(error, self.file)
                    )

    def _empty_log(self) -> bool:
        """Empty the log; returns whether it is: not while another process reads from it."""
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy


def create_database(file: Path, statements: Iterator[tuple[str, tuple[object, ...]]]) -> None:
    """Make `file` by running `statements`, unless another process makes it first; never half a file.

    Raises:
        GalleryError: The folder may not be written, or the disk is full.
    """
    with _new_file(file) as temporary, closing(connect(temporary, "mode=rw")) as connection:
        prepare(connection)
        connection.execute("PRAGMA journal_mode = WAL")  # Remembered by the file.
        connection.execute("BEGIN")
        for statement, values in statements:
            connection.execute(statement, values)
        _stamp(connection)
        connection.commit()


@contextmanager
def open_alone(file: Path) -> Iterator[Connection]:
    """Open a file that may be damaged, with no other process at it, to read what can be read.

    Raises:
        GalleryError: Another process has it open.
    """
    with errors_of(file), closing(connect(file, "mode=rw")) as connection:
        connection.text_factory = _any_text
        connection.execute("PRAGMA busy_timeout = 1000")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA writable_schema = ON")  # SQLite then reads a file that was cut off too.
        try:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError as error:
            if not sqlite_name_of(error).startswith("SQLITE_BUSY"):
                raise
            raise GalleryError(f"{file}: {IN_USE}") from error
        yield connection


def replace_database(alone: sqlite3.Connection, file: Path, new: Path) -> None:
    """Put the file `new` in place of `file`, which `alone` has open, with nothing left of its log."""
    with errors_of(file):
        with suppress(sqlite3.DatabaseError):  # Too damaged: no process can use the log.
            alone.execute("PRAGMA journal_mode = DELETE").fetchone()
        for log in logs_of(file):
            log.unlink(missing_ok=True)
        new.replace(file)
        sync_folder(file.parent)


@contextmanager
def text_of_any_bytes(connection: sqlite3.Connection) -> Iterator[None]:
    """Read text that is no Unicode too, with escapes, instead of failing."""
    before = connection.text_factory
    connection.text_factory = _any_text
    try:
        yield
    finally:
        connection.text_factory = before


def _any_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@contextmanager
def _new_file(file: Path) -> Iterator[Path]:
    """A private temporary file that gets the name `file` when the block ends well and none has it yet."""
    with errors_of(file), suppress(FileExistsError), atomic_path(file, replace=False) as temporary:
        yield temporary


def _stamp(connection: sqlite3.Connection) -> None:
    """Write a new name of the file's state, by which its log differs from those of other files and times."""
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settings'").fetchone():
        return  # Of an older schema.
    found = connection.execute("SELECT value FROM settings WHERE key = ?", (HISTORY_SETTING,)).fetchone()
    value = stamp_after(found[0] if found else None)
    connection.execute(
        "INSERT INTO settings (key, value, checksum) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
        (HISTORY_SETTING, value, row_checksum(HISTORY_SETTING, value)),
    )


def _stamp_alone(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        _stamp(connection)
        connection.commit()
    finally:
        connection.rollback()  # Nothing, after a commit.
