"""What naming a face reads of a gallery: one state of its templates, people and thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from facepipe.core.faces import FloatArray
from facepipe.gallery.ranking import Directory, LikelyPeople, PeopleView, TemplateIndex, likely_people
from facepipe.gallery.storage.errors import BusyDatabaseError
from facepipe.gallery.storage.people_table import usable_thresholds
from facepipe.gallery.storage.store import Store

Answer = TypeVar("Answer")

TRIES = 10
"""How often an answer is made again whose people were changed meanwhile."""


class NamingView(PeopleView, Protocol):
    """One state of a gallery, as far as naming reads it."""

    def names_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Person id to name; of damaged rows a `GalleryError`."""

    def names_and_thresholds_of(self, ids: Iterable[int]) -> tuple[dict[int, str], dict[int, float]]:
        """Person id to name, and to threshold, of those people who have one of their own."""

    def has(self, name: str) -> bool:
        """Return whether somebody has this name."""

    def threshold(self) -> float | None:
        """Return the gallery's own threshold; None: it has none."""

    def sizes(self) -> tuple[int, int]:
        """Number of templates and of people."""


class Search(Protocol):
    """Finds the nearest people of a gallery, in a state that is current.

    Attributes:
        is_due: Something was read or changed, so that a file may have to be written at the end.
    """

    is_due: bool

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of one state of the gallery; it may be called several times."""

    def drop(self) -> None:
        """Free the memory, and what else an open gallery holds for searching."""

    def save(self) -> None:
        """Keep what the next opening can use. Outside of any transaction."""

    def rebuild(self) -> None:
        """Throw away what is derived from the templates and make it again. Outside of any transaction."""

    def forget_file(self) -> None:
        """Delete what is derived from the templates outside of their table. Inside a changing transaction."""

    def remake(self) -> None:
        """Make again what `forget_file` deleted and can't be made at the next use.

        Inside the same transaction, after the templates got other vectors.
        """

    def size_bytes(self) -> int:
        """Return the size of its files."""

    def is_file_behind(self) -> bool:
        """Return whether the next opening takes long. Inside a transaction."""

    def look_at_file(self) -> None:
        """On opening: do what a killed process could not any more."""

    def require_nothing_lost(self) -> None:
        """Refuse to erase while remains of people are kept where erasing does not reach.

        Outside of any transaction.

        Raises:
            GalleryError: There are some.
        """

    def erase_removed(self) -> None:
        """Overwrite what was removed from the templates. Outside of any transaction."""


class StoreView:
    """The state that a transaction of the store reads. Use it inside.

    Args:
        store: The gallery's truth.
        index: Returns the index of the state's templates.
        directory: Returns their directory.
    """

    def __init__(
        self, store: Store, index: Callable[[], TemplateIndex], directory: Callable[[], Directory]
    ) -> None:
        self._store = store
        self._index, self._directory = index, directory
        self._people_counted = (-1, 0)  # At which generation, and how many.

    @property
    def index(self) -> TemplateIndex:
        """The vectors of all templates."""
        return self._index()

    @property
    def directory(self) -> Directory:
        """Whose they are."""
        return self._directory()

    def likely_people(self, queries: FloatArray) -> LikelyPeople:
        """Return who may be the nearest of each query."""
        return likely_people(self.index, self.directory, queries)

    def names_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Person id to name."""
        return self._store.people.names_of(ids)

    def names_and_thresholds_of(self, ids: Iterable[int]) -> tuple[dict[int, str], dict[int, float]]:
        """Person id to name, and to threshold, of those people who have one of their own."""
        people = self._store.people.stored(ids)
        names = {id: self._store.people.name_of(id, person) for id, person in people.items()}
        return names, usable_thresholds(people)

    def has(self, name: str) -> bool:
        """Return whether somebody has this name."""
        return self._store.people.has(name)

    def threshold(self) -> float | None:
        """Return the gallery's own threshold; None: it has none."""
        return self._store.settings.threshold()

    def sizes(self) -> tuple[int, int]:
        """Number of templates and of people; a database counts row by row, so only after a change."""
        generation = self._store.generation()
        if self._people_counted[0] != generation:
            self._people_counted = (generation, self._store.people.count())
        return len(self.index), self._people_counted[1]


def changes_too_fast(gallery: str) -> BusyDatabaseError:
    """Return the error of an answer whose people were changed in each of `TRIES`."""
    return BusyDatabaseError(
        f"{gallery}: the people to be named are changed again and again by others: try again"
    )
