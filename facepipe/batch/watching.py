"""New photos of a folder, handled as they arrive."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from facepipe.batch.run import Batch, Progress
from facepipe.errors import MissingExtraError

_POLL_S = 0.2


def watch(
    batch: Batch,
    folder: Path,
    *,
    on_results: Callable[[], None],
    stop: Event,
    on_progress: Callable[[Progress], None] | None = None,
    settle_s: float = 1.0,
) -> None:
    """Catch up with a folder, then look at photos as they come, until `stop` is set.

    A photo is looked at when nothing has been written to it for `settle_s` seconds; one that was read too
    early has changed since and is looked at again.

    Args:
        batch: With its job; see `Batch`.
        folder: What to watch, with its sub-folders.
        on_results: Called after photos were looked at.
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
            if batch.add(settled):
                batch.run(on_progress)
                on_results()
    finally:
        observer.stop()
        observer.join()


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

    class Arrivals(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            """Files made, written, or moved here; what is read or removed is none of them."""
            if not event.is_directory and event.event_type in ("created", "modified", "moved", "closed"):
                arrivals.put(Path(str(event.dest_path or event.src_path)))

    observer = Observer()
    observer.schedule(Arrivals(), str(folder.resolve()), recursive=True)
    observer.start()
    return observer
