"""Nearest neighbors among thousands of vectors of which few change: only those are compared again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from facepipe.core.faces import BoolArray, FloatArray
from facepipe.library.face_columns import NONE, IntArray

_TELLING = 8
"""Components that tell vectors apart: means of other faces differ in each of them."""
_ROWS_AT_ONCE = 1024
"""Of a matrix of cosines: 40 MB for 10,000 vectors."""


@dataclass(frozen=True, slots=True, eq=False)
class Labeled:
    """Vectors with labels that say which are the same at another time.

    Attributes:
        labels: int64 (n,), rising, none twice, none of them `NONE`.
        vectors: float32 (n, d), of unit length.
    """

    labels: IntArray
    vectors: FloatArray

    def __len__(self) -> int:
        return len(self.labels)

    def rows_of(self, labels: IntArray) -> IntArray:
        """Rows of labels; `NONE` where there is none."""
        if not len(self):
            return np.full(labels.shape, NONE)
        rows = np.minimum(np.searchsorted(self.labels, labels), len(self) - 1)
        return np.where(self.labels[rows] == labels, rows, NONE)

    def is_as_in(self, before: Labeled) -> BoolArray:
        """bool (n,): the vector had this label before; told by its first components, to the last bit."""
        rows = before.rows_of(self.labels)
        same = np.zeros(len(self), np.bool_)
        there = np.flatnonzero(rows != NONE)
        if len(there):
            then, now = before.vectors[rows[there], :_TELLING], self.vectors[there, :_TELLING]
            same[there] = (then == now).all(axis=1)
        return same


def _nothing() -> Labeled:
    return Labeled(np.zeros(0, np.int64), np.zeros((0, 0), np.float32))


@dataclass(slots=True, eq=False)
class NearestTwo:
    """The two nearest of some vectors, for each of others.

    Attributes:
        labels: int64 (2, m): of the nearest and the next; `NONE` where there are too few.
        cosines: float32 (2, m): of them; minus infinity where there is none.
    """

    labels: IntArray = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    cosines: FloatArray = field(default_factory=lambda: np.zeros((2, 0), np.float32))
    _asked: Labeled = field(default_factory=_nothing)
    _others: Labeled = field(default_factory=_nothing)

    def update(self, asked: Labeled, others: Labeled) -> None:
        """Find the nearest of `others`, n, for each of `asked`, m; those found before are used."""
        is_old = others.is_as_in(self._others)
        rows = self._asked.rows_of(asked.labels)
        is_known = asked.is_as_in(self._asked)
        labels = np.full((2, len(asked)), NONE)
        cosines = np.full((2, len(asked)), -np.inf, np.float32)
        labels[:, is_known] = self.labels[:, rows[is_known]]
        cosines[:, is_known] = self.cosines[:, rows[is_known]]
        found = others.rows_of(labels)
        is_lost = (labels != NONE) & ~((found != NONE) & np.append(is_old, False)[found])
        is_known &= ~is_lost.any(axis=0)
        labels[:, ~is_known], cosines[:, ~is_known] = NONE, -np.inf
        for known, compared in ((True, ~is_old), (False, np.ones(len(others), np.bool_))):
            chosen, columns = np.flatnonzero(is_known == known), np.flatnonzero(compared)
            for at in range(0, len(chosen) if len(columns) else 0, _ROWS_AT_ONCE):
                part = chosen[at : at + _ROWS_AT_ONCE]
                near = asked.vectors[part] @ others.vectors[columns].T
                _merge(labels, cosines, part, others.labels[columns], near)
        self.labels, self.cosines, self._asked, self._others = labels, cosines, asked, others


def _merge(
    labels: IntArray, cosines: FloatArray, part: IntArray, new_labels: IntArray, new_cosines: FloatArray
) -> None:
    """Put the nearest of new vectors, cosines (m, n), among the two nearest of rows that are known."""
    each = np.arange(len(part))
    for _ in range(2):
        best = new_cosines.argmax(axis=1)
        label, cosine = new_labels[best], new_cosines[each, best]
        new_cosines[each, best] = -np.inf
        for place in range(2):  # what is nearer moves the other on
            held_label, held = labels[place, part], cosines[place, part]
            nearer = cosine > held
            labels[place, part] = np.where(nearer, label, held_label)
            cosines[place, part] = np.where(nearer, cosine, held)
            label, cosine = np.where(nearer, held_label, label), np.where(nearer, held, cosine)


@dataclass(slots=True, eq=False)
class NearPairs:
    """Pairs of vectors that are near each other.

    Attributes:
        labels: int64 (k, 2): of each pair, the lower one first.
        cosines: float32 (k,).
    """

    labels: IntArray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    cosines: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    _vectors: Labeled = field(default_factory=_nothing)
    _least: float = np.inf

    def update(self, vectors: Labeled, least_cosine: float) -> None:
        """Find the pairs with at least this cosine; those found before are used."""
        is_old = vectors.is_as_in(self._vectors if least_cosine == self._least else _nothing())
        rows = vectors.rows_of(self.labels)
        kept = (rows != NONE).all(axis=1) & np.append(is_old, False)[rows].all(axis=1)
        labels, cosines = [self.labels[kept]], [self.cosines[kept]]
        new = np.flatnonzero(~is_old)
        for at in range(0, len(new), _ROWS_AT_ONCE):
            part = new[at : at + _ROWS_AT_ONCE]
            near = vectors.vectors[part] @ vectors.vectors.T
            first, second = np.nonzero(near >= least_cosine)
            found = near[first, second]
            first = part[first]
            once = (first != second) & (is_old[second] | (first < second))
            pairs = np.sort(np.stack([first[once], second[once]], axis=1), axis=1)
            labels.append(vectors.labels[pairs])
            cosines.append(found[once])
        self.labels, self.cosines = np.concatenate(labels), np.concatenate(cosines)
        self._vectors, self._least = vectors, least_cosine
