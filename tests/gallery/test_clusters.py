"""Groups of unknown faces: one a person, and never two people for the sake of fewer groups."""

from __future__ import annotations

import numpy as np
import pytest
from gallery_helpers import person_vectors
from scipy.cluster.hierarchy import fcluster, linkage

from facepipe.core.faces import FloatArray
from facepipe.gallery import clustering as clusters
from facepipe.gallery.clustering import group_faces

Labels = np.typing.NDArray[np.int64]


def crowd(people: int, photos: int, spread: float = 0.05) -> tuple[FloatArray, Labels]:
    """Vectors, shuffled, and whose they are."""
    vectors = np.concatenate([person_vectors(seed, photos, spread) for seed in range(people)])
    order = np.random.default_rng(0).permutation(len(vectors))
    return vectors[order], np.repeat(np.arange(people), photos)[order]


def no_photos(vectors: FloatArray) -> list[str | None]:
    return [None] * len(vectors)


def same_groups(first: Labels, second: Labels) -> bool:
    return bool(np.array_equal(first[:, None] == first, second[:, None] == second))


def test_people_far_apart_are_found_exactly() -> None:
    vectors, people = crowd(20, 6)
    labels = group_faces(vectors, no_photos(vectors), 0.95)
    assert same_groups(labels, people)
    for label in np.unique(labels):
        assert label == np.flatnonzero(labels == label).min()


@pytest.mark.parametrize("limit", [0.3, 0.6, 0.75, 0.9, 1.3])
def test_taking_the_graph_apart_changes_nothing(limit: float) -> None:
    """Against average linkage of everybody at once."""
    vectors, _ = crowd(15, 8, spread=0.06)
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors, axis=2)
    whole = fcluster(linkage(distances[np.triu_indices(len(vectors), 1)], "average"), limit, "distance")
    assert same_groups(group_faces(vectors, no_photos(vectors), limit), whole)


def chain() -> FloatArray:
    """Unit vectors on a circle, each 0.2 radians from the next: everybody is near somebody."""
    vectors = np.zeros((12, 128), np.float32)
    angles = 0.2 * np.arange(12)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    return vectors


def test_a_chain_of_look_alikes_is_no_one_person() -> None:
    labels = group_faces(chain(), no_photos(chain()), 0.5)
    assert len(np.unique(labels)) > 2
    for label in np.unique(labels):
        assert np.ptp(np.flatnonzero(labels == label)) <= 4


def test_faces_of_one_photo_are_different_people() -> None:
    twins = person_vectors(1, 2, spread=0.02)
    assert group_faces(twins, [None, None], 0.9).tolist() == [0, 0]
    assert group_faces(twins, ["a", "b"], 0.9).tolist() == [0, 0]
    assert group_faces(twins, ["a", "a"], 0.9).tolist() == [0, 1]


def test_no_group_has_two_faces_of_a_photo() -> None:
    """Two people in six photos, as near to each other as photos of one of them are."""
    vectors = person_vectors(1, 12, spread=0.04)
    photos: list[str | None] = [f"photo {row // 2}" for row in range(12)]
    labels = group_faces(vectors, photos, 0.8)
    assert len(np.unique(group_faces(vectors, no_photos(vectors), 0.8))) == 1
    for label in np.unique(labels):
        inside = [photos[row] for row in np.flatnonzero(labels == label)]
        assert len(set(inside)) == len(inside)
    assert len(np.unique(labels)) < 6


def test_parts_too_large_for_memory_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, people = crowd(10, 8)
    monkeypatch.setattr(clusters, "_LARGEST_PART", 30)
    labels = group_faces(vectors, no_photos(vectors), 1.35)  # Everybody is connected at that.
    for label in np.unique(labels):
        assert len(np.unique(people[labels == label])) <= 2
    assert len(np.unique(labels)) < len(labels) / 2
    copies = np.repeat(vectors[:1], 50, axis=0)
    assert np.bincount(group_faces(copies, no_photos(copies), 0.5)).max() == 30


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_faces(count: int) -> None:
    vectors = person_vectors(1, 2)[:count]
    assert len(group_faces(vectors, no_photos(vectors), 0.9)) == count


def test_the_order_of_faces_does_not_matter() -> None:
    vectors, _ = crowd(12, 5, spread=0.07)
    order = np.random.default_rng(1).permutation(len(vectors))
    first = group_faces(vectors, no_photos(vectors), 0.9)
    second = group_faces(vectors[order], no_photos(vectors), 0.9)
    assert same_groups(first[order], second)
