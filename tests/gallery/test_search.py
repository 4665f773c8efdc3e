"""The nearest people of a face, against brute force; people who must be new, or known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates, unit

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.names import NameTakenError, UnknownPersonError
from facepipe.gallery.ranking import PersonDistance


@pytest.mark.parametrize("measure", list(PersonDistance))
@pytest.mark.parametrize("count", [1, 3, 50])
def test_search_gives_the_nearest_people(tmp_path: Path, measure: PersonDistance, count: int) -> None:
    people = {f"person {seed}": person_vectors(seed, 1 + 40 * (seed % 5 == 0), 0.3) for seed in range(12)}
    queries = unit(np.random.default_rng(0).normal(size=(4, ENCODER.dimensions)))
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        assert gallery.search(queries, count, measure) == [[], [], [], []]
        for name, vectors in people.items():
            gallery.add(name, templates(vectors))
        found = gallery.search(queries, count, measure)
    for query, near in zip(queries, found, strict=True):
        expected = {name: np.linalg.norm(vectors - query, axis=1).min() for name, vectors in people.items()}
        if measure is PersonDistance.NEAREST_OR_MEAN:
            means = {name: unit(vectors.mean(axis=0, keepdims=True))[0] for name, vectors in people.items()}
            expected = {name: min(expected[name], np.linalg.norm(means[name] - query)) for name in people}
        nearest = sorted(expected.values())[:count]
        assert [person.distance_l2 for person in near] == pytest.approx(nearest, abs=1e-6)
        assert [person.distance_l2 for person in near] == pytest.approx(
            [expected[person.name] for person in near], abs=1e-6
        )


def test_search_takes_vectors_of_the_encoder_only(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery, pytest.raises(GalleryError, match="search"):
        gallery.search(np.zeros((1, ENCODER.dimensions), np.float32), 1)


def test_a_person_must_be_new_or_known_where_that_is_asked(tmp_path: Path) -> None:
    faces = templates(person_vectors(1, 3))
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        with pytest.raises(UnknownPersonError):
            gallery.add("Ada", faces[:1], known=True)
        assert gallery.people() == []
        gallery.add("Ada", faces[:1], known=False)
        gallery.add("Ada", faces[1:2], known=True)
        with pytest.raises(NameTakenError):
            gallery.add("Ada", faces[2:], known=False)
        assert [person.template_count for person in gallery.people()] == [2]
