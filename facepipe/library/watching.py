"""A library that another process may be working with: looked at meanwhile, and taken over when that ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from facepipe.batch.damage import JobBusyError
from facepipe.batch.progress_file import RunningBatch, read_progress
from facepipe.core.errors import FacepipeError
from facepipe.gallery.address import PostgresAddress
from facepipe.library.library import Library

_COPY_EVERY_S, _COPY_SHARE = 5.0, 0.05
"""How often a library is read anew at most, and for which share of the time."""


class LibraryWatch:
    """Opens a library, and opens it anew while another process works with it.

    Args:
        folder: Of the batch.
        gallery: See `Library.open`.
        prepare: Called with each library that is opened.
    """

    def __init__(
        self,
        folder: Path,
        gallery: str | Path | PostgresAddress | None = None,
        prepare: Callable[[Library], None] = lambda library: None,
    ) -> None:
        self._folder, self._gallery, self._prepare = folder, gallery, prepare
        self._next_copy_at = 0.0

    def open(self) -> Library:
        """Open the library: to work with it, or, where another process does, to look at it.

        Raises:
            FacepipeError: As `Library.open`.
        """
        return self._opened(reading=True)

    def newer(self) -> Library | None:
        """Open the library anew: where it is free, or after a while as the other process has left it by now.

        Returns:
            None: it is not free, and was copied just now, or can't be copied at the moment.
        """
        try:
            return self._opened(reading=False)
        except JobBusyError:
            if time.monotonic() < self._next_copy_at:
                return None
        try:
            return self._opened(reading=True)
        except FacepipeError:
            return None

    def progress(self) -> RunningBatch | None:
        """Return how far the batch of another process is; None: it is no batch, or has not begun."""
        return read_progress(self._folder)

    def _opened(self, *, reading: bool) -> Library:
        began_at = time.monotonic()
        library = Library.open(self._folder, self._gallery, reading=reading)
        try:
            self._prepare(library)
        except BaseException:
            library.close()
            raise
        took_s = time.monotonic() - began_at
        self._next_copy_at = time.monotonic() + max(_COPY_EVERY_S, took_s / _COPY_SHARE)
        return library
