"""The nearest people of faces, by the nearest template and the mean of all templates of each person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import IdArray, rows_of_values

_FIRST_NEIGHBOURS = 16
"""Enough for two different people nearly always; where not, a second search leaves the first person out."""

CANDIDATE_NEIGHBOURS = 128
"""Means are compared for the owners of so many nearest templates; docs/gallery.md has figures of fewer."""

MEASURED_PEOPLE = 8
"""Of these owners so many are measured exactly: float32 tells the others from the two nearest."""


VectorsOfTemplates = Callable[[IdArray], FloatArray]
"""Ids (n,) to vectors float32 (n, d), as `TemplateIndex.vectors_of`."""


class PersonDistance(Enum):
    """What the distance of a face to a person is. The values are stable codes for options."""

    NEAREST_OR_MEAN = "nearest-or-mean"
    """To the nearest template or to the mean of all, whichever is nearer: the mean is one more template."""
    NEAREST = "nearest"
    """To the nearest template: one photo that looks like the face is enough."""


class TemplateIndex(Protocol):
    """The vectors of templates by their ids, and the nearest of them."""

    def __len__(self) -> int: ...

    def vectors_of(self, ids: IdArray) -> FloatArray:
        """Return the vectors float32 (n, d) of ids; infinite where there is no such template."""

    def search(
        self, queries: FloatArray, count: int, exclude_ids: IdArray | None = None
    ) -> tuple[npt.NDArray[np.float64], IdArray]:
        """Return the nearest templates of each query.

        Args:
            queries: float32 (n, d).
            count: Neighbours wanted; fewer come back where there are fewer.
            exclude_ids: int64, ids to pass over.

        Returns:
            Distances float64 (n, k), Euclidean, rising; ids int64 (n, k), -1 at the end where a query found
            fewer.
        """


class Directory(Protocol):
    """Which person each template is of; only the neighbours of a face are looked up."""

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape."""

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""

    def means_of(self, people: IdArray, vectors_of: VectorsOfTemplates) -> FloatArray:
        """Return the means of the templates of people (p,), rising, as unit vectors float32 (p, d).

        They may be off by 1e-4, and no numbers (NaN) of a person with a single template.
        """


@dataclass(frozen=True, slots=True)
class LikelyPeople:
    """The people who may be the nearest ones of n faces, by the nearest template or the mean.

    Attributes:
        of_each: Of each face, their ids int64 (k,), rising.
        owners: int64 (m,), rising: the person of each template of everybody among them.
        vectors: float32 (m, d), of these templates.
    """

    of_each: Sequence[IdArray]
    owners: IdArray
    vectors: FloatArray


class PeopleView(Protocol):
    """One state of a gallery's templates, as far as ranking people reads it."""

    @property
    def index(self) -> TemplateIndex:
        """The vectors of all templates."""

    @property
    def directory(self) -> Directory:
        """Whose they are."""

    def likely_people(self, queries: FloatArray) -> LikelyPeople:
        """Return who may be the nearest of each query float32 (n, d): see `likely_people`."""


@dataclass(frozen=True, slots=True)
class NearestPeople:
    """The two nearest people of n faces; id -1 and distance infinite where there is none.

    Attributes:
        first: int64 (n,), person ids.
        first_l2: float64 (n,), Euclidean distance to that person.
        second: int64 (n,), the nearest *other* person.
        second_l2: float64 (n,).
    """

    first: IdArray
    first_l2: npt.NDArray[np.float64]
    second: IdArray
    second_l2: npt.NDArray[np.float64]

    @property
    def people(self) -> list[int]:
        """Everybody among them, each once."""
        return [int(person) for person in np.unique(np.concatenate([self.first, self.second]))]


def rank_people(view: PeopleView, queries: FloatArray, measure: PersonDistance) -> NearestPeople:
    """Return the two nearest people of each query float32 (n, d).

    `NEAREST` is exact. `NEAREST_OR_MEAN` is computed for the people who own the 128 nearest templates.

    Args:
        view: The templates and whose they are.
        queries: Unit vectors.
        measure: What the distance to a person is.
    """
    if measure is PersonDistance.NEAREST:
        return nearest_people(view.index, view.directory, queries)
    likely, found = view.likely_people(queries), _nobody(len(queries))
    for row, (query, people) in enumerate(zip(queries, likely.of_each, strict=True)):
        own, starts = rows_of_values(likely.owners, people)
        distances_l2 = distances_to_people(query, likely.vectors[own], starts, measure)
        for at, ids, l2 in zip(
            np.argsort(distances_l2, kind="stable"),
            (found.first, found.second),
            (found.first_l2, found.second_l2),
            strict=False,  # A single person has no runner-up.
        ):
            ids[row], l2[row] = people[at], distances_l2[at]
    return found


def likely_people(index: TemplateIndex, directory: Directory, queries: FloatArray) -> LikelyPeople:
    """Return who may be the nearest of each query float32 (n, d).

    They are chosen among the owners of the nearest templates by distances that are off by 1e-4.
    """
    distances, found = _neighbours(index, directory, queries, CANDIDATE_NEIGHBOURS)
    near = [_nearest_of_each(*one) for one in zip(found, distances, strict=True)]
    for row, (people, _) in enumerate(near):
        if len(people) == 1:  # Who owns all of so many templates: the others are farther.
            near[row] = _with_others(index, directory, queries[row], *near[row])
    everybody = _union([people for people, _ in near])
    means = directory.means_of(everybody, index.vectors_of)
    of_each = [
        _likeliest(people, distances_l2, query, means[np.searchsorted(everybody, people)])
        for query, (people, distances_l2) in zip(queries, near, strict=True)
    ]
    owners, template_ids = directory.templates_of(_union(of_each).tolist())
    return LikelyPeople(of_each, owners, index.vectors_of(template_ids))


