"""Naming by the server: pgvector finds the nearest templates, and their exact distances decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.gallery import ranking
from facepipe.gallery.index.parts import IdArray, locate
from facepipe.gallery.ranking import LikelyPeople
from facepipe.gallery.search.owners import StoredOwners
from facepipe.gallery.search.views import TRIES, Answer, NamingView, StoreView, changes_too_fast
from facepipe.gallery.storage.postgres.shared_store import SharedStore

DistanceArray = npt.NDArray[np.float64]

_NONE: IdArray = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class _Count:
    """The number of templates at a generation, and the largest of their ids."""

    generation: int
    last_id: int
    count: int


class ServerIndex:
    """The vectors in the server (`ranking.TemplateIndex`). Inside a transaction.

    Args:
        store: The gallery's truth.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._counted: _Count | None = None

    def __len__(self) -> int:
        """Count all rows once, and later what was added and removed since."""
        store, known = self._store, self._counted
        generation = store.generation()
        if known is not None and generation == known.generation:
            return known.count
        last_id = store.templates.last_id()
        if known is None or generation < known.generation:
            count = store.templates.count()
        else:
            removed = np.count_nonzero(store.removed_after(known.generation) <= known.last_id)
            count = known.count + store.count_after(known.last_id) - int(removed)
        self._counted = _Count(generation, last_id, count)
        return count

    def vectors_of(self, ids: IdArray) -> FloatArray:
        """Return the vectors float32 (n, d) of ids; infinite where there is no such template."""
        known, vectors = self._store.vectors.vectors_of(ids)
        order = np.argsort(known)
        rows, is_present = locate(known[order], ids)
        found = np.full((len(ids), self._store.encoder.dimensions), np.inf, np.float32)
        found[is_present] = vectors[order[rows[is_present]]]
        return found

    def search(
        self, queries: FloatArray, count: int, exclude_ids: IdArray | None = None
    ) -> tuple[DistanceArray, IdArray]:
        """Return the nearest templates of each query: see `ranking.TemplateIndex.search`."""
        exclude_ids = _NONE if exclude_ids is None else exclude_ids
        if not len(queries):
            return np.zeros((0, 0)), np.zeros((0, 0), np.int64)
        found = self._nearest(queries, count, exclude_ids)
        if (found_count := min(len(ids) for ids, _ in found)) < count:
            count = max(0, min(count, len(self) - len(exclude_ids)))
            if found_count < count:  # The graph gives up where too many are excluded.
                with self._store.vectors.comparing_all():
                    found = self._nearest(queries, count, exclude_ids)
        rows = [_ranked(query, *one, count) for query, one in zip(queries, found, strict=True)]
        return np.stack([distances for distances, _ in rows]), np.stack([ids for _, ids in rows])

    def _nearest(
        self, queries: FloatArray, count: int, exclude_ids: IdArray
    ) -> list[tuple[IdArray, FloatArray]]:
        return list(self._store.vectors.nearest(queries, count, exclude_ids))


def _ranked(
    query: FloatArray, ids: IdArray, vectors: FloatArray, count: int
) -> tuple[DistanceArray, IdArray]:
    """Exact distances float64 (k,), rising, and ids (k,) of the nearest among candidates."""
    distances = np.linalg.norm(vectors.astype(np.float64) - query.astype(np.float64), axis=1)
    order = np.lexsort((ids, distances))[:count]
    return distances[order], ids[order]


class _ServerView(StoreView):
    """The state of a transaction, and the people whose names were read in it."""

    def __init__(self, store: SharedStore) -> None:
        index, directory = ServerIndex(store), StoredOwners(store.templates)
        super().__init__(store, lambda: index, lambda: directory)
        self._vectors = store.vectors
        self.named: set[int] = set()

    def likely_people(self, queries: FloatArray) -> LikelyPeople:
        """Return who may be the nearest of each query: by one statement, where there are several people."""
        counts = ranking.CANDIDATE_NEIGHBOURS, ranking.MEASURED_PEOPLE
        found = LikelyPeople(*self._vectors.likely_people(queries, *counts))
        if all(len(people) > 1 for people in found.of_each):
            return found
        return super().likely_people(queries)

    def names_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Person id to name."""
        wanted = set(ids)
        self.named |= wanted
        return super().names_of(wanted)

    def names_and_thresholds_of(self, ids: Iterable[int]) -> tuple[dict[int, str], dict[int, float]]:
        """Person id to name, and to threshold, of those people who have one of their own."""
        wanted = set(ids)
        self.named |= wanted
        return super().names_and_thresholds_of(wanted)


class ServerSearch:
    """Answers by queries, each answer compared with the state of the database before it is given.

    Args:
        store: The gallery's truth, with the table of vectors.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._view = _ServerView(store)

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of the state that was the present one when a transaction began.

        Nobody who was removed, renamed or merged before the last comparison is named in it.

        Raises:
            BusyDatabaseError: The people named changed again and again.
        """
        store, view = self._store, self._view
        for _ in range(TRIES):
            with store.home.alone():
                is_one_state = store.home.is_inside
                with store.reading():
                    generation = store.generation()
                    view.named.clear()
                    answer = read(view)
                if is_one_state or view.named.isdisjoint(store.people_changed_now(generation)):
                    return answer
        raise changes_too_fast(store.gallery)

    def catch_up(self) -> None:
        """Nothing: every answer is of the present state."""

    def drop(self) -> None:
        """Nothing: all is in the server."""
