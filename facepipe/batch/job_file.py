"""The job's SQLite file: created, opened by one process at a time, changed in transactions, wiped clean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from facepipe.batch.checks import require_checksums, require_meaning, require_plain_tables, require_whole
from facepipe.batch.damage import DamagedJobError, JobBusyError, ReadOnlyJobError
from facepipe.batch.job_schema import (
    APPLICATION_ID,
    CHECKED_COLUMNS_BEFORE,
    CHECKSUMS_SINCE,
    VERSION,
    WIPE_DUE,
    bring_up_to_date,
    create_tables,
    is_noted,
    keep_checksums,
    note,
    strike,
)
from facepipe.batch.progress_file import remove_progress
from facepipe.batch.seal import SEALED_COLUMNS, Seal, known_seal, new_seal
from facepipe.core.errors import FacepipeError, OutputError, UsageError
from facepipe.core.files import (
    PRIVATE_FILE_MODE,
    make_private_folder,
    remove_dead_temporaries,
    stat_or_none,
)
from facepipe.gallery.storage.encryption import SALT_BYTES, secret_of_environment
from facepipe.gallery.storage.schema import row_checksum

JOB_FILE = "job.sqlite3"
_ID_AT = 68
"""Of the application id in an SQLite header, four bytes."""
_BEFORE_READING = (
    "temp_store = MEMORY",  # first: no paths in the system's temporary folder
    "locking_mode = EXCLUSIVE",
    "trusted_schema = OFF",  # no function is called because a file has asked for it
    "secure_delete = ON",  # no name or embedding is left in free pages
)
_AFTERWARDS = ("journal_mode = WAL", "synchronous = FULL")
"""FULL: what people decided is on disk when they are told so, whatever happens to the power."""
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_OF_THE_MACHINE = ("SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_NOMEM")


class JobFile:
    """An open job file.

    Args:
        folder: Holds the file.
        create: Whether a missing one is made, in a private folder: it holds embeddings of faces.
        secret: The key of an encrypted job; None: that of the environment (`FACEPIPE_GALLERY_KEY`).

    Attributes:
        file: Its path.
        seal: Between values and what stands for them.
        database: The connection; for reading.

    Raises:
        UsageError: There is none, and none is to be made.
        DamagedJobError: It is a job's, but not as it was written.
        JobBusyError: Another process works with it.
        OutputError: It can't be opened, or it is no job's.
        GalleryError: It is encrypted, and the secret is not its key.
    """

    read_only_for: Path | None = None
    """Folder of the job that this is a copy of, to be read; None: it is the job itself."""

    def __init__(self, folder: Path, *, create: bool, secret: bytes | None) -> None:
        self.file = folder / JOB_FILE
        self.seal = Seal(self.file)
        self._folder, self._secret = folder, secret
        if create:
            _make_private(folder, self.file)
        else:
            require_job_file(folder)
        remove_dead_temporaries(folder)
        with self.failures_named():
            self._inode = os.stat(self.file).st_ino
            self.database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self.database.close()
                raise

    def close(self) -> None:
        """Let other processes have it."""
        with self.failures_named():
            self.database.close()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction.

        Raises:
            ReadOnlyJobError: This is a copy.
            OutputError: The file was removed or replaced.
        """
        if self.read_only_for is not None:
            raise ReadOnlyJobError(self.read_only_for)
        self._require_same_file()
        with self.failures_named():
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
                self.database.commit()
            finally:
                self.database.rollback()  # nothing, after a commit

    def _require_same_file(self) -> None:
        """What is written to a file that was removed or replaced would be lost."""
        status = stat_or_none(self.file)
        if status is None or status.st_ino != self._inode:
            what = "not there any more" if status is None else "another file by now"
            raise OutputError(f"{self.file}: {what}; put it back, or end facepipe and start it again")

    @contextmanager
    def failures_named(self) -> Iterator[None]:
        """Turn SQLite's errors into one that names the file."""
        try:
            yield
        except FacepipeError:
            raise
        except sqlite3.Error as error:
            raise self._named(error) from error

    def wipe(self) -> None:
        """Leave no byte of what is no longer in the tables, also where a killed process began this."""
        with self.failures_named():
            self.database.execute("VACUUM")
            strike(self.database, WIPE_DUE)
            self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def encrypt(self) -> None:
        """Encrypt paths, names, embeddings and pictures; no plain byte is left in the file.

        Raises:
            GalleryError: There is no secret.
        """
        seal = new_seal(self.file, self._key())
        with self.changing() as database:
            for table, columns in SEALED_COLUMNS.items():
                _reseal(database, table, columns, seal)
            row = seal.salt_and_check
            database.execute("INSERT INTO encryption (salt, key_check) VALUES (?, ?)", row)
            note(database, WIPE_DUE)
        self.seal = seal
        self.wipe()

    def _key(self) -> bytes | None:
        return self._secret or secret_of_environment()

    def _open(self) -> None:
        for setting in _BEFORE_READING:
            self.database.execute(f"PRAGMA {setting}")
        self.database.create_function("row_checksum", -1, row_checksum, deterministic=True)
        with self.changing() as database:  # takes the lock, which the system lets go however we end
            (application,) = database.execute("PRAGMA application_id").fetchone()
            if not _size_bytes(self.file):
                create_tables(database)
            elif application != APPLICATION_ID:
                raise self._not_a_job()
            self._check(database)
            is_wipe_due = is_noted(database, WIPE_DUE)
        for setting in _AFTERWARDS:
            self.database.execute(f"PRAGMA {setting}")
        keep_checksums(self.database)
        if is_wipe_due:
            self.wipe()
        remove_progress(self._folder)  # of a batch that was killed

    def _check(self, database: sqlite3.Connection) -> None:
        """Require a job as it was written, and bring one of before up to date."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise OutputError(f"{self.file}: made by a newer facepipe; use that one, or choose another --out")
        with self._damage_named():
            if version == VERSION:
                require_whole(database)
                require_checksums(database)
            else:
                require_plain_tables(database, has_checksums=version >= CHECKSUMS_SINCE)
                if version >= CHECKSUMS_SINCE:
                    require_checksums(database, CHECKED_COLUMNS_BEFORE[version])
        self._know_seal(database)
        with self._damage_named():
            if version < VERSION:
                bring_up_to_date(database, self.seal, self._folder)
            require_meaning(database, self.seal)

    def _know_seal(self, database: sqlite3.Connection) -> None:
        """Of a job that is encrypted."""
        if not database.execute("PRAGMA table_info(encryption)").fetchall():
            return  # a job of before there was any
        row = database.execute("SELECT salt, key_check FROM encryption").fetchone()
        if row is not None:
            salt, check = row
            if not (isinstance(salt, bytes) and len(salt) == SALT_BYTES and isinstance(check, bytes)):
                raise DamagedJobError(self.file, "its salt is none")
            self.seal = known_seal(self.file, salt, check, self._key())

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Whatever reading makes of values that no facepipe wrote, as one error."""
        try:
            yield
        except (OutputError, sqlite3.Error):
            raise
        except Exception as error:  # of nearly every class
            raise DamagedJobError(self.file, str(error) or type(error).__name__) from error

    def _named(self, error: sqlite3.Error) -> OutputError:
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith(_BUSY):
            return JobBusyError(self.file)
        may_write = os.access(self.file, os.W_OK) and os.access(self._folder, os.W_OK)
        if name.startswith(_OF_THE_MACHINE) or (name.startswith("SQLITE_READONLY") and not may_write):
            return OutputError(f"{self.file}: can't be used ({error}), or choose another --out")
        return DamagedJobError(self.file, str(error)) if is_job_file(self.file) else self._not_a_job()

    def _not_a_job(self) -> OutputError:
        return OutputError(f"{self.file}: not a job file of facepipe; choose another --out")


