"""BCubed, by hand and by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.core.errors import DataError
from facepipe.evaluation.metrics.clustering import bcubed


@pytest.mark.parametrize(
    ("groups", "people", "precision", "recall"),
    [
        ([1, 1, 1], "aaa", 1, 1),
        ([1, 2, 3], "abc", 1, 1),
        ([1, 2, 3], "aaa", 1, 1 / 3),
        ([1, 1, 1], "abc", 1 / 3, 1),
        # Group 1 = a a b: precisions 2/3 2/3 1/3; group 2 = b: 1. Recalls: a 1 1, b 1/2 1/2.
        ([1, 1, 1, 2], "aabb", (2 / 3 + 2 / 3 + 1 / 3 + 1) / 4, (1 + 1 + 1 / 2 + 1 / 2) / 4),
        # Groups a a a b | b b | a: a's precision 3/4 three times and 1, its recall 3/4 thrice and 1/4.
        (
            [1, 1, 1, 1, 2, 2, 3],
            "aaabbba",
            (3 * 3 / 4 + 1 / 4 + 2 + 1) / 7,
            (3 * 3 / 4 + 1 / 3 + 2 * 2 / 3 + 1 / 4) / 7,
        ),
    ],
)
def test_by_hand(groups: list[int], people: str, precision: float, recall: float) -> None:
    found = bcubed(groups, list(people))
    assert found.precision == pytest.approx(precision)
    assert found.recall == pytest.approx(recall)
    assert found.f == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("seed", range(5))
def test_by_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, people = rng.integers(0, 6, 40), rng.integers(0, 9, 40)
    precisions, recalls = [], []
    for group, person in zip(groups, people, strict=True):
        both = np.count_nonzero((groups == group) & (people == person))
        precisions.append(both / np.count_nonzero(groups == group))
        recalls.append(both / np.count_nonzero(people == person))
    found = bcubed(groups.tolist(), people.tolist())
    assert (found.precision, found.recall) == pytest.approx((np.mean(precisions), np.mean(recalls)))


def test_counts_and_names_of_any_kind() -> None:
    found = bcubed(["x", "x", "y", None], ["Ada", "Ada", "Bob", "Eve"])
    assert (found.faces, found.people, found.groups) == (4, 3, 1)
    assert found.to_dict()["precision"] == 1.0


@pytest.mark.parametrize(("groups", "people"), [([], []), ([1], []), ([1], ["a", "b"])])
def test_labels_that_do_not_agree(groups: list[int], people: list[str]) -> None:
    with pytest.raises(DataError):
        bcubed(groups, people)
