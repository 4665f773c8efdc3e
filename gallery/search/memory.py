"""Naming from memory: vectors, people and thresholds, which follow what is changed in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from facepipe.core.faces import FloatArray
from facepipe.core.forks import watch_forks
from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.ranking import LikelyPeople, likely_people
from facepipe.gallery.search.listener import Listener
from facepipe.gallery.search.owners import Owners
from facepipe.gallery.search.views import TRIES, Answer, NamingView, changes_too_fast
from facepipe.gallery.storage.people_table import StoredPerson, usable_thresholds
from facepipe.gallery.storage.postgres.shared_store import SharedStore


class MemoryView:
    """One state of a gallery, in memory.

    Args:
        store: The gallery's truth; `follow` reads it, and codec and checksums of names are its own.

    Attributes:
        state: Name of the state; empty: nothing was read yet.
        index: The vectors of all templates.
        directory: Whose they are.
        named: The people whose names were read since it was emptied.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self.state = ""
        self.generation = 0
        self.index = VectorIndex(store.encoder.dimensions)
        self.directory = Owners()
        self.named: set[int] = set()
        self._people: dict[int, StoredPerson] = {}
        self._last_person = 0
        self._threshold_l2: float | None = None

    def likely_people(self, queries: FloatArray) -> LikelyPeople:
        """Return who may be the nearest of each query."""
        return likely_people(self.index, self.directory, queries)

    def names_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Person id to name; a damaged one is an error, so that nobody is given it."""
        wanted = {id: self._people[id] for id in ids if id in self._people}
        self.named.update(wanted)
        return {id: self._store.people.name_of(id, person) for id, person in wanted.items()}

    def names_and_thresholds_of(self, ids: Iterable[int]) -> tuple[dict[int, str], dict[int, float]]:
        """Person id to name, and to threshold, of those people who have one of their own."""
        names = self.names_of(ids)
        return names, usable_thresholds({id: self._people[id] for id in names})

    def has(self, name: str) -> bool:
        """Return whether somebody has this name."""
        return any(self._store.people.name_of(*row) == name for row in self._people.items())

    def threshold(self) -> float | None:
        """Return the gallery's own threshold; None: it has none."""
        return self._threshold_l2

    def sizes(self) -> tuple[int, int]:
        """Number of templates and of people."""
        return len(self.index), len(self._people)

    def can_follow(self) -> bool:
        """Return whether the present state came from this one. Inside a transaction."""
        return self._store.generation() >= self.generation and self._store.went_through(self.index.state)

    def follow(self) -> set[int]:
        """Take over the present state. Inside a transaction that reads.

        Returns:
            The people who were removed, renamed or given another threshold, or who lost or got templates that
            were known before.
        """
        store, index = self._store, self.index
        removed = store.removed_after(index.state.generation)
        index.remove(removed)
        self.directory.remove(removed)
        for ids, owners, vectors in store.templates.owned_after(index.last_id):
            index.add(ids, vectors)
            self.directory.add(ids, owners)
        index.state = store.vector_state()
        changed = store.people_changed_after(self.generation)
        owners, ids = store.templates.templates_of(changed)
        self.directory.move(ids, owners)
        for id in changed:
            self._people.pop(id, None)
        self._people.update(store.people.stored(changed))
        self._people.update(store.people.stored_after(self._last_person))
        self._last_person = max(self._people, default=self._last_person)
        self._threshold_l2 = store.settings.threshold()
        self.state, self.generation = store.state(), store.generation()
        return set(changed)


class MemorySearch:
    """Answers from memory, each compared with the state of the database before it is given.

    That is one query where nothing has changed; else what has changed is read, and the answer made again.

    Args:
        store: The gallery's truth.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._view: MemoryView | None = None
        self._listener: Listener | None = None
        watch_forks(self)

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of a state that was the present one after the call began.

        Nobody who was removed, renamed or merged before the last comparison is named in it.

        Raises:
            BusyDatabaseError: The people named changed again and again.
        """
        store = self._store
        with store.home.alone():
            if store.home.is_inside:
                self.catch_up()
                return self._read(read)[0]
            if self._view is None:
                self.catch_up()
            elif self._listener is None:  # A process that names twice will go on naming.
                self._listener = Listener(store.home.listen, self._follow_others)
            for attempt in range(TRIES):
                answer, view = self._read(read)
                if store.present_state() == view.state:
                    return answer
                changed = self.catch_up()
                if attempt and view is self._view and view.named.isdisjoint(changed):
                    return answer
        raise changes_too_fast(store.gallery)

    def catch_up(self) -> set[int]:
        """Take over the present state; returns the people who changed, as `MemoryView.follow` does."""
        with self._store.reading():
            if self._view is None or not self._view.can_follow():
                self._view = MemoryView(self._store)
            if self._view.state == self._store.state():
                return set()
            try:
                return self._view.follow()
            except BaseException:  # Of half a change, as where the connection broke, nothing can be followed.
                self._view = None
                raise

    def _follow_others(self) -> None:
        """Catch up what is in memory, in the background."""
        with self._store.home.alone():
            if self._view is not None and self._view.state != self._store.present_state():
                self.catch_up()

    def drop(self) -> None:
        """Free the memory, and stop listening for changes."""
        with self._store.home.alone():
            if self._listener is not None:
                self._listener.stop()
            self._view = self._listener = None

    def leave_to_parent(self) -> None:
        """Forget the thread that listens, which is the parent's."""
        self._listener = None

    def _read(self, read: Callable[[NamingView], Answer]) -> tuple[Answer, MemoryView]:
        assert self._view is not None
        self._view.named.clear()
        return read(self._view), self._view
