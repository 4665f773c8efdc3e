"""Ctrl-C and SIGTERM: a wish to end well while weights move, an interruption of everything else."""

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
        """Interrupt the block at the wish: for work that can be done again.

        Raises:
            KeyboardInterrupt: The wish is there.
        """
        self._interrupting = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupting = False


@contextmanager
def stop_wish() -> Iterator[StopRequest]:
    """While the block runs, Ctrl-C and SIGTERM set the wish instead of killing the process."""
    wish = StopRequest()
    with _handled_by(wish, signal.SIGINT, signal.SIGTERM):
        yield wish


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While the block runs, SIGTERM raises KeyboardInterrupt, so that half-written files are removed."""
    with _handled_by(_interrupt, signal.SIGTERM):
        yield


def leave_signals_to_parent() -> None:
    """For workers that load data: a signal to the whole group must not kill them before the run has saved."""
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
