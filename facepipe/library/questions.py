"""What to ask about the faces of a library, the most useful question first.

A question is as useful as the number of faces that the answer is expected to settle per action: a click, or a
name chosen. Faces that are likely one person's are asked about at once, as many as raise that number: "are
these 23 faces all Ada?" takes one click for the yes, and one for each face that is taken out before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from facepipe.core.faces import BoolArray, FloatArray
from facepipe.library.crowd import (
    LikelyFaces,
    doubtful_names,
    l2_of,
    nearest_person,
    people_of,
    unknown_of,
)
from facepipe.library.face_columns import IntArray, columns_of
from facepipe.library.library import Library
from facepipe.library.likelihood import Float64Array, nearest_is_right, reach_l2, same_person_odds
from facepipe.library.neighbors import Labeled, NearestTwo, NearPairs

_MIN_PROBABILITY = 0.2
"""Faces less likely a person's are not shown with the others."""
_SAME_PERSON = 0.8
"""Two people less likely one are not asked about."""
_HIDDEN = 0.5
"""Faces more likely a hidden person's are not asked about."""
_STRANGERS = 0.3
"""A group of n faces is somebody whom the user would name with a probability of n / (n + this)."""
_MOST_FACES = 40
"""In one question, but for a group, which is shown whole."""
_SHOWN = 6
"""Faces of each of two people who may be one."""
_SPARE = 10
"""Questions of each kind beyond those wanted, in case that some are about the same faces."""
_NO_THRESHOLD_L2 = 1e-6
"""Of an encoder that was never measured: no faces but copies count as alike."""


class QuestionKind(Enum):
    """What is asked. The values are stable codes."""

    IS_PERSON = "is_person"
    """Are these faces this person? Each may be taken out before the others are confirmed."""
    SAME_PERSON = "same_person"
    """Are these two people, under two names, one?"""
    NAME_GROUP = "name_group"
    """Who is this group of nobody known? Each face may be taken out before the others get a name."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one or more faces.

    Attributes:
        id: Stays while the same is asked; what the user skipped is passed to `next_questions`.
        kind: What is asked.
        face_ids: Faces asked about, the likeliest or most typical first. `SAME_PERSON`: some of `name`.
        name: `IS_PERSON`, `SAME_PERSON`: the person. `NAME_GROUP`: who it may be; None: nobody near.
        other_name: `SAME_PERSON`: the other person. A no is kept as `Library.reject(face_ids, other_name)`.
        other_face_ids: `SAME_PERSON`: some of the other person.
        group: `NAME_GROUP`: number of the group; None: a single face that is in none.
        distance_l2: Of the faces to `name`; None: there is no name.
        runner_up: The next nearest person; None: there is none.
        runner_up_distance_l2: Of the faces to them.
        deciding_face_id: The face of `name` that the first face is nearest to.
    """

    id: str
    kind: QuestionKind
    face_ids: tuple[str, ...]
    name: str | None = None
    other_name: str | None = None
    other_face_ids: tuple[str, ...] = ()
    group: int | None = None
    distance_l2: float | None = None
    runner_up: str | None = None
    runner_up_distance_l2: float | None = None
    deciding_face_id: str | None = None


def next_questions(library: Library, count: int, skipped: Collection[str] = ()) -> list[Question]:
    """Return the most useful questions, at most `count`, no two about the same face or person.

    None is about people who are hidden, or about faces that are likely theirs.

    Args:
        library: Whose faces they are about; its names are to be up to date (`Library.name_again`).
        count: Largest number of questions.
        skipped: Ids of questions not to ask.
    """
    asker = _Asker(library)
    ranked = sorted(asker.best(count + _SPARE + len(skipped)), key=lambda rated: -rated.value)
    chosen: list[Question] = []
    used = set(skipped)
    for question in chain((rated.put() for rated in ranked), asker.single_faces()):
        if len(chosen) >= count:
            break
        subjects = _subjects(question)
        if not subjects & used:
            chosen.append(question)
            used |= subjects
    return chosen


def _subjects(question: Question) -> set[str]:
    """What no other question of a list may be about."""
    subjects = {question.id, *question.face_ids, *question.other_face_ids}
    if question.kind is not QuestionKind.NAME_GROUP:
        subjects |= {f"person {name}" for name in (question.name, question.other_name)}
    return subjects


@dataclass(frozen=True, slots=True)
class _Rated:
    """How many faces a question's answer is expected to settle per action, and how to put it."""

    value: float
    put: Callable[[], Question]


def _most_useful(gains: Float64Array, costs: Float64Array) -> tuple[IntArray, float]:
    """Choose the faces to ask about at once: those that raise the gain per action, one action and the costs.

    Returns:
        Their rows, the most useful first, and gain per action.
    """
    order = np.argsort(-gains / np.maximum(costs, 1e-9), kind="stable")
    if not len(order):
        return order, 0.0
    per_action = np.cumsum(gains[order]) / (1.0 + np.cumsum(costs[order]))
    best = int(np.argmax(per_action))
    return order[: best + 1], float(per_action[best])


