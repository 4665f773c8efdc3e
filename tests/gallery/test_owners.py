"""The directory of templates in memory, beside one that is made anew after every change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.search.owners import Owners

VECTORS = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)


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
    rows = [(id, person) for id, person in truth.items() if person in (one, other)]
    ids, people = np.array([*rows, (10_000, one)], np.int64).T
    owners.move(ids, people)


def _require_same(owners: Owners, truth: dict[int, int], last: int) -> None:
    asked = np.arange(last + 3).reshape(1, -1)
    assert owners.people_of(asked).tolist() == [[truth.get(id, -1) for id in asked[0].tolist()]]
    people, ids = owners.templates_of([3, 1, 9, 1])
    assert list(zip(people, ids, strict=True)) == sorted(
        (person, id) for id, person in truth.items() if person in (1, 3)
    )
    everybody = np.unique(list(truth.values())).astype(np.int64)
    means = owners.means_of(everybody, lambda ids: VECTORS[ids])
    for person, mean in zip(everybody.tolist(), means, strict=True):
        own = VECTORS[[id for id, owner in truth.items() if owner == person]].mean(axis=0)
        expected = own / np.linalg.norm(own) if list(truth.values()).count(person) > 1 else np.full(8, np.nan)
        np.testing.assert_allclose(mean, expected, atol=1e-3)


def test_means_are_computed_of_what_has_changed() -> None:
    asked = list[int]()

    def vectors_of(ids: IdArray) -> FloatArray:
        asked.extend(ids.tolist())
        return VECTORS[ids]

    owners = Owners()
    owners.add(np.arange(1, 7), np.array([1, 1, 2, 2, 3, 3]))
    changes: list[tuple[Callable[[], object], set[int]]] = [
        (lambda: None, {1, 2, 3, 4, 5, 6}),
        (lambda: None, set()),
        (lambda: owners.remove(np.array([77])), set()),
        (lambda: owners.move(np.array([4]), np.array([3])), {4, 5, 6}),
        (lambda: owners.add(np.array([7]), np.array([1])), {1, 2, 7}),
        (lambda: owners.remove(np.array([1])), {2, 7}),
    ]
    for change, read in changes:
        asked.clear()
        change()
        owners.means_of(np.array([1, 3]), vectors_of)
        assert set(asked) == read


# In a gallery


CHANGES: list[Callable[[Gallery], object]] = [
    lambda g: g.add("person 1", templates(person_vectors(50, 3))),
    lambda g: g.add("newcomer", templates(person_vectors(9, 3))),
    lambda g: g.merge("person 2", "person 3"),
    lambda g: g.move_templates([g.templates("person 4")[1].id], "person 5"),
    lambda g: g.move_templates([g.templates("person 4")[0].id], "nobody yet"),
    lambda g: g.remove_templates([g.templates("person 6")[0].id]),
    lambda g: g.remove("person 1"),
    lambda g: g.add("person 1", templates(person_vectors(1, 4))),
]


def test_an_open_gallery_follows_whose_faces_are_whose(tmp_path: Path) -> None:
    """Both who changed it and who had it open answer as who opens it anew."""
    asked = np.concatenate([person_vectors(person, 5)[-1:] for person in range(10)])
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery, Gallery.open(tmp_path, ENCODER) as follower:
        for person in range(9):
            gallery.add(f"person {person}", templates(person_vectors(person, 4)))
        for change in CHANGES:
            for opened in (gallery, follower):
                for _ in range(2):
                    opened.match(asked)
            change(gallery)
            with Gallery.open(tmp_path, ENCODER) as anew:
                expected = anew.match(asked, threshold_l2=2.0), anew.search(asked[:2], 12)
            for opened in (gallery, follower):
                assert (opened.match(asked, threshold_l2=2.0), opened.search(asked[:2], 12)) == expected


def test_an_id_that_is_no_number_is_damage(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 4)))
    with closing(sqlite3.connect(tmp_path / "gallery.sqlite3")) as connection:
        connection.execute("UPDATE templates SET person_id = 'x' WHERE id = 2")
        connection.commit()
    with Gallery.open(tmp_path, ENCODER) as gallery:
        for _ in range(3):
            with pytest.raises(GalleryError, match="a stored id is damaged"):
                gallery.match(person_vectors(1, 1))
