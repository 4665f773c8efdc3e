"""What a machine sees of a file: whether another machine has the same one at the same path."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_END_BYTES = 4096


@dataclass(frozen=True, slots=True)
class FileView:
    """A file as a machine sees it. Two machines with equal views have the same file.

    Attributes:
        size_bytes: Its size.
        mtime_ns: When it was last changed, in nanoseconds since 1970.
        ends_sha256: SHA-256 of its first and its last 4 KiB: a copy with the time of another photo differs
            there, in its metadata and its compressed pixels.
    """

    size_bytes: int
    mtime_ns: int
    ends_sha256: bytes


def view_of(path: Path) -> FileView | None:
    """Return what is seen of a file from here; None: it is no ordinary file, or can't be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could wait for ever
            return None
        with open(path, "rb", buffering=0) as stream:
            ends = stream.read(_END_BYTES)
            stream.seek(max(0, status.st_size - _END_BYTES))
            ends += stream.read(_END_BYTES)
    except OSError:
        return None
    return FileView(status.st_size, status.st_mtime_ns, hashlib.sha256(ends).digest())