@dataclass(frozen=True, slots=True, eq=False)
class _Memory:
    """What was compared for the last questions about a library."""

    nearest: NearestTwo = field(default_factory=NearestTwo)
    pairs: NearPairs = field(default_factory=NearPairs)


_MEMORIES: WeakKeyDictionary[Library, _Memory] = WeakKeyDictionary()


class _Asker:
    """Rates the questions of a library."""

    def __init__(self, library: Library) -> None:
        self._columns = columns_of(library)
        self._embeddings = library.embeddings
        self._threshold_l2 = library.gallery.encoder.threshold_l2 or _NO_THRESHOLD_L2
        self._people = people_of(self._columns, self._embeddings)
        self._unknown = unknown_of(self._columns, self._embeddings)
        memory = _MEMORIES.setdefault(library, _Memory())
        self._pairs = memory.pairs
        self._nearest = nearest_person(
            self._columns, self._unknown, self._people, self._threshold_l2, memory.nearest
        )
        self._named = doubtful_names(self._columns, self._threshold_l2)
        hidden = library.hidden_people()
        names = [self._columns.names[label] for label in self._people.labels.tolist()]
        self._is_hidden = np.array([name in hidden for name in names], np.bool_)

    def best(self, count: int) -> Iterator[_Rated]:
        """At most `count` questions of each kind, among them the best."""
        for person in self._promising_people(count).tolist():
            rated = self._is_person(person)
            if rated.value > 0:
                yield rated
        groups = np.flatnonzero((self._unknown.sizes > 1) & ~self._is_likely_hidden())
        for group in groups[np.argsort(-self._unknown.sizes[groups], kind="stable")][:count].tolist():
            size = int(self._unknown.sizes[group])
            yield _Rated(size * size / (size + _STRANGERS), partial(self._name_group, group))
        yield from self._same_people(count)

    def single_faces(self) -> Iterator[Question]:
        """Faces of nobody known that are in no group, those first that enrollment would take."""
        single = np.flatnonzero((self._unknown.sizes == 1) & ~self._is_likely_hidden())
        is_good = self._columns.is_enrollable[self._unknown.rows[self._unknown.starts[single]]]
        for bundle in single[np.argsort(~is_good, kind="stable")].tolist():
            yield self._name_group(bundle)

    def _is_likely_hidden(self) -> BoolArray:
        """bool (k,): unknown faces that are more likely a hidden person's than not."""
        is_likely = self._nearest.probability > _HIDDEN
        is_likely[is_likely] = self._is_hidden[self._nearest.person[is_likely]]
        return np.asarray(is_likely)

    def _promising_people(self, count: int) -> IntArray:
        """People of whom most faces wait to be confirmed or taken out."""
        near = np.flatnonzero(self._nearest.probability >= _MIN_PROBABILITY)
        gains = self._nearest.probability[near] * self._unknown.sizes[near]
        worth = np.bincount(self._nearest.person[near], gains, len(self._people))
        labels = self._columns.person[self._named.rows]
        doubts = np.bincount(labels, 1.0 - self._named.right, len(self._columns.names))
        worth = worth + doubts[self._people.labels]
        worth[self._is_hidden] = 0.0
        best = np.argsort(-worth, kind="stable")[:count]
        return np.asarray(best[worth[best] > 0])

    def _is_person(self, person: int) -> _Rated:
        """Rate asking about faces that are likely a person's, and those under the name that may not be."""
        likely, named = self._likely_faces_of(person), self._doubtful_faces_of(person)
        rows = np.concatenate([likely.rows, named.rows])
        right = np.concatenate([likely.right, named.right])
        gains = np.concatenate([likely.right, 1.0 - named.right])
        chosen, value = _most_useful(gains, 1.0 - right)
        chosen = chosen[:_MOST_FACES]
        rows = rows[chosen[np.argsort(-right[chosen], kind="stable")]]
        return _Rated(value, partial(self._is_person_question, person, rows))

    def _is_person_question(self, person: int, rows: IntArray) -> Question:
        name, face_ids = self._name(person), self._ids(rows)
        id = f"{QuestionKind.IS_PERSON.value} {face_ids[0]} {name}"
        return Question(id, QuestionKind.IS_PERSON, face_ids, name, **self._reasons(rows[0], person))

    def _likely_faces_of(self, person: int) -> LikelyFaces:
        """Faces without a name that may be a person's, and were not said not to be."""
        is_near = (self._nearest.person == person) & (self._nearest.probability >= _MIN_PROBABILITY)
        photos = self._columns.photo[self._columns.person == self._people.labels[person]]
        likely = self._of_bundles(np.flatnonzero(is_near), self._nearest.probability[is_near])
        likely = likely.once_a_photo(self._columns, photos)
        return likely.only(~self._is_rejected(likely.rows, self._name(person)))

    def _doubtful_faces_of(self, person: int) -> LikelyFaces:
        """Faces under a person's name that nobody confirmed."""
        is_own = self._columns.person[self._named.rows] == self._people.labels[person]
        return LikelyFaces(self._named.rows[is_own], self._named.right[is_own])

    def _name_group(self, bundle: int) -> Question:
        """Ask who a group of nobody known is, or a single face; offer the nearest person's name."""
        rows = self._most_typical(self._unknown.members(bundle), self._unknown.means[bundle])
        group = int(self._unknown.labels[bundle]) if len(rows) > 1 else None
        id = f"{QuestionKind.NAME_GROUP.value} {self._columns.faces[rows[0]].id if group is None else group}"
        reasons = {}
        person = int(self._nearest.person[bundle])
        if self._nearest.probability[bundle] >= _MIN_PROBABILITY and not self._is_hidden[person]:
            reasons = {"name": self._name(person), **self._reasons(rows[0], person)}
        return Question(id, QuestionKind.NAME_GROUP, self._ids(rows), group=group, **reasons)

    def _of_bundles(self, bundles: IntArray, probability: Float64Array) -> LikelyFaces:
        """The faces of bundles of unknown faces, those of the likeliest bundle first."""
        order = np.argsort(-probability, kind="stable")
        rows = [np.zeros(0, np.int64), *(self._unknown.members(bundle) for bundle in bundles[order].tolist())]
        sizes = self._unknown.sizes[bundles[order]]
        return LikelyFaces(np.concatenate(rows), np.repeat(probability[order], sizes))

    def _is_rejected(self, rows: IntArray, name: str) -> BoolArray:
        decisions = (self._columns.faces[row].decision for row in rows.tolist())
        return np.array([each is not None and name in each.not_names for each in decisions], np.bool_)

    def _same_people(self, count: int) -> Iterator[_Rated]:
        """Pairs of people who look alike, were never seen in one photo, and were not told apart."""
        sizes = self._people.sizes
        people = Labeled(self._people.labels, self._people.means)
        self._pairs.update(people, 1.0 - reach_l2(_SAME_PERSON, self._threshold_l2) ** 2 / 2)
        first, second = people.rows_of(self._pairs.labels).T
        distances_l2 = l2_of(self._pairs.cosines)
        odds = same_person_odds(distances_l2, self._threshold_l2, sizes[first], sizes[second])
        probability = nearest_is_right(odds, 0.0)
        is_hidden = self._is_hidden[first] | self._is_hidden[second]
        pairs = np.flatnonzero((probability >= _SAME_PERSON) & ~is_hidden)
        for pair in pairs[np.argsort(-probability[pairs], kind="stable")][:count].tolist():
            small, large = sorted((int(first[pair]), int(second[pair])), key=lambda person: sizes[person])
            if self._may_be_one(small, large):
                put = partial(self._same_person_question, small, large, float(distances_l2[pair]))
                yield _Rated(float(probability[pair]), put)

    def _may_be_one(self, small: int, large: int) -> bool:
        rows, other_rows = self._people.members(small), self._people.members(large)
        photos = self._columns.photo
        in_one_photo = np.isin(photos[rows], photos[other_rows]).any()
        told_apart = (
            *self._is_rejected(rows, self._name(large)),
            *self._is_rejected(other_rows, self._name(small)),
        )
        return not in_one_photo and not any(told_apart)

    def _same_person_question(self, small: int, large: int, distance_l2: float) -> Question:
        face_ids, other_face_ids = (
            self._ids(self._most_typical(self._people.members(person), self._people.means[person])[:_SHOWN])
            for person in (small, large)
        )
        name, other_name = self._name(small), self._name(large)
        id = f"{QuestionKind.SAME_PERSON.value} {len(name)} {name} {other_name}"
        return Question(
            id, QuestionKind.SAME_PERSON, face_ids, name, other_name, other_face_ids, distance_l2=distance_l2
        )

    def _most_typical(self, rows: IntArray, mean: FloatArray) -> IntArray:
        """The faces, the nearest to a mean first."""
        cosines = self._embeddings[self._columns.embedding_row[rows]] @ mean
        return np.asarray(rows[np.argsort(-cosines, kind="stable")])

    def _reasons(self, row: np.int64, person: int) -> dict[str, Any]:
        """Distances of a face to a person and to the next; the person's face that is nearest to it."""
        vector = self._embeddings[self._columns.embedding_row[row]]
        distances_l2 = l2_of(self._people.means @ vector)
        others = np.where(np.arange(len(distances_l2)) == person, np.inf, distances_l2)
        other, own = int(np.argmin(others)), self._people.members(person)
        own = own[own != row]
        nearest = (
            own[np.argmax(self._embeddings[self._columns.embedding_row[own]] @ vector)] if len(own) else None
        )
        has_other = bool(np.isfinite(others[other]))
        return {
            "distance_l2": float(distances_l2[person]),
            "runner_up": self._name(other) if has_other else None,
            "runner_up_distance_l2": float(others[other]) if has_other else None,
            "deciding_face_id": None if nearest is None else self._columns.faces[nearest].id,
        }

    def _name(self, person: int) -> str:
        return self._columns.names[int(self._people.labels[person])]

    def _ids(self, rows: IntArray) -> tuple[str, ...]:
        return tuple(self._columns.faces[row].id for row in rows.tolist())
