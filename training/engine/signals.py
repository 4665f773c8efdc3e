"""Ctrl-C and SIGTERM: a request to stop after the step, or an interruption of other work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Whether somebody has asked the run to end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._interrupting = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        now = self._interrupting or (self.asked and number == signal.SIGINT)
        self.asked, self._interrupting = True, False
        if now:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Interrupt the block on a request: for work that can be done again.

        Raises:
            KeyboardInterrupt: A stop is requested.
        """
        self._interrupting = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupting = False


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """While the block runs, Ctrl-C and SIGTERM request a stop instead of killing the process."""
    stop = StopRequest()
    with _handled_by(stop, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While the block runs, SIGTERM raises KeyboardInterrupt, so that half-written files are removed."""
    with _handled_by(_interrupt, signal.SIGTERM):
        yield


def leave_signals_to_parent() -> None:
    """Ignore signals in a loading worker: one to the whole group must not kill it before the run is saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
