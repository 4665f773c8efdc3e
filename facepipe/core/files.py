"""Atomic writing of private files, and removal of the temporary files of killed processes.

Temporary files and folders have hidden names of one form. Whoever makes one holds a file lock (`flock`) on
it, which the system releases however the process ends: one whose lock can be taken has no writer any more.
Windows and some network file systems have no such locks: there, nothing is removed.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

PRIVATE_FILE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700
SHARED_FILE_MODE = 0o666
"""Less what the user's umask forbids: for files that hold nothing personal, such as weights."""

_TEMPORARY = re.compile(r"(\.facepipe-[0-9a-f]{16}\.part(?:\.\w+)?)(-\w+)?")
"""A temporary name, and what SQLite appends to it for its logs."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | getattr(os, "O_BINARY", 0)
_swept: set[str] = set()


# Writing


@contextmanager
def atomic_file(path: Path, mode: int = PRIVATE_FILE_MODE, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block succeeds, and is removed when it fails.

    The bytes go to a hidden temporary file in the same folder, are synced to disk, and then take the
    place of `path`: a reader, or whoever comes after a killed process, sees the old file or the new one.

    Args:
        path: Where to.
        mode: Permissions, less what the umask forbids.
        replace: Whether an existing file may be replaced.

    Raises:
        FileExistsError: `path` exists and may not be replaced.
        OSError: The folder does not exist or can't be written.
    """
    with _becoming(path, "", mode, replace) as (_, stream):
        yield stream


@contextmanager
def atomic_path(
    path: Path, suffix: str = "", mode: int = PRIVATE_FILE_MODE, *, replace: bool = True
) -> Iterator[Path]:
    """Yield the path of a temporary file, as `atomic_file` does, for writers that open files by name.

    Args:
        path: Where to.
        suffix: End of the temporary name, for writers that choose a format by it.
        mode: As in `atomic_file`.
        replace: Likewise.
    """
    with _becoming(path, suffix, mode, replace) as (temporary, _):
        yield temporary


def atomic_write_bytes(path: Path, data: bytes, mode: int = PRIVATE_FILE_MODE) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        OSError: The folder does not exist or can't be written; no temporary file is left behind.
    """
    with atomic_file(path, mode) as stream:
        stream.write(data)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a private folder in `parent` that is removed when the block ends, unless it was renamed.

    Raises:
        OSError: `parent` can't be written.
    """
    sweep_once(parent)
    path, descriptor = _locked_temporary(parent, "", _open_new_folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for the user alone; leave what exists as it is.

    Raises:
        OSError: It can't be made.
    """
    missing = list(takewhile(lambda path: not os.path.isdir(path), (folder, *folder.parents)))
    for path in reversed(missing):
        path.mkdir(PRIVATE_FOLDER_MODE, exist_ok=True)


def copy_rights(source: os.stat_result, stream: BinaryIO) -> None:
    """Give an open file the permissions to read and write of another, and its owner where that is allowed."""
    if sys.platform == "win32":
        return
    with suppress(PermissionError):
        os.fchown(stream.fileno(), source.st_uid, source.st_gid)
    os.fchmod(stream.fileno(), stat.S_IMODE(source.st_mode) & SHARED_FILE_MODE)


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` survive a power cut. Windows can't open folders and needs no sync."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _becoming(path: Path, suffix: str, mode: int, replace: bool) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a locked temporary file, and yield it and its name; it becomes `path` when the block succeeds."""
    sweep_once(path.parent)
    temporary, descriptor = _locked_temporary(path.parent, suffix, lambda new: os.open(new, _NEW_FILE, mode))
    assert descriptor is not None
    stream = os.fdopen(descriptor, "w+b")
    try:
        yield temporary, stream
        stream.flush()
        os.fsync(stream.fileno())
        if os.name == "nt":  # which renames no open file
            stream.close()
        _publish(temporary, path, replace)
    finally:
        try:
            stream.close()
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _publish(temporary: Path, path: Path, replace: bool) -> None:
    """Give a temporary file its name."""
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links, such as exFAT
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.rename(path)


# Temporary files and folders


def remove_dead_temporaries(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` that killed processes left.

    Those of living processes stay, and so do those of other users.
    """
    with suppress(OSError):  # not to be read: nothing of ours is in it
        for name in sorted(os.listdir(folder)):  # logs of SQLite behind their file
            found = _TEMPORARY.fullmatch(name)
            if found is None:
                continue
            if found[2] is None:
                _remove_if_dead(folder / name)
            elif not os.path.lexists(folder / found[1]):
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)


def sweep_once(folder: Path) -> None:
    """Do what `remove_dead_temporaries` does, the first time that this process comes to a folder."""
    key = os.path.abspath(folder)
    if key not in _swept:
        _swept.add(key)
        remove_dead_temporaries(folder)


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):  # removed by another process, or another user's
        descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW | _NO_WAIT)
        try:
            if not _lock(descriptor, wait=False):
                return
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def _locked_temporary(
    folder: Path, suffix: str, open_new: Callable[[Path], int | None]
) -> tuple[Path, int | None]:
    """Return a new temporary file or folder and its locked descriptor."""
    while True:
        path = folder / f".facepipe-{secrets.token_hex(8)}.part{suffix}"
        descriptor = open_new(path)
        if descriptor is None or not _lock(descriptor, wait=True) or os.path.lexists(path):
            return path, descriptor
        os.close(descriptor)  # removed by another process before it was locked


def _open_new_folder(path: Path) -> int | None:
    path.mkdir(PRIVATE_FOLDER_MODE)
    if os.name == "nt":  # which opens no folders
        return None
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # removed by another process: there is nothing to lock
        return _open_new_folder(path)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Return whether this process now holds the lock of an open file, until it is closed."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another, or the file system has no locks
        return False
    return True


# Reading


def stat_or_none(path: Path) -> os.stat_result | None:
    """Return the state of a file that other processes may remove at any time; None: it is not there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def size_bytes(path: Path) -> int:
    """Size of a file that other processes may remove at any time; 0 where it is not there."""
    found = stat_or_none(path)
    return 0 if found is None else found.st_size


def open_regular(path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """Open an ordinary file to read; follows links, and never waits for a pipe or a device.

    Args:
        path: Of the file.
        buffering: As for `open`.

    Raises:
        OSError: It can't be opened, or is no ordinary file.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", os.fspath(path))
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def utf8_name(path: str) -> Iterator[str]:
    """Yield a name for a file or folder that is there, to give to a C library.

    OpenCV takes names as UTF-8, and crashes the process on others. While the block runs, such a file can be
    reached through its descriptor.

    Raises:
        OSError: It can't be opened.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield path
