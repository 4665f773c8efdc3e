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
_REGROUP_AFTER = 50
"""Decisions after which the unknown faces are grouped anew."""
_LOOK_S = 1.0
"""How often it is looked whether others have changed the gallery, or have let go of the library."""
_PHOTOS_AT_ONCE = 16
"""Photos that are named again between two requests: they take milliseconds."""


class LibraryThread:
    """Runs functions on a library, one after the other, in a thread of its own.

    While nobody asks for anything, the faces are named again that a decision may concern, or a change that
    another process made to the gallery, and after some decisions the unknown faces are grouped anew. In the
    end the results of the batch (records, report, sidecars) are written anew, if anything was changed.

    A library that another process works with can be looked at. While nobody asks for anything, it is replaced
    by a newer one, and in the end taken over.

    Args:
        open_library: Called in the thread: the library's database belongs to the thread that opened it.
        newer: Called in the thread while the library is read-only; gives one to be used in its place.

    Raises:
        FacepipeError: The library can't be opened.
    """

    def __init__(
        self,
        open_library: Callable[[], Library],
        newer: Callable[[], Library | None] = lambda: None,
    ) -> None:
        self._newer, self._is_read_only = newer, False
        self._is_gallery_lost = False
        self._changes = 0
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._opened: Future[None] = Future()
        self._version = 0
        self._photos_left = 0
        self._thread = threading.Thread(target=self._work, args=(open_library,), name="library", daemon=True)
        self._thread.start()
        self._opened.result()

    @property
    def version(self) -> int:
        """Grows with every change of what can be seen of the library."""
        return self._version

    @property
    def photos_left(self) -> int:
        """Photos whose faces are still to be named again."""
        return self._photos_left

    @property
    def is_read_only(self) -> bool:
        """Whether another process works with the library."""
        return self._is_read_only

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
        self.close()

    def close(self) -> None:
        """Finish what was asked for, close the library and end the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _work(self, open_library: Callable[[], Library]) -> None:
        try:
            library = open_library()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._library = library
        try:
            self._take(library)
            self._opened.set_result(None)
            while (task := self._next_task()) is not None:
                task(self._library)
                self._note_changes()
            if self._library.version != self._opened_version:
                self._write_results(self._library)
        finally:
            self._library.close()

    def _take(self, library: Library) -> None:
        """Use a library from now on."""
        self._library, self._opened_version, self._seen_version = library, library.version, library.version
        self._is_read_only = library.is_read_only
        self._version += 1
        self._photos_left = 0 if library.is_read_only else 1  # a former process may have left some

    def _replace_read_only(self) -> None:
        """Use a newer library, where there is one."""
        try:
            newer = self._newer()
        except Exception as error:  # the next time may be better
            _logger.error("the library can't be opened anew", exc_info=error)
            return
        if newer is not None:
            self._library.close()
            self._take(newer)

    def _write_results(self, library: Library) -> None:
        _logger.info("writing the results of the batch anew (Ctrl-C leaves them as they were)")
        try:
            library.name_again()
            library.write_results()
        except (FacepipeError, OSError) as error:
            _logger.error("the results were not written: %s", error)

    def _note_changes(self) -> None:
        if self._library.version != self._seen_version:
            self._seen_version = self._library.version
            self._version += 1
            self._changes += 1
            self._photos_left = 0 if self._is_read_only else max(self._photos_left, 1)

    def _next_task(self) -> Task | None:
        """Wait for a task; once none has come for a moment, name photos again, a few at a time."""
        wait_s = _IDLE_S
        while True:
            is_due = self._photos_left or self._is_grouping_due
            try:
                return self._tasks.get(timeout=wait_s if is_due else _LOOK_S)
            except Empty:
                if self._is_read_only:
                    self._replace_read_only()
                elif self._photos_left:
                    self._name_some_again()
                    wait_s = 0.0
                elif self._is_grouping_due:
                    self._begin_grouping()
                else:
                    self._look_at_gallery()

    @property
    def _is_grouping_due(self) -> bool:
        return self._changes >= _REGROUP_AFTER and not self._is_read_only

    def _look_at_gallery(self) -> None:
        """Have faces named again where another process has changed the gallery."""
        was_lost = self._is_gallery_lost
        try:
            if was_lost:
                self._library.reopen_gallery()
            self._library.follow_gallery()
        except Exception as error:  # the next time may be better; once is enough in the log
            self._is_gallery_lost = True
            if not was_lost:
                _logger.error("the gallery can't be read: %s", error)
            return
        self._is_gallery_lost = False
        self._note_changes()
        if was_lost:
            _logger.info("the gallery can be read again")
            self._photos_left = 1  # what was due meanwhile

    def _begin_grouping(self) -> None:
        """Group the unknown faces anew, in a thread of its own: that may take seconds."""
        self._changes = 0
        faces, within_l2 = self._library.faces_to_group(), self._library.group_within_l2

        def find() -> None:
            groups = faces.found_groups(within_l2)
            self._tasks.put(lambda library: library.take_groups(groups))

        threading.Thread(target=find, name="grouping", daemon=True).start()

    def _name_some_again(self) -> None:
        try:
            self._photos_left = self._library.name_again(_PHOTOS_AT_ONCE)
            self._note_changes_of_names()
        except FacepipeError as error:  # the next change tries again; the thread has to go on
            self._photos_left = 0
            _logger.error("names were not found again: %s", error)
        except Exception as error:
            self._photos_left = 0
            _logger.error("names were not found again", exc_info=error)

    def _note_changes_of_names(self) -> None:
        if self._library.version != self._seen_version:
            self._seen_version = self._library.version
            self._version += 1
