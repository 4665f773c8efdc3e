"""Who a face is: the nearest person and the next nearest other one, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.faces import FloatArray, Match
from gallery.index import IdArray, VectorIndex

_FIRST_NEIGHBOURS = 16
"""Enough for two different people nearly always; where not, a second search leaves the first person out."""


@dataclass(frozen=True, slots=True)
class Directory:
    """Whose templates are whose, at one generation.

    Attributes:
        generation: Of the gallery.
        template_ids: int64 (n,), rising.
        person_ids: int64 (n,), the person of each template.
        names: Person id to name.
    """

    generation: int
    template_ids: IdArray
    person_ids: IdArray
    names: dict[int, str]

    def people_of(self, template_ids: IdArray) -> IdArray:
        """The person ids of templates, in the same shape."""
        return self.person_ids[np.searchsorted(self.template_ids, template_ids)]


@dataclass(frozen=True, slots=True)
class NearestPeople:
    """The two nearest people of n faces; id -1 and distance infinite where there is none.

    Attributes:
        first: int64 (n,), person ids.
        first_l2: float64 (n,), Euclidean distance to that person's nearest template.
        second: int64 (n,), the nearest *other* person.
        second_l2: float64 (n,).
    """

    first: IdArray
    first_l2: npt.NDArray[np.float64]
    second: IdArray
    second_l2: npt.NDArray[np.float64]


def nearest_people(index: VectorIndex, directory: Directory, queries: FloatArray) -> NearestPeople:
    """The two nearest people of each query float32 (n, d), by their nearest templates."""
    n = len(queries)
    found = NearestPeople(np.full(n, -1), np.full(n, np.inf), np.full(n, -1), np.full(n, np.inf))
    distances, template_ids = index.search(queries, _FIRST_NEIGHBOURS)
    if not distances.size:
        return found
    people = directory.people_of(template_ids)
    found.first[:], found.first_l2[:] = people[:, 0], distances[:, 0]
    _note_others(found, np.arange(n), people, distances)
    for person in np.unique(found.first[found.second < 0]):
        rows = np.flatnonzero((found.first == person) & (found.second < 0))
        own = directory.template_ids[directory.person_ids == person]
        distances, template_ids = index.search(queries[rows], _FIRST_NEIGHBOURS, exclude_ids=own)
        _note_others(found, rows, directory.people_of(template_ids), distances)
    return found


def _note_others(
    found: NearestPeople, rows: IdArray, people: IdArray, distances: npt.NDArray[np.float64]
) -> None:
    """Fill in the second person of `rows` where one is among the neighbours, nearest first."""
    if not distances.size:
        return
    other = people != found.first[rows, None]
    column = other.argmax(axis=1)
    hit = np.flatnonzero(other.any(axis=1))
    found.second[rows[hit]] = people[hit, column[hit]]
    found.second_l2[rows[hit]] = distances[hit, column[hit]]


def accepted_faces(
    nearest: NearestPeople, threshold_l2: float, min_margin_l2: float, one_person_per_photo: bool
) -> npt.NDArray[np.bool_]:
    """bool (n,): which faces get the name of their nearest person.

    The next nearest person must be farther by the margin, or it could as well be them. With
    `one_person_per_photo` each person goes to the nearest of the faces that want it (the first of equals).
    The others stay unknown: a farther person is never a second choice. With that rule the best assignment
    over all faces and people is the best face of each person, so no solver is needed.
    """
    # Without anybody there both distances are infinite; their difference is not asked for.
    margins = np.subtract(
        nearest.second_l2, nearest.first_l2, out=np.zeros(len(nearest.first)), where=nearest.first >= 0
    )
    accepted = (nearest.first_l2 <= threshold_l2) & (margins >= min_margin_l2)
    if one_person_per_photo:
        rising = np.argsort(nearest.first_l2, kind="stable")
        _, first_seen = np.unique(nearest.first[rising], return_index=True)
        best = np.zeros(len(accepted), np.bool_)
        best[rising[first_seen]] = True
        accepted &= best
    return accepted


def as_matches(
    nearest: NearestPeople, accepted: npt.NDArray[np.bool_], threshold_l2: float, names: dict[int, str]
) -> tuple[Match, ...]:
    """One answer a face."""
    return tuple(
        Match(
            name=names[int(nearest.first[row])] if accepted[row] else None,
            distance_l2=_finite(nearest.first_l2[row]),
            threshold_l2=threshold_l2,
            runner_up_name=names.get(int(nearest.second[row])),
            runner_up_distance_l2=_finite(nearest.second_l2[row]),
        )
        for row in range(len(accepted))
    )


def _finite(distance: np.float64) -> float | None:
    return float(distance) if np.isfinite(distance) else None
