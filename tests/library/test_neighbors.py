"""Neighbors found among vectors of which some changed are those found among all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facepipe.core.faces import FloatArray
from facepipe.library.face_columns import NONE
from facepipe.library.neighbors import Labeled, NearestTwo, NearPairs

DIMENSIONS = 8
STEPS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1)), min_size=1, max_size=5
)


def changed(random: np.random.Generator, before: Labeled, count: int) -> Labeled:
    """Some vectors of before, some other ones under their labels, some new ones, some gone."""
    labels = np.sort(random.choice(30, count, replace=False)).astype(np.int64) - 40
    vectors = unit(random, count)
    rows = before.rows_of(labels)
    kept = (rows != NONE) & (random.random(count) < 0.7)
    if kept.any():
        vectors[kept] = before.vectors[rows[kept]]
    return Labeled(labels, vectors)


def unit(random: np.random.Generator, count: int) -> FloatArray:
    vectors = random.normal(size=(count, DIMENSIONS)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def nothing() -> Labeled:
    return Labeled(np.zeros(0, np.int64), np.zeros((0, DIMENSIONS), np.float32))


@settings(max_examples=60, deadline=None)
@example([(8, 9, 971), (9, 9, 971)])
@given(STEPS)
def test_the_two_nearest_are_those_of_all(steps: list[tuple[int, int, int]]) -> None:
    nearest, asked, others = NearestTwo(), nothing(), nothing()
    for asked_count, other_count, seed in steps:
        random = np.random.default_rng(seed)
        asked, others = changed(random, asked, asked_count), changed(random, others, other_count)
        nearest.update(asked, others)
        cosines = np.full((asked_count, other_count + 2), -np.inf)
        cosines[:, :other_count] = asked.vectors @ others.vectors.T
        best = -np.sort(-cosines, axis=1)[:, :2].T
        np.testing.assert_allclose(nearest.cosines, best, atol=1e-5)
        assert np.array_equal(nearest.labels == NONE, np.isinf(best))
        columns = np.where(nearest.labels == NONE, other_count, others.rows_of(nearest.labels))
        of_labels = np.take_along_axis(cosines, columns.T, axis=1).T  # of equal vectors, any may be named
        np.testing.assert_allclose(of_labels, best, atol=1e-5)
        assert (nearest.labels[0] != nearest.labels[1])[nearest.labels[1] != NONE].all()


@settings(max_examples=60, deadline=None)
@given(STEPS, st.floats(-0.5, 0.9))
def test_near_pairs_are_those_of_all(steps: list[tuple[int, int, int]], least: float) -> None:
    pairs, vectors = NearPairs(), nothing()
    for count, _, seed in steps:
        vectors = changed(np.random.default_rng(seed), vectors, count)
        pairs.update(vectors, least)
        cosines = vectors.vectors @ vectors.vectors.T
        first, second = np.nonzero(np.triu(cosines >= least, 1))
        expected = {
            (int(vectors.labels[a]), int(vectors.labels[b])) for a, b in zip(first, second, strict=True)
        }
        found = {(int(a), int(b)) for a, b in pairs.labels}
        near_limit = np.abs(cosines - least).min(initial=1.0) < 1e-5
        assert found == expected or near_limit
        assert len(found) == len(pairs.labels)


def test_only_what_changed_is_compared_again() -> None:
    random = np.random.default_rng(0)
    asked, others = Labeled(np.arange(50), unit(random, 50)), Labeled(np.arange(40), unit(random, 40))
    nearest = NearestTwo()
    nearest.update(asked, others)
    before = nearest.cosines.copy()
    nearest.cosines = before + 1  # what was found before is believed
    nearest.update(asked, others)
    assert np.array_equal(nearest.cosines, before + 1)
