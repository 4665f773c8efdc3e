"""Names for faces, against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates, unit

from facepipe.errors import UsageError
from facepipe.faces import FloatArray, Match
from gallery import Gallery, NewTemplate


def brute_force(
    people: dict[str, FloatArray], queries: FloatArray, threshold_l2: float, one_person_per_photo: bool
) -> list[Match]:
    """The slow and plain way: all distances, per person the least, two best people, one face each."""
    names = list(people)
    distances = np.array(
        [
            [
                np.linalg.norm(people[name].astype(np.float64) - query.astype(np.float64), axis=1).min()
                for name in names
            ]
            for query in queries
        ]
    )
    answers = []
    for row in distances:
        first, second = np.argsort(row, kind="stable")[:2]
        name = names[first] if row[first] <= threshold_l2 else None
        rival = one_person_per_photo and any(
            other[first] < row[first] and other.argmin() == first for other in distances
        )
        answers.append(Match(None if rival else name, row[first], threshold_l2, names[second], row[second]))
    return answers


@pytest.mark.parametrize("one_person_per_photo", [True, False])
@pytest.mark.parametrize("query_count", [1, 7, 60])  # FAISS computes batches from 20 on in another way.
@pytest.mark.parametrize("threshold_l2", [0.0, 0.75, 0.9, 5.0])
def test_agrees_with_brute_force(
    tmp_path: Path, one_person_per_photo: bool, query_count: int, threshold_l2: float
) -> None:
    rng = np.random.default_rng(query_count)
    # Some people with many templates, so that the nearest 16 are all of one person.
    people = {f"person {i:02}": person_vectors(i, 40 if i % 3 == 0 else 3, spread=0.06) for i in range(20)}
    queries = unit(
        np.stack(
            [
                people[f"person {rng.integers(20):02}"][0] + 0.04 * rng.normal(size=128)
                for _ in range(query_count)
            ]
        )
    )
    queries[0] = people["person 00"][5]  # At no distance at all.
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        for name, vectors in people.items():
            gallery.add(name, templates(vectors))
        matches = gallery.match(queries, threshold_l2=threshold_l2, one_person_per_photo=one_person_per_photo)
    expected = brute_force(people, queries, threshold_l2, one_person_per_photo)
    assert [(m.name, m.runner_up_name, m.threshold_l2) for m in matches] == [
        (m.name, m.runner_up_name, m.threshold_l2) for m in expected
    ]
    np.testing.assert_allclose(
        np.array([(m.distance_l2, m.runner_up_distance_l2) for m in matches], np.float64),
        np.array([(m.distance_l2, m.runner_up_distance_l2) for m in expected], np.float64),
        rtol=0,
        atol=1e-12,
    )
    assert matches[0].distance_l2 == 0.0


def at_distance(origin: FloatArray, distance_l2: float, seed: int = 0) -> FloatArray:
    """A unit vector at this Euclidean distance from the unit vector `origin`."""
    cosine = 1 - distance_l2**2 / 2
    sideways = np.random.default_rng(seed).normal(size=128)
    sideways -= sideways @ origin * origin
    sideways /= np.linalg.norm(sideways)
    return unit(cosine * origin + np.sqrt(1 - cosine**2) * sideways)


KnowsAda = tuple[Gallery, FloatArray]


@pytest.fixture
def ada(tmp_path: Path) -> Iterator[KnowsAda]:
    """A gallery with one template of Ada, and the template."""
    vector = person_vectors(1, 1)[0]
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(vector[None]))
        yield gallery, vector


def test_distances_are_euclidean_not_squared(ada: KnowsAda) -> None:
    gallery, vector = ada
    (match,) = gallery.match(at_distance(vector, 0.6)[None])
    assert match.distance_l2 == pytest.approx(0.6, abs=1e-6)


def test_the_threshold_is_the_encoders_unless_given(ada: KnowsAda) -> None:
    gallery, vector = ada
    queries = np.stack([at_distance(vector, 0.99), at_distance(vector, 1.01)])
    assert [m.name for m in gallery.match(queries)] == ["Ada", None]
    assert [m.threshold_l2 for m in gallery.match(queries)] == [ENCODER.threshold_l2] * 2
    assert [m.name for m in gallery.match(queries, threshold_l2=0.9)] == [None, None]
    assert gallery.match(queries)[1].distance_l2 == pytest.approx(1.01, abs=1e-6)


def test_a_distance_equal_to_the_threshold_is_accepted(ada: KnowsAda) -> None:
    gallery, vector = ada
    query = at_distance(vector, 0.5)[None]
    distance = gallery.match(query)[0].distance_l2
    assert distance is not None
    assert gallery.match(query, threshold_l2=distance)[0].name == "Ada"
    assert gallery.match(query, threshold_l2=np.nextafter(distance, 0))[0].name is None


@pytest.mark.parametrize("threshold_l2", [-0.1, float("nan"), float("inf")])
def test_thresholds_that_make_no_sense(ada: KnowsAda, threshold_l2: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ada[0].match(ada[1][None], threshold_l2=threshold_l2)


def test_one_person_has_no_runner_up(ada: KnowsAda) -> None:
    gallery, vector = ada
    (match,) = gallery.match(vector[None])
    assert (match.runner_up_name, match.runner_up_distance_l2) == (None, None)


def test_an_empty_gallery_knows_nobody(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        assert gallery.match(person_vectors(1, 2)) == (Match(None, None, 1.0), Match(None, None, 1.0))


def test_no_faces_no_answers(ada: KnowsAda) -> None:
    assert ada[0].match(np.zeros((0, 128), np.float32)) == ()


def test_a_person_is_given_to_the_nearest_face_only(ada: KnowsAda) -> None:
    gallery, vector = ada
    queries = np.stack([at_distance(vector, d) for d in (0.5, 0.3, 0.4)])
    assert [m.name for m in gallery.match(queries)] == [None, "Ada", None]
    assert [m.name for m in gallery.match(queries, one_person_per_photo=False)] == ["Ada"] * 3


def test_of_two_equal_faces_the_first_is_named(ada: KnowsAda) -> None:
    gallery, vector = ada
    assert [m.name for m in gallery.match(np.stack([vector, vector]))] == ["Ada", None]


def test_a_face_that_lost_its_person_is_not_named_as_a_farther_one(ada: KnowsAda) -> None:
    gallery, vector = ada
    query = at_distance(vector, 0.3)
    gallery.add("Bob", templates(at_distance(query, 0.5, seed=9)[None]))
    loser = gallery.match(np.stack([vector, query]))[1]
    assert loser.runner_up_name == "Bob"
    assert loser.runner_up_distance_l2 is not None
    assert loser.runner_up_distance_l2 < ENCODER.threshold_l2
    assert loser.name is None


def test_what_was_removed_is_not_matched(tmp_path: Path) -> None:
    people = {name: person_vectors(seed, 4) for seed, name in enumerate(["Ada", "Bob", "Eve"])}
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        for name, vectors in people.items():
            gallery.add(name, templates(vectors))
        assert gallery.match(people["Bob"][:1])[0].name == "Bob"
        gallery.remove("Bob")
        match = gallery.match(people["Bob"][:1])[0]
        assert match.name is None
        assert {match.runner_up_name} <= {"Ada", "Eve"}
        assert gallery.match(people["Eve"][:1])[0].name == "Eve"


@pytest.mark.parametrize(("margin", "name"), [(0.0, "Ada"), (0.05, "Ada"), (0.2, None)])
def test_a_face_between_two_people_is_nobodys(tmp_path: Path, margin: float, name: str | None) -> None:
    def on_circle(angle: float) -> FloatArray:
        vector = np.zeros(ENCODER.dimensions, np.float32)
        vector[:2] = np.cos(angle), np.sin(angle)
        return vector

    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [NewTemplate(on_circle(0.0))])
        gallery.add("Bob", [NewTemplate(on_circle(1.0))])
        match = gallery.match(on_circle(0.45)[None], threshold_l2=1.0, min_margin_l2=margin)[0]
    assert match.name == name
    assert match.distance_l2 == pytest.approx(2 * np.sin(0.225), abs=1e-5)
    assert match.runner_up_name == "Bob"
