"""The base of all parts of `Gallery`: its store, its index, and the transactions on both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from facepipe.core.errors import GalleryError, one_line
from facepipe.gallery.address import GalleryAddress
from facepipe.gallery.index_sync import DerivedIndex
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.names import lookalike_sentence, lookalikes, stored_name
from facepipe.gallery.search.database import DatabaseSearch
from facepipe.gallery.search.views import Search
from facepipe.gallery.storage.postgres.shared_store import SharedStore
from facepipe.gallery.storage.store import Store

logger = logging.getLogger("facepipe")


class GalleryBase:
    """An open gallery, without the methods for its people and faces.

    Args:
        path: The folder or the address of the database.
        store: Its truth.
        encoder: Whose vectors will be added or matched; None: people are managed only.
    """

    def __init__(self, path: GalleryAddress, store: Store, encoder: EncoderIdentity | None) -> None:
        self.path = path
        self.encoder = encoder or store.encoder
        self._store = store
        self._takes_vectors = encoder is not None
        self._index = _search_of(path, store)

    @property
    def read_only(self) -> bool:
        """Whether changes raise `GalleryError`: the database may not be written."""
        return self._store.read_only

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """Hold one state for all that is read inside, whoever writes meanwhile.

        Threads that share the gallery wait. Nothing can be changed inside.
        """
        with self._store.reading():
            yield

    @property
    def state(self) -> str:
        """Name of what the gallery holds now: another after every change, also of a copy of the gallery."""
        with self._store.reading():
            return self._store.state()

    @contextmanager
    def state_after_own_changes(self, state: str | None) -> Iterator[Callable[[], str | None]]:
        """Follow a state through the changes that are made inside, and through no other's.

        Args:
            state: Of before.

        Yields:
            Returns the state that it has become; None where another process has changed the gallery before
            or between these changes, or it was not in this state. What others change afterwards is not in it.
        """
        with self._store.recorded_changes() as changes:

            def after() -> str | None:
                now = state
                for old, new in changes:
                    now = new if old == now else None
                return now

            yield after

    @contextmanager
    def _changing(self, *, vectors: bool = False, erases: bool = False) -> Iterator[None]:
        """Run the block as one transaction; the index and the wiping of files follow it.

        Args:
            vectors: The set of vectors changes, so the index has to be saved.
            erases: Remains of what is removed are wiped from all files afterwards.
        """
        with self._store.changing():
            self._index.is_due |= vectors
            yield
        if vectors and erases:
            self._index.erase_removed()
        if erases:
            self._wipe_deleted()

    def _wipe_deleted(self) -> None:
        """Wipe what a change has erased. An error must not read as if the change had not been made."""
        try:
            self._store.wipe_deleted()
        except GalleryError as error:
            logger.warning(
                "%s: what was removed is gone, but not yet wiped: the next opening does it (%s)",
                self.path,
                one_line(error.__cause__ or error),
            )

    @contextmanager
    def _warning_of_lookalikes(self) -> Iterator[None]:
        """Warn of names that came into the gallery inside and can't be told from others."""
        with self._store.reading():
            before = set(self._store.people.names())
        yield
        try:
            with self._store.reading():
                after = set(self._store.people.names())
        except GalleryError:  # The change was made: it must not end in an error.
            return
        for names in lookalikes(after) if after - before else []:
            if not before.issuperset(names):
                logger.warning("%s: similar_name: %s", self.path, lookalike_sentence(names))

    def _stored_name(self, name: str) -> str:
        """Return a name as its person has it. Inside a transaction."""
        return stored_name(name, self._store.people.has)

    def _person_id(self, name: str) -> int:
        """Return the id of a person. Inside a transaction.

        Raises:
            GalleryError: Nobody has this name.
        """
        return self._store.people.id_of(self._stored_name(name))

    def _require_encoder(self) -> None:
        if not self._takes_vectors:
            raise GalleryError(f"{self.path}: open the gallery with an encoder to add or match faces")


def _search_of(path: GalleryAddress, store: Store) -> Search:
    """Return how the nearest people are found in a gallery."""
    if isinstance(path, Path):
        return DerivedIndex(path, store)
    assert isinstance(store, SharedStore)
    return DatabaseSearch(store, path.search)
