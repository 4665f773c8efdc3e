"""Ctrl-C and SIGTERM as a wish to end well."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopWish:
    """Whether somebody has asked the run to end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler."""
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """While the block runs, Ctrl-C and SIGTERM set the wish instead of killing the process."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # signals belong to the main thread
        return
    before: dict[int, Any] = {n: signal.signal(n, wish) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(_worker: int) -> None:
    """For workers that load data: a signal to the whole group must not kill them before the run has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
