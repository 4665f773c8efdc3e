"""Objects that a forked process must not share with its parent, such as networks with threads.

It can't free them either: it would wait for threads that exist in the parent only.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet


class Unforkable(Protocol):
    """An object that a forked process has to make anew."""

    def leave_to_parent(self) -> None:
        """Called in the forked process, before anything else there."""


_LIVING: WeakSet[Unforkable] = WeakSet()


def watch_forks(owner: Unforkable) -> None:
    """Call `owner.leave_to_parent()` in every process that is forked while `owner` lives."""
    _LIVING.add(owner)


def never_free(value: object) -> None:
    """Keep an object to the end of this process, and beyond the clearing up there."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def in_forked_processes(action: Callable[[], None]) -> None:
    """Call `action` in every process that is forked from now on, before anything else there."""
    if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
        os.register_at_fork(after_in_child=action)


def _leave_to_parent() -> None:
    for owner in list(_LIVING):
        owner.leave_to_parent()


in_forked_processes(_leave_to_parent)
