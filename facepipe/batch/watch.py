"""New photos of a folder, handled as they arrive."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from facepipe.batch.run import Batch, BatchProgress
from facepipe.core.errors import MissingExtraError, UsageError
from facepipe.images.finding import find_photos

_POLL_S = 0.2
_MOVES = ("created", "moved", "deleted")
_CHANGES = (*_MOVES, "modified", "closed")


def watch(
    batch: Batch,
    folder: Path,
    *,
    on_results: Callable[[], None],
    stop: Event,
    on_progress: Callable[[BatchProgress], None] | None = None,
    settle_s: float = 1.0,
) -> None:
    """Catch up with a folder, then analyze photos as they come, until `stop` is set.

    A photo is analyzed when nothing has been written to it for `settle_s` seconds; one that was read too
    early has changed since and is analyzed again. Photos that were removed or renamed leave the results.

    Args:
        batch: With its job; see `Batch`.
        folder: What to watch, with its sub-folders.
        on_results: Called after photos were analyzed, or were left out.
        stop: Ends it, also from another thread.
        on_progress: As for `Batch.run`.
        settle_s: Seconds of quiet.

    Raises:
        MissingExtraError: watchdog is not installed.
    """
    arrivals: queue.SimpleQueue[Path] = queue.SimpleQueue()
    observer = _observer(folder, arrivals)
    try:
        batch.find([folder], may_be_empty=True)
        batch.run(on_progress)
        on_results()
        waiting: dict[Path, float] = {}
        while not stop.is_set():
            _note(arrivals, waiting)
            settled = [path for path, changed in waiting.items() if time.monotonic() - changed >= settle_s]
            for path in settled:
                del waiting[path]
            if settled and _follow(batch, settled, on_progress):
                on_results()
    finally:
        observer.stop()
        observer.join()


def _follow(batch: Batch, paths: Sequence[Path], on_progress: Callable[[BatchProgress], None] | None) -> bool:
    """Return whether the results have changed with what is, and what is no longer, under these paths."""
    left_out = 0 if all(map(os.path.lexists, paths)) else batch.leave_out_missing()
    waiting = batch.add(photo for path in paths for photo in _photos_of(path))
    if waiting:
        batch.run(on_progress)
    return waiting + left_out > 0


def _photos_of(path: Path) -> list[Path]:
    """A file itself; the photos of a folder, of which some systems report nothing but the folder's move."""
    if not path.is_dir():
        return [path]
    try:
        return find_photos([path])
    except UsageError:  # none
        return []


def _note(arrivals: queue.SimpleQueue[Path], waiting: dict[Path, float]) -> None:
    """Take what has arrived, and wait a little where nothing has."""
    try:
        while True:
            waiting[arrivals.get(timeout=_POLL_S)] = time.monotonic()
    except queue.Empty:
        return


def _observer(folder: Path, arrivals: queue.SimpleQueue[Path]) -> Any:
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
    except ImportError as error:
        raise MissingExtraError("watching a folder", "watch") from error
    named, real = Path(os.path.abspath(folder)), folder.resolve()

    class Arrivals(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            """Take what was made, written, moved or removed; what was only read is of no interest."""
            if event.event_type not in (_MOVES if event.is_directory else _CHANGES):
                return
            for changed in filter(None, (event.src_path, event.dest_path)):
                path = Path(str(changed))
                if path != real and path.is_relative_to(real) and not _is_hidden(path.relative_to(real)):
                    arrivals.put(named / path.relative_to(real))

    observer = Observer()
    observer.schedule(Arrivals(), str(real), recursive=True)
    observer.start()
    return observer


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
