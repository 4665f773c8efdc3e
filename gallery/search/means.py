"""The mean vectors of people, which tell whose distances are worth measuring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import IdArray, RowsOfIds
from facepipe.gallery.ranking import Directory, VectorsOfTemplates

_COMPUTED_PEOPLE = 256


class Means:
    """Mean vectors of people in float16, off by 1e-4.

    Args:
        people: int64 (p,), rising.
        vectors: float16 (p, d), unit vectors.
    """

    def __init__(self, people: IdArray, vectors: npt.NDArray[np.float16]) -> None:
        self._rows = RowsOfIds(people)
        self._vectors = vectors

    def of(self, people: IdArray) -> FloatArray:
        """Return the means float32 (n, d) of people; no numbers (NaN) of others."""
        rows, is_held = self._rows.locate(people)
        if is_held.all():
            return self._vectors.take(rows, axis=0).astype(np.float32)
        found = np.full((len(people), self._vectors.shape[1]), np.nan, np.float32)
        found[is_held] = self._vectors[rows[is_held]]
        return found

    def followed(self, people: IdArray, changed: IdArray, means_of: Callable[[IdArray], FloatArray]) -> Means:
        """Return the means of these people, computed anew of those who are new or `changed`.

        Args:
            people: int64 (p,), rising.
            changed: Ids; others may be among them.
            means_of: Returns the means of some people, float32.
        """
        rows, is_kept = self._rows.locate(people)
        is_kept &= ~np.isin(people, changed)
        vectors = np.empty((len(people), self._vectors.shape[1]), np.float16)
        vectors[is_kept] = self._vectors[rows[is_kept]]
        wanted = np.flatnonzero(~is_kept)
        for at in range(0, len(wanted), _COMPUTED_PEOPLE):
            some = wanted[at : at + _COMPUTED_PEOPLE]
            vectors[some] = means_of(people[some])
        return Means(people, vectors)


def computed_means(directory: Directory, people: IdArray, vectors_of: VectorsOfTemplates) -> FloatArray:
    """Return the means float32 (p, d) of the templates of people, rising, as unit vectors."""
    owners, ids = directory.templates_of(people.tolist())
    vectors = vectors_of(ids)
    if not len(ids):
        return vectors
    sums = np.add.reduceat(vectors, np.flatnonzero(np.diff(owners, prepend=-1)), axis=0)
    lengths = np.sqrt(np.einsum("pd,pd->p", sums, sums))
    means: FloatArray = sums / np.maximum(lengths, 1e-9)[:, None]
    return means
