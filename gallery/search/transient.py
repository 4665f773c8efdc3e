"""Searching a gallery in a database: an index in memory, which follows the truth by difference."""

from __future__ import annotations

from collections.abc import Callable

from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.search.views import Answer, NamingView, StoreView
from facepipe.gallery.storage.store import Store


class TransientIndex:
    """An index that is made when it is first used, and kept in no file.

    Args:
        store: The gallery's truth.

    Attributes:
        is_due: Without meaning: there is no file.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._view = StoreView(store, self._current)
        self._index: VectorIndex | None = None
        self.is_due = False

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of one state of the gallery, read in a transaction."""
        with self._store.reading():
            return read(self._view)

    def _current(self) -> VectorIndex:
        state = self._store.vector_state()
        if self._index is None:
            self._index = VectorIndex(self._store.encoder.dimensions)
        if self._index.state != state:
            self._index.remove(self._store.removed_after(self._index.state.generation))
            for ids, vectors in self._store.vectors_after(self._index.last_id):
                self._index.add(ids, vectors)
            self._index.state = state
        return self._index

    def drop(self) -> None:
        """Free the memory."""
        self._index = None

    def rebuild(self) -> None:
        """Throw the index away; the next use makes it again."""
        self._index = None

    def is_file_behind(self) -> bool:
        """Return False: there is no file."""
        return False

    def size_bytes(self) -> int:
        """Return 0: there is no file."""
        return 0

    def save(self) -> None:
        """Do nothing: there is no file."""

    forget_file = remake = look_at_file = require_nothing_lost = erase_removed = save
