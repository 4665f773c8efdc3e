"""The check of a write-ahead log that is found beside a gallery's file, before SQLite opens it.

SQLite replays a log as soon as it reads the file, so the check comes first, while no other process has the
file open.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakKeyDictionary

from facepipe.core.errors import GalleryError
from facepipe.core.files import size_bytes
from facepipe.core.forks import in_forked_processes
from facepipe.gallery.files import make_folder_aside
from facepipe.gallery.storage.errors import BusyDatabaseError, DamagedDatabaseError
from facepipe.gallery.storage.sqlite.errors import IN_USE
from facepipe.gallery.storage.sqlite.log_file import belongs_to, dropped_changes

_SHARED_LOCK_AT, _SHARED_LOCK_BYTES = 0x40000002, 510
"""Where SQLite locks the file of every connection that has a log open."""
_FOREIGN = "this write-ahead log belongs to another state of the gallery than the file beside it"
_PERSONAL = "it is personal data, so delete it when you need it no more"
_LOOKS = 5
_BETWEEN_LOOKS_S = 0.02

logger = logging.getLogger("facepipe")


_LOCK = threading.RLock()
_OPEN_HERE: WeakKeyDictionary[object, os.stat_result] = WeakKeyDictionary()
"""The files that this process has open through SQLite, by the object that opened them.

Closing any other descriptor of such a file would take SQLite's locks away (POSIX).
"""


def _forget_threads_of_parent() -> None:
    global _LOCK
    _LOCK = threading.RLock()


in_forked_processes(_forget_threads_of_parent)


def logs_of(file: Path) -> list[Path]:
    """Return the write-ahead log and its index, whether they are there or not."""
    return [file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")]


def note_open(owner: object, file: Path) -> None:
    """Note that `owner` has the file open through SQLite, until `note_closed` or its end."""
    with _LOCK:
        _OPEN_HERE[owner] = file.stat()


def note_closed(owner: object) -> None:
    """Undo `note_open`."""
    with _LOCK:
        _OPEN_HERE.pop(owner, None)


def is_open_here(file: Path) -> bool:
    """Whether this process has the file open through SQLite, so that it must not open it in another way."""
    found = file.stat()
    return any(os.path.samestat(found, other) for other in list(_OPEN_HERE.values()))


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep all others out of a file.

    Raises:
        BusyDatabaseError: Another process, or another opening of this one, has it open.
        OSError: It may not be written.
    """
    with _LOCK:
        if is_open_here(file):
            raise BusyDatabaseError(f"{file}: {IN_USE}")
        with open(file, "r+b") as descriptor:
            if not _locks(descriptor):
                raise BusyDatabaseError(f"{file}: {IN_USE}")
            yield


def _locks(descriptor: BinaryIO) -> bool:
    if os.name == "nt":
        return True  # Windows renames and replaces no file that somebody has open.
    import fcntl

    try:
        fcntl.lockf(
            descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_LOCK_BYTES, _SHARED_LOCK_AT, os.SEEK_SET
        )
    except OSError:
        return False
    return True


def check_log(owner: object, file: Path, read_only: bool) -> None:
    """Check the log beside a file that `owner` is about to open, and note the file as open.

    A log of another history is put into a private folder beside the gallery's, as is a copy of one whose last
    change is cut short. Where a process has the file open, it has done that before.

    Raises:
        DamagedDatabaseError: Changes stand in the log behind a damaged place.
        GalleryError: The log is of another history and can't be put aside.
    """
    log = logs_of(file)[0]
    with _LOCK:
        if size_bytes(log) and not is_open_here(file):
            if read_only:
                _require_own_log(file, log)
            else:
                _settle(file, log)
        note_open(owner, file)


def _require_own_log(file: Path, log: Path) -> None:
    for _ in range(_LOOKS):  # Others may write meanwhile, or close the file, which removes the log.
        try:
            if belongs_to(file, log):
                return
        except FileNotFoundError:
            return
        time.sleep(_BETWEEN_LOOKS_S)
    raise GalleryError(
        f"{log}: {_FOREIGN} (a restored backup?), so it is not read: move it to another folder"
    )


def _settle(file: Path, log: Path) -> None:
    with suppress(BusyDatabaseError), alone(file):
        if not size_bytes(log):  # The last process that had the file open has closed it meanwhile.
            return
        if not belongs_to(file, log):
            _put_aside(file, log)
            return
        dropped = dropped_changes(file, log)
        if dropped > 1:
            raise DamagedDatabaseError(
                f"{log}: the write-ahead log is damaged, and {dropped} changes stand behind the damage: run "
                "`facepipe gallery repair`, or restore a backup"
            )
        if dropped:
            _keep_copy(file, log)


def _put_aside(file: Path, log: Path) -> None:
    try:
        aside = make_folder_aside(file.parent, "damaged")
        shutil.move(log, aside / log.name)
    except OSError as error:
        raise GalleryError(
            f"{log}: {_FOREIGN} (a restored backup?) and can't be put aside ({error.strerror}): move it to "
            "another folder"
        ) from error
    logs_of(file)[1].unlink(missing_ok=True)
    logger.warning(
        "%s: %s (was the file restored by hand?): the file is used as it is, and the log is kept in %s: %s",
        log,
        _FOREIGN,
        aside,
        _PERSONAL,
    )


def _keep_copy(file: Path, log: Path) -> None:
    kept = "no copy of the log could be kept"
    with suppress(OSError):  # Nothing else is lost where there is no room.
        copy = make_folder_aside(file.parent, "damaged") / log.name
        shutil.copyfile(log, copy)
        kept = f"a copy of the log is {copy}: {_PERSONAL}"
    logger.warning(
        "%s: the last change in this write-ahead log was cut short by a power cut, or is damaged: the "
        "gallery is as it was before that change; %s",
        log,
        kept,
    )
