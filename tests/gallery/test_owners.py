"""The directory of templates in memory, beside one that is made anew after every change."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.gallery.search.owners import Owners


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_lead_to_the_same_as_starting_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    owners, truth, last = Owners(), dict[int, int](), 0
    for _ in range(30):
        added = rng.integers(0, 8, rng.integers(0, 12))
        ids = last + 1 + np.arange(len(added))
        last += len(added)
        owners.add(ids, added)
        truth.update(zip(ids.tolist(), added.tolist(), strict=True))
        removed = rng.integers(0, last + 3, 4)
        owners.remove(removed)
        for id in removed.tolist():
            truth.pop(id, None)
        _move_some(owners, truth, rng)
        _require_same(owners, truth, last)


def _move_some(owners: Owners, truth: dict[int, int], rng: np.random.Generator) -> None:
    one, other = rng.integers(0, 8, 2).tolist()
    for id, person in truth.items():
        if person == one and rng.random() < 0.5:
            truth[id] = other
    rows = sorted((person, id) for id, person in truth.items() if person in (one, other))
    people, ids = np.array(rows, np.int64).reshape(-1, 2).T
    owners.set_templates({one, other}, people, ids)


def _require_same(owners: Owners, truth: dict[int, int], last: int) -> None:
    asked = np.arange(last + 3).reshape(1, -1)
    assert owners.people_of(asked).tolist() == [[truth.get(id, -1) for id in asked[0].tolist()]]
    people, ids = owners.templates_of([3, 1, 9, 1])
    assert list(zip(people, ids, strict=True)) == sorted(
        (person, id) for id, person in truth.items() if person in (1, 3)
    )
