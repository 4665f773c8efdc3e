"""Which of a person's confirmed faces become templates."""

from __future__ import annotations

import numpy as np
from gallery_helpers import person_vectors
from hypothesis import given
from hypothesis import strategies as st

from facepipe.library.templates import MAX_TEMPLATES, useful_templates

seeds = st.integers(0, 1000)
counts = st.integers(0, 60)


@given(seeds, counts, st.integers(0, 40), st.floats(0, 1.5))
def test_chosen_faces_are_few_different_and_far_from_each_other(
    seed: int, count: int, limit: int, redundant_l2: float
) -> None:
    vectors, weights = _faces(seed, count)
    rows = useful_templates(vectors, weights, limit, redundant_l2)
    assert len(rows) <= min(limit, count)
    assert len(set(rows.tolist())) == len(rows)
    assert (weights[rows] > 0).all()
    distances = np.linalg.norm(vectors[rows][:, None] - vectors[rows], axis=2) + 3 * np.eye(len(rows))
    assert (distances > redundant_l2 - 1e-6).all()


@given(seeds, counts, st.floats(0, 1.5))
def test_faces_set_aside_are_near_a_template(seed: int, count: int, redundant_l2: float) -> None:
    vectors, weights = _faces(seed, count)
    rows = useful_templates(vectors, weights, count, redundant_l2)
    usable = vectors[weights > 0]
    if len(usable):
        nearest_l2 = np.linalg.norm(usable[:, None] - vectors[rows], axis=2).min(axis=1)
        assert (nearest_l2 <= redundant_l2 + 1e-6).all()


@given(seeds, st.integers(1, 40))
def test_a_larger_limit_only_adds(seed: int, count: int) -> None:
    vectors, weights = _faces(seed, count)
    few, many = (useful_templates(vectors, weights, limit, 0.1) for limit in (3, MAX_TEMPLATES))
    assert few.tolist() == many[: len(few)].tolist()


def test_the_most_typical_face_is_first_and_the_farthest_second() -> None:
    angles = np.array([0.0, 0.1, 0.2, 0.3, 1.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert useful_templates(vectors, np.ones(5, np.float32)).tolist() == [3, 4]


def test_copies_of_a_face_are_one_template() -> None:
    vectors = np.repeat(person_vectors(1, 1, 0.0), 20, axis=0)
    assert len(useful_templates(vectors, np.ones(20, np.float32), redundant_l2=0.0)) == 1


def _faces(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    weights = random.uniform(-0.3, 1, count).clip(0).astype(np.float32)
    return person_vectors(seed, count, 0.06), weights
