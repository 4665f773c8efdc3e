"""The memory that decoding photos takes: one count for all threads of the process, and a limit."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Self

from facepipe.core.errors import FacepipeError, PhotoError
from facepipe.core.forks import in_forked_processes

_BYTES_PER_PIXEL = 7
"""Of an RGB photo while it is decoded: four of the decoder's, three of the result."""

_FILE_BYTES = 256_000_000
"""Of `allowed_bytes`, for files, strips and formats that take more: few pixels of any format take less."""


_LARGE_BYTES = 256_000_000
"""Given back at once, it goes back to the system: the C library may keep it otherwise, in pieces."""


class MemoryBusyError(FacepipeError):
    """Other photos have the memory that a photo needs: `need_bytes`."""

    def __init__(self, name: str, need_bytes: int) -> None:
        super().__init__(f"{name}: waits for {_amount(need_bytes)} of memory")
        self.need_bytes = need_bytes


class _Count:
    """Bytes that photos take together, and who waits for some, the first to come first."""

    def __init__(self) -> None:
        self.change = threading.Condition()
        self.taken_bytes = 0
        self.line: deque[PhotoMemory] = deque()


_COUNT = _Count()


def _begin_anew() -> None:
    """Leave the count to the parent process: its threads, which give back what they took, are not here."""
    global _COUNT
    _COUNT = _Count()


in_forked_processes(_begin_anew)


def allowed_bytes(max_pixels: int) -> int:
    """How much memory decoding may take where photos of `max_pixels` are allowed: that of an RGB one."""
    return _BYTES_PER_PIXEL * max_pixels + _FILE_BYTES


def taken_bytes() -> int:
    """Return how much memory the photos of this process take together."""
    return _COUNT.taken_bytes


class PhotoMemory:
    """The memory of one photo, counted before it is used; `with` gives it back.

    Whoever waits has given back what it had, so that no two photos wait for each other. Used by one thread
    at a time.

    Args:
        name: How messages name the photo.
        limit_bytes: What all photos together may take when this one takes some.
        waits: Whether `take` waits for others to give memory back, or raises.
    """

    def __init__(self, name: str, limit_bytes: int, *, waits: bool = True) -> None:
        self._count, self._bytes = _COUNT, 0
        self.name, self.limit_bytes, self.waits = name, limit_bytes, waits

    def take(self, need_bytes: int) -> None:
        """Count `need_bytes` for the photo instead of what it had.

        Raises:
            PhotoError: It is more than the limit.
            MemoryBusyError: Others have it; the photo keeps what it had. Only without `waits`.
        """
        if need_bytes > self.limit_bytes:
            raise PhotoError(
                f"{self.name}: decoding it takes {_amount(need_bytes)} of memory, more than the "
                f"{_amount(self.limit_bytes)} allowed; shrink it or, if you trust it, "
                "raise the limit (max_pixels, --max-megapixels)"
            )
        count, had_bytes = self._count, self._bytes
        with count.change:
            if need_bytes > self._bytes:
                if not self.waits and not self._would_not_wait(need_bytes):
                    raise MemoryBusyError(self.name, need_bytes)
                self._set(0)
                count.line.append(self)
                try:
                    count.change.wait_for(lambda: count.line[0] is self and self._may_take(need_bytes))
                finally:
                    count.line.remove(self)
            self._set(need_bytes)
        _trim_heap(had_bytes - need_bytes)

    def has_room(self, need_bytes: int) -> bool:
        """Return whether `take` would not have to wait for others."""
        with self._count.change:
            return self._would_not_wait(need_bytes)

    def release(self) -> None:
        """Give all back."""
        had_bytes = self._bytes
        with self._count.change:
            self._set(0)
        _trim_heap(had_bytes)

    def _would_not_wait(self, need_bytes: int) -> bool:
        """There is room, and nobody waits in line for it, who may wait for what the caller holds."""
        return not self._count.line and self._may_take(need_bytes)

    def _may_take(self, need_bytes: int) -> bool:
        return self._count.taken_bytes - self._bytes + need_bytes <= self.limit_bytes

    def _set(self, new_bytes: int) -> None:
        self._count.taken_bytes += new_bytes - self._bytes
        self._bytes = new_bytes
        self._count.change.notify_all()

    def __del__(self) -> None:
        """Give back what a photo still had that was dropped on the way, as where a batch is interrupted."""
        if self._bytes:
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _trim_heap(freed_bytes: int) -> None:
    """Give large free memory of the C library back to the system, where the library is one that can."""
    if freed_bytes >= _LARGE_BYTES and (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows there is no CDLL(None)
        return None
    return function


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{max(1, size_bytes // 1_000_000)} MB"
