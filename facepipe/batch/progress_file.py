"""How far the batch is that works with a job: in a file beside the job, for other processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from facepipe.core.files import atomic_write_bytes

_PROGRESS_FILE = ".progress.json"


class RunningBatch(msgspec.Struct, frozen=True):
    """How far a batch is.

    Attributes:
        total: Photos of the command.
        done: Photos analyzed.
        failed: Photos that could not be.
        faces: In the photos that are done.
        known: Faces with a name.
        photos_per_s: Of this run.
        left_s: Seconds to go at this speed; None: not known.
    """

    total: int
    done: int
    failed: int
    faces: int
    known: int
    photos_per_s: float
    left_s: float | None


def write_progress(folder: Path, progress: RunningBatch) -> None:
    """Tell other processes how far a batch is; where that can't be written, they are not told."""
    with suppress(OSError):
        atomic_write_bytes(folder / _PROGRESS_FILE, msgspec.json.encode(progress))


def read_progress(folder: Path) -> RunningBatch | None:
    """Return how far the batch is that works with a job; None: none does, or it has not begun."""
    try:
        return msgspec.json.decode((folder / _PROGRESS_FILE).read_bytes(), type=RunningBatch)
    except (OSError, msgspec.DecodeError):
        return None


def remove_progress(folder: Path) -> None:
    """Tell other processes that no batch is at work."""
    with suppress(OSError):
        (folder / _PROGRESS_FILE).unlink(missing_ok=True)
