"""The photos that a batch has left: analyzed while the page is open, started and paused on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Self

from litestar import Router, get, post
from msgspec import Meta, Struct

from facepipe.batch.progress_file import RunningBatch
from facepipe.library.analyzing import LiveAnalysis
from facepipe.library.library import Library
from facepipe.server.pages.library_thread import LibraryThread


class AnalysisState(Struct):
    """How far the analysis of the batch's photos is.

    Attributes:
        waiting: Photos that are still to be analyzed.
        done: Photos that were.
        failed: Photos that could not be.
        is_running: They are being analyzed now.
        error: Why that ended before its time; None: it did not.
        is_elsewhere: Another process works with the batch: it can only be watched.
        photos_per_s: At which speed that process analyzes photos; None: it does not.
        left_s: Seconds that it needs at this speed; None: not known.
    """

    waiting: int
    done: int
    failed: int
    is_running: bool
    error: str | None
    is_elsewhere: bool = False
    photos_per_s: float | None = None
    left_s: float | None = None


class AnalysisControl:
    """Starts and pauses the analysis of a library's photos; pauses at the end of `with`.

    Args:
        library_thread: Of the library.
        progress: Tells how far the batch of another process is.
    """

    def __init__(
        self,
        library_thread: LibraryThread,
        progress: Callable[[], RunningBatch | None] = lambda: None,
    ) -> None:
        self._library_thread, self._progress = library_thread, progress
        self._analysis: LiveAnalysis | None = None
        self._lock = asyncio.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._analysis is not None:
            self._analysis.stop()

    async def start(self) -> None:
        """Begin, unless it runs.

        Raises:
            FacepipeError: A weight that the batch was begun with is not here any more.
        """
        async with self._lock:
            if self._analysis is not None and self._analysis.is_running:
                return
            tasks = await self._library_thread.run(Library.waiting_photos)
            analyzer = await self._library_thread.run(Library.load_analyzer)
            save = self._library_thread.call
            self._analysis = LiveAnalysis(
                tasks, analyzer, lambda outcomes: save(lambda library: library.save_outcomes(outcomes))
            )
            self._analysis.start()

    async def pause(self) -> None:
        """End what runs; photos that are under way are analyzed again later."""
        async with self._lock:
            if self._analysis is not None:
                await asyncio.to_thread(self._analysis.stop)

    async def state(self) -> AnalysisState:
        """Return how far it is."""
        if self._library_thread.is_read_only:
            running = await asyncio.to_thread(self._progress)
            if running is not None:
                return _state_elsewhere(running)
        counts = await self._library_thread.run(Library.photo_counts)
        analysis = self._analysis
        is_running = analysis is not None and analysis.is_running
        error = None if analysis is None else analysis.error
        is_elsewhere = self._library_thread.is_read_only
        return AnalysisState(counts.waiting, counts.done, counts.failed, is_running, error, is_elsewhere)

    async def add_folder(self, folder: str) -> int:
        """Take the photos of a folder in addition to those of the batch; answers how many are new.

        Raises:
            UsageError: There is no such folder, or no photo in it.
        """
        async with self._lock:
            if self._analysis is not None:  # its photos are chosen when it begins
                await asyncio.to_thread(self._analysis.stop)
            return await self._library_thread.run(lambda library: library.add_folder(folder))


def _state_elsewhere(running: RunningBatch) -> AnalysisState:
    waiting = running.total - running.done - running.failed
    counts = waiting, running.done, running.failed
    return AnalysisState(*counts, False, None, True, running.photos_per_s, running.left_s)


@get("/analysis")
async def analysis_state(analysis: AnalysisControl) -> AnalysisState:
    """Tell how far it is."""
    return await analysis.state()


@post("/analysis/start", status_code=200)
async def start_analysis(analysis: AnalysisControl) -> AnalysisState:
    """Analyze the photos that wait."""
    await analysis.start()
    return await analysis.state()


@post("/analysis/pause", status_code=200)
async def pause_analysis(analysis: AnalysisControl) -> AnalysisState:
    """Stop for now."""
    await analysis.pause()
    return await analysis.state()


class FolderRequest(Struct):
    """A folder of photos."""

    folder: Annotated[str, Meta(min_length=1, max_length=4096)]


class FolderAdded(Struct):
    """What was found in a folder: how many photos are new."""

    new_photos: int


@post("/analysis/folder", status_code=200)
async def add_folder(analysis: AnalysisControl, data: FolderRequest) -> FolderAdded:
    """Add the photos of a folder to the batch, and analyze them."""
    count = await analysis.add_folder(data.folder)
    await analysis.start()
    return FolderAdded(count)


analysis_router = Router("/", route_handlers=[analysis_state, start_analysis, pause_analysis, add_folder])
