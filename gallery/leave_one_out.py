"""Who each enrolled face would be if it were new: named by all faces of a gallery but itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray, Match
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.matching import as_matches, doubts
from facepipe.gallery.ranking import NearestPeople

Float64Array = npt.NDArray[np.float64]

_COSINES_AT_ONCE = 4_000_000


def named_without_themselves(
    vectors: FloatArray,
    people: IdArray,
    names: Sequence[str],
    thresholds_l2: Float64Array,
    *,
    min_margin_l2: float = 0.0,
) -> tuple[Match, ...]:
    """Name each face by the templates, and the means of the templates, of all people but for itself.

    As `Gallery.match` does with its defaults, each face as if of a photo of its own. All faces are compared
    with all: 10,000 take seconds, 100,000 minutes.

    Args:
        vectors: float32 (n, d), unit length.
        people: int64 (n,), rising from 0 without gaps: the person of each.
        names: Of the p people.
        thresholds_l2: (p,), within which a face gets a person's name.
        min_margin_l2: By how much the next nearest person must be farther.
    """
    nearest = _nearest_others(vectors.astype(np.float64), people)
    # Where there is nobody, the distance is infinite, whatever the threshold.
    limits_l2 = np.append(thresholds_l2, 0.0)[nearest.first]
    reasons = doubts(nearest, limits_l2, min_margin_l2, one_person_per_photo=False)
    return as_matches(nearest, reasons, limits_l2, dict(enumerate(names)))


def _nearest_others(vectors: Float64Array, people: IdArray) -> NearestPeople:
    """The two nearest people of each face, of all templates but itself."""
    count = len(vectors)
    found = NearestPeople(
        np.full(count, -1), np.full(count, np.inf), np.full(count, -1), np.full(count, np.inf)
    )
    for rows, cosines in _cosines_to_people(vectors, people):
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :2]
        for rank, ids, distances_l2 in ((0, found.first, found.first_l2), (1, found.second, found.second_l2)):
            if rank < order.shape[1]:
                best = np.take_along_axis(cosines, order[:, rank : rank + 1], axis=1)[:, 0]
                is_there = np.isfinite(best)
                ids[rows[is_there]] = order[is_there, rank]
                distances_l2[rows[is_there]] = np.sqrt(np.maximum(0, 2 - 2 * best[is_there]))
    return found


def _cosines_to_people(vectors: Float64Array, people: IdArray) -> Iterator[tuple[IdArray, Float64Array]]:
    """Yield rows and their largest cosines (k, p) to a template or the mean of each person, but themselves.

    Minus infinity to a person of whom there is no other template.
    """
    if not len(vectors):
        return
    starts = np.flatnonzero(np.diff(people, prepend=-1))
    sums = np.add.reduceat(vectors, starts, axis=0)
    sizes = np.bincount(people)
    at_once = max(1, _COSINES_AT_ONCE // len(vectors))
    for rows in np.split(np.arange(len(vectors)), range(at_once, len(vectors), at_once)):
        own = people[rows]
        to_templates = vectors[rows] @ vectors.T
        to_templates[np.arange(len(rows)), rows] = -np.inf
        to_means = vectors[rows] @ _directions(sums).T
        to_own_mean = (vectors[rows] * _directions(sums[own] - vectors[rows])).sum(axis=1)
        to_means[np.arange(len(rows)), own] = np.where(sizes[own] > 1, to_own_mean, -np.inf)
        yield rows, np.maximum(np.maximum.reduceat(to_templates, starts, axis=1), to_means)


def _directions(sums: Float64Array) -> Float64Array:
    """Unit vectors; of vectors that cancel out, zero: equally far from all."""
    directions: Float64Array = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    return directions
