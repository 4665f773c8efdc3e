"""The directory of a gallery in a folder: asked of the database at first, then held in memory."""

from __future__ import annotations

from facepipe.gallery.ranking import Directory
from facepipe.gallery.search.owners import Owners, StoredOwners
from facepipe.gallery.storage.store import Store


class FollowedOwners:
    """Whose the templates of a gallery are, in the state of the present transaction.

    Args:
        store: The gallery's truth.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owners: Owners | None = None
        self._generation = self._last_id = 0
        self._was_asked = False

    def current(self) -> Directory:
        """Return the directory: from the second call on from memory, since who asks twice goes on asking.

        A million templates are read in half a second, and later what has changed. Inside a transaction.
        """
        if not (self._was_asked and self._store.notes_moves):
            self._was_asked = True
            return StoredOwners(self._store.templates)
        generation, owners = self._store.generation(), self._owners
        if owners is None or generation < self._generation:
            owners, self._last_id = Owners(), 0
        elif generation == self._generation:
            return owners
        self._owners = None  # Until nothing of the change is missing.
        self._follow(owners)
        self._owners, self._generation = owners, generation
        return owners

    def drop(self) -> None:
        """Free the memory."""
        self._owners, self._was_asked = None, False

    def _follow(self, owners: Owners) -> None:
        """Take over the present state; of one without templates, all that there is."""
        store = self._store
        if self._last_id:
            owners.remove(store.removed_after(self._generation))
            owners.move(*store.templates.moved_after(self._generation))
        ids, people = store.templates.owners_after(self._last_id)
        if len(ids):
            owners.add(ids, people)
            self._last_id = int(ids[-1])