def require_job_file(folder: Path) -> None:
    """Check that a folder holds a job, without opening it.

    Raises:
        UsageError: It is not there, or holds none.
    """
    if not _size_bytes(folder / JOB_FILE):
        reason = f"it has no {JOB_FILE}" if folder.is_dir() else "there is no such folder"
        raise UsageError(
            f"{folder}: no batch was run with this folder as --out ({reason}); name that of a "
            "`facepipe batch`"
        )


def remove_job_file(folder: Path) -> None:
    """Remove a job file and its logs."""
    for ending in ("", "-journal", "-wal", "-shm"):
        folder.joinpath(f"{JOB_FILE}{ending}").unlink(missing_ok=True)


def is_job_file(file: Path) -> bool:
    """Return whether the header of a file, which may be damaged elsewhere, is that of a job file."""
    with file.open("rb") as stream:
        return stream.read(_ID_AT + 4)[_ID_AT:] == APPLICATION_ID.to_bytes(4)


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _make_private(folder: Path, file: Path) -> None:
    """Make the folder, and in it the file for the user alone: SQLite's logs get its permissions."""
    try:
        make_private_folder(folder)
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE))
    except OSError as error:
        raise OutputError(f"{folder}: can't make this folder ({error.strerror}); choose another") from error


def _reseal(database: sqlite3.Connection, table: str, columns: tuple[str, ...], seal: Seal) -> None:
    keys = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[5]]
    found = database.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
    where = " AND ".join(f"{key} = ?" for key in keys)
    values = ", ".join(f"{column} = ?" for column in columns)
    for key in found:
        plain = database.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}", key).fetchone()
        sealed = [seal.seal(column, value) for column, value in zip(columns, plain, strict=True)]
        database.execute(f"UPDATE {table} SET {values} WHERE {where}", (*sealed, *key))
