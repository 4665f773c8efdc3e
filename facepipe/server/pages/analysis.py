"""The photos that a batch has left: analyzed while the page is open, started and paused on it."""

from __future__ import annotations

import asyncio
from typing import Self

from litestar import Router, get, post
from msgspec import Struct

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
    """

    waiting: int
    done: int
    failed: int
    is_running: bool
    error: str | None


class AnalysisControl:
    """Starts and pauses the analysis of a library's photos; pauses at the end of `with`.

    Args:
        library_thread: Of the library.
    """

    def __init__(self, library_thread: LibraryThread) -> None:
        self._library_thread = library_thread
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
        counts = await self._library_thread.run(Library.photo_counts)
        analysis = self._analysis
        is_running = analysis is not None and analysis.is_running
        error = None if analysis is None else analysis.error
        return AnalysisState(counts.waiting, counts.done, counts.failed, is_running, error)


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


analysis_router = Router("/", route_handlers=[analysis_state, start_analysis, pause_analysis])
