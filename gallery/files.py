"""Files that appear whole or not at all, and are private from their first byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from facepipe.files import sync_folder

PRIVATE_FILE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700


@contextmanager
def replaced(file: Path, temporary: Path) -> Iterator[BinaryIO]:
    """Write `temporary`, sync it, and rename it over `file`; both in one folder. Deleted where that fails.

    Unlike `facepipe.files.atomic_file`, it is closed to other users and has a name that the caller knows:
    what a killed process leaves of a gallery's vectors must be found again to be erased.
    """
    try:
        with open(temporary, "wb", opener=_private_opener) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE_FILE_MODE)
