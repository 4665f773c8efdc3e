"""Searching a gallery in PostgreSQL: from memory or by the server."""

from __future__ import annotations

import logging
from collections.abc import Callable

from facepipe.core.errors import GalleryError
from facepipe.gallery.address import SearchPlace
from facepipe.gallery.search.memory import MemorySearch
from facepipe.gallery.search.server import ServerSearch
from facepipe.gallery.search.views import Answer, NamingView
from facepipe.gallery.storage.postgres.shared_store import SharedStore

MEMORY_TEMPLATES_MAX = 200_000
"""Galleries of more are searched by the server, where it is prepared for that."""

logger = logging.getLogger("facepipe")


class DatabaseSearch:
    """Finds the nearest people of a gallery in PostgreSQL.

    Args:
        store: The gallery's truth.
        asked: Where to look; None: in the server where the gallery is large and has the table for it.

    Attributes:
        is_due: False: there is no file.
    """

    def __init__(self, store: SharedStore, asked: SearchPlace | None) -> None:
        self._store, self._asked = store, asked
        self._chosen: MemorySearch | ServerSearch | None = None
        self._had_vectors = False
        self.is_due = False

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of one state of the gallery; it may be called several times."""
        if self._chosen is None:
            with self._store.reading():
                self._chosen = self._choose()
        return self._chosen.answer(read)

    def _choose(self) -> MemorySearch | ServerSearch:
        store = self._store
        if self._asked is SearchPlace.LOCAL or store.is_encrypted:
            return MemorySearch(store)
        if self._asked is SearchPlace.SERVER:
            return ServerSearch(store)
        count = store.templates.count()
        if count <= MEMORY_TEMPLATES_MAX:
            return MemorySearch(store)
        if store.vectors.is_there():
            return ServerSearch(store)
        cure = "open it once with search=server"
        if not store.vectors.is_possible():
            cure = f"let a superuser run CREATE EXTENSION vector in its database, then {cure}"
        logger.warning(
            "%s: each process reads all %d faces into its memory: to let the server search, %s; else ask for "
            "search=local",
            store.gallery,
            count,
            cure,
        )
        return MemorySearch(store)

    def look_at_file(self) -> None:
        """On opening: make the table of vectors where the server is to search and there is none.

        Raises:
            GalleryError: It can't be made.
        """
        store = self._store
        if self._asked is not SearchPlace.SERVER:
            return
        if store.is_encrypted:
            raise GalleryError(
                f"{store.gallery}: the gallery is encrypted, so the server can't search it: use search=local"
            )
        with store.reading():
            if store.vectors.is_there():
                return
        if store.read_only:
            raise GalleryError(
                f"{store.gallery}: the server is not prepared for searching, and the gallery may not be "
                "changed: open it once with search=server as its owner, or use search=local"
            )
        with store.changing():
            if not store.vectors.is_there():
                logger.info(
                    "%s: preparing the server for searching %d faces", store.gallery, store.sizes()[0]
                )
                store.vectors.create()

    def size_bytes(self) -> int:
        """Return 0: there is no file."""
        return 0

    def drop(self) -> None:
        """Free the memory, and stop listening for changes."""
        if self._chosen is not None:
            self._chosen.drop()
        self._chosen = None

    def save(self) -> None:
        """Nothing: no vector is left on the disks of clients."""

    def rebuild(self) -> None:
        """Read all again, and make the table of vectors again where there is one."""
        self.drop()
        with self._store.changing():
            self.forget_file()
            self.remake()

    def forget_file(self) -> None:
        """Delete the table of vectors, where there is one. Inside a changing transaction."""
        self._had_vectors = self._store.vectors.is_there()
        self._store.vectors.drop()

    def remake(self) -> None:
        """Make the table that `forget_file` deleted again. Inside the same transaction."""
        if self._had_vectors:
            self._store.vectors.create()

    def is_file_behind(self) -> bool:
        """Return False: there is no file."""
        return False

    def require_nothing_lost(self) -> None:
        """Nothing: all vectors are in the database."""

    def erase_removed(self) -> None:
        """Nothing: rows of the table of vectors go with their templates."""
