"""The one thread that uses a library."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Self, TypeVar

from facepipe.core.errors import FacepipeError
from facepipe.library.library import Library

Result = TypeVar("Result")
Task = Callable[[Library], None]

_logger = logging.getLogger("facepipe")
_IDLE_S = 0.3
"""Whoever clicks and then looks at something else does not wait for names in between."""
_PHOTOS_AT_ONCE = 16
"""Photos that are named again between two requests: they take milliseconds."""


class LibraryThread:
    """Runs functions on a library, one after the other, in a thread of its own.

    While nobody asks for anything, the faces that a decision may concern are named again. In the end the
    results of the batch (records, report, sidecars) are written anew, if anything was changed.

    Args:
        open_library: Called in the thread: the library's database belongs to the thread that opened it.

    Raises:
        FacepipeError: The library can't be opened.
    """

    def __init__(self, open_library: Callable[[], Library]) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._opened: Future[None] = Future()
        self._version = 0
        self._photos_left = 1  # a former process may have left some
        self._thread = threading.Thread(target=self._work, args=(open_library,), name="library", daemon=True)
        self._thread.start()
        self._opened.result()

    @property
    def version(self) -> int:
        """Of the library; see `Library.version`."""
        return self._version

    @property
    def photos_left(self) -> int:
        """Photos whose faces are still to be named again."""
        return self._photos_left

    async def run(self, function: Callable[[Library], Result]) -> Result:
        """Return what the function gives, called with the library in its thread; raises what it raises."""
        return await asyncio.wrap_future(self._put(function))

    def call(self, function: Callable[[Library], Result]) -> Result:
        """As `run`, for another thread, which waits."""
        return self._put(function).result()

    def _put(self, function: Callable[[Library], Result]) -> Future[Result]:
        future: Future[Result] = Future()

        def task(library: Library) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(library))
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(task)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was asked for, close the library and end the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _work(self, open_library: Callable[[], Library]) -> None:
        try:
            library = open_library()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        with library:
            opened_version = library.version
            self._opened.set_result(None)
            while (task := self._next_task(library)) is not None:
                task(library)
                self._note_changes(library)
            if library.version != opened_version:
                self._write_results(library)

    def _write_results(self, library: Library) -> None:
        _logger.info("writing the results of the batch anew (Ctrl-C leaves them as they were)")
        try:
            library.name_again()
            library.write_results()
        except (FacepipeError, OSError) as error:
            _logger.error("the results were not written: %s", error)

    def _note_changes(self, library: Library) -> None:
        if library.version != self._version:
            self._version = library.version
            self._photos_left = max(self._photos_left, 1)

    def _next_task(self, library: Library) -> Task | None:
        """Wait for a task; once none has come for a moment, name photos again, a few at a time."""
        wait_s = _IDLE_S
        while self._photos_left:
            try:
                return self._tasks.get(timeout=wait_s)
            except Empty:
                self._name_some_again(library)
                wait_s = 0.0
        return self._tasks.get()

    def _name_some_again(self, library: Library) -> None:
        try:
            self._photos_left = library.name_again(_PHOTOS_AT_ONCE)
            self._version = library.version
        except Exception as error:  # the next change tries again; the thread has to go on
            self._photos_left = 0
            _logger.error("names were not found again", exc_info=error)
