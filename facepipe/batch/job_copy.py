"""Copies of job files that another process works with, to be read.

SQLite's lock lets nobody else read, so that jobs may lie on network drives. The files can be copied
meanwhile: the log holds all pages that are being written into the file, until the log is begun anew, which
its header tells. A copy of the file and then of the log, both made while the header stayed the same, is what
the last transaction left; it is checked as every job is when it is opened. A process that has the job open
itself must not do this: closing the copied file would give its lock away.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from facepipe.batch.damage import JobBusyError
from facepipe.batch.job_file import JOB_FILE
from facepipe.core.files import PRIVATE_FILE_MODE

_LOG_FILE = f"{JOB_FILE}-wal"
_LOG_HEADER_BYTES = 32
_ATTEMPTS, _PAUSE_S = 20, 0.05


def copy_job_file(folder: Path, target: Path) -> None:
    """Copy a job file and its log into an empty, private folder.

    Raises:
        JobBusyError: It is changed too often, or is being made.
        OSError: It can't be read, or the folder not be written.
    """
    for _ in range(_ATTEMPTS):
        before = _log_header(folder)
        for name in (JOB_FILE, _LOG_FILE):
            (target / name).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, target / name)
                (target / name).chmod(PRIVATE_FILE_MODE)
        if before is not None and _log_header(folder) == before and (target / JOB_FILE).exists():
            return
        time.sleep(_PAUSE_S)
    raise JobBusyError(folder / JOB_FILE)


def _log_header(folder: Path) -> bytes | None:
    """None where there is no log: the file may be changed without one."""
    try:
        with (folder / _LOG_FILE).open("rb") as stream:
            return stream.read(_LOG_HEADER_BYTES)
    except FileNotFoundError:
        return None
