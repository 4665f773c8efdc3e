"""Batches whose photos a worker of the server analyzes, because somebody asked it to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from facepipe.batch.engine import Outcome
from facepipe.library.analyzing import LiveAnalysis, PhotoCounts
from facepipe.library.library import Library
from facepipe.server.pages.library_thread import LibraryThread


class JobRuns:
    """The batches that this worker goes on with. Other processes can't work with these meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[Path, _Run] = {}

    def start(self, folder: Path) -> None:
        """Analyze the photos of a batch that wait, unless that is being done.

        Raises:
            JobBusyError: Another process works with it.
            FacepipeError: It can't be opened, or a weight that it was begun with is not here any more.
        """
        with self._lock:
            if not self._is_running(folder):
                self._runs[folder] = _Run(folder)

    def pause(self, folder: Path) -> bool:
        """End that, and write the results of the batch anew; returns whether it was being done here."""
        with self._lock:
            was_running = self._is_running(folder)
            if was_running:
                self._runs.pop(folder).stop()
            return was_running

    def counts(self, folder: Path) -> PhotoCounts | None:
        """Count the photos of a batch; None: this worker doesn't work with it."""
        run = self._runs.get(folder)
        return run.counts if run is not None and run.is_running else None

    def close(self) -> None:
        """End all of it."""
        for folder in list(self._runs):
            self.pause(folder)

    def _is_running(self, folder: Path) -> bool:
        return folder in self._runs and self._runs[folder].is_running


class _Run:
    """A batch that is gone on with; its library is closed when all photos were analyzed."""

    def __init__(self, folder: Path) -> None:
        self._library = LibraryThread(lambda: Library.open(folder))
        try:
            tasks = self._library.call(Library.waiting_photos)
            analyzer = self._library.call(Library.load_analyzer)
            self.counts = self._library.call(Library.photo_counts)
        except BaseException:
            self._library.close()
            raise
        self._analysis = LiveAnalysis(tasks, analyzer, self._save)
        self._closing = threading.Thread(target=self._close_in_the_end, name="job", daemon=True)
        self._analysis.start()
        self._closing.start()

    @property
    def is_running(self) -> bool:
        """Whether the library is open here."""
        return self._closing.is_alive()

    def stop(self) -> None:
        """End as soon as what was found is kept."""
        self._analysis.stop()
        self._closing.join()

    def _save(self, outcomes: Sequence[Outcome]) -> None:
        self._library.call(lambda library: library.save_outcomes(outcomes))
        self.counts = self._library.call(Library.photo_counts)

    def _close_in_the_end(self) -> None:
        self._analysis.wait()
        self._library.close()