def _nearest_of_each(
    owners: IdArray, distances_l2: npt.NDArray[np.float64]
) -> tuple[IdArray, npt.NDArray[np.float64]]:
    """Return the owners of templates by rising distance, rising, and the distance to the first of each."""
    people, first = np.unique(owners, return_index=True)
    return people[people >= 0], distances_l2[first[people >= 0]]


def _with_others(
    index: TemplateIndex,
    directory: Directory,
    query: FloatArray,
    person: IdArray,
    distance_l2: npt.NDArray[np.float64],
) -> tuple[IdArray, npt.NDArray[np.float64]]:
    """Return a person and those who own the nearest templates of others, as `_nearest_of_each` does."""
    _, own = directory.templates_of(person.tolist())
    distances_l2, template_ids = index.search(query[None], CANDIDATE_NEIGHBOURS, exclude_ids=own)
    owners = np.concatenate([person, directory.people_of(template_ids)[0]])
    return _nearest_of_each(owners, np.concatenate([distance_l2, distances_l2[0]]))


def _likeliest(
    people: IdArray, distances_l2: npt.NDArray[np.float64], query: FloatArray, means: FloatArray
) -> IdArray:
    """Return the nearest of people (p,), rising, by distances to templates (p,) and their means (p, d)."""
    if len(people) <= MEASURED_PEOPLE:
        return people
    by_mean = np.sqrt(np.maximum(query @ query + 1 - 2 * (means @ query), 0))
    order = np.argsort(np.fmin(distances_l2, by_mean), kind="stable")
    return np.sort(people[order[:MEASURED_PEOPLE]])


def _union(ids: Sequence[IdArray]) -> IdArray:
    if len(ids) == 1:
        return ids[0]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *ids]))


def distances_to_people(
    query: FloatArray, templates: FloatArray, starts: IdArray, measure: PersonDistance
) -> npt.NDArray[np.float64]:
    """Euclidean distances (p,) of a unit vector (d,) to people.

    Args:
        query: The vector.
        templates: float32 (m, d), person by person.
        starts: int64 (p,), from 0, rising: the first row of each person.
        measure: What the distance to a person is.
    """
    exact, exact_query = templates.astype(np.float64), query.astype(np.float64)
    to_templates: npt.NDArray[np.float64] = np.linalg.norm(exact - exact_query, axis=1)
    nearest: npt.NDArray[np.float64] = np.minimum.reduceat(to_templates, starts)
    if measure is PersonDistance.NEAREST:
        return nearest
    sums = np.add.reduceat(exact, starts, axis=0)
    # Templates that cancel out have no direction: their mean is no unit vector, and equally far from all.
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    to_means: npt.NDArray[np.float64] = np.linalg.norm(means - exact_query, axis=1)
    return np.minimum(nearest, to_means)


def nearest_people(index: TemplateIndex, directory: Directory, queries: FloatArray) -> NearestPeople:
    """Return the two nearest people of each query float32 (n, d), by their nearest templates."""
    return _two_nearest(index, directory, queries, *_neighbours(index, directory, queries, _FIRST_NEIGHBOURS))


def people_by_distance(
    index: TemplateIndex, directory: Directory, query: FloatArray, count: int, measure: PersonDistance
) -> list[tuple[int, float]]:
    """Return the nearest people of a unit vector (d,): ids and Euclidean distances, rising, at most `count`.

    They are the owners of the nearest templates; means are computed for these.
    """
    neighbours = max(CANDIDATE_NEIGHBOURS, 2 * count)
    while True:
        _, owners = _neighbours(index, directory, query[None], neighbours)
        people = list(dict.fromkeys(owners[0].tolist()))
        if len(people) >= count or owners.shape[1] < neighbours:
            break
        neighbours *= 4
    if not people:
        return []
    template_owners, template_ids = directory.templates_of(people)
    ids, starts = np.unique(template_owners, return_index=True)
    distances_l2 = distances_to_people(query, index.vectors_of(template_ids), starts, measure)
    order = np.argsort(distances_l2, kind="stable")[:count]
    return [(int(ids[at]), float(distances_l2[at])) for at in order]


def _neighbours(
    index: TemplateIndex, directory: Directory, queries: FloatArray, count: int
) -> tuple[npt.NDArray[np.float64], IdArray]:
    """Distances and owners of the nearest templates, both (n, k)."""
    distances, template_ids = index.search(queries, count)
    return distances, directory.people_of(template_ids)


def _two_nearest(
    index: TemplateIndex,
    directory: Directory,
    queries: FloatArray,
    distances: npt.NDArray[np.float64],
    owners: IdArray,
) -> NearestPeople:
    """Return the two nearest people, given a query's neighbours.

    Where all neighbours are of one person, a second search leaves that person out.
    """
    n, found = len(queries), _nobody(len(queries))
    if not distances.size:
        return found
    found.first[:], found.first_l2[:] = owners[:, 0], distances[:, 0]
    _note_others(found, np.arange(n), owners, distances)
    alone = found.second < 0
    for person in np.unique(found.first[alone]).tolist():
        rows = np.flatnonzero((found.first == person) & alone)
        _, own = directory.templates_of([person])
        distances, template_ids = index.search(queries[rows], _FIRST_NEIGHBOURS, exclude_ids=own)
        _note_others(found, rows, directory.people_of(template_ids), distances)
    return found


def _nobody(n: int) -> NearestPeople:
    return NearestPeople(np.full(n, -1), np.full(n, np.inf), np.full(n, -1), np.full(n, np.inf))


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
