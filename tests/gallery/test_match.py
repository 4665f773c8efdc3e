"""Names for faces, against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates, unit
from scipy.optimize import linear_sum_assignment

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, Match, MatchStatus
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.impostors import ImpostorModel
from facepipe.gallery.matching import Doubt, doubts
from facepipe.gallery.ranking import NearestPeople, PersonDistance, distances_to_people


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
@pytest.mark.parametrize("threshold_l2", [0.0, 0.75, 0.9, 2.0])
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
        matches = gallery.match(
            queries,
            threshold_l2=threshold_l2,
            one_person_per_photo=one_person_per_photo,
            person_distance=PersonDistance.NEAREST,
        )
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


@pytest.mark.parametrize("threshold_l2", [-0.1, 2.001, float("nan"), float("inf")])
def test_thresholds_that_make_no_sense(ada: KnowsAda, threshold_l2: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ada[0].match(ada[1][None], threshold_l2=threshold_l2)


def test_one_person_has_no_runner_up(ada: KnowsAda) -> None:
    gallery, vector = ada
    (match,) = gallery.match(vector[None])
    assert (match.runner_up_name, match.runner_up_distance_l2) == (None, None)


def test_an_empty_gallery_knows_nobody(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        nobody = Match(None, None, 1.0, reason=Doubt.NOBODY_NEAR.value)
        assert gallery.match(person_vectors(1, 2)) == (nobody, nobody)
        assert nobody.status is MatchStatus.UNKNOWN


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


# Named, unsure, unknown


def on_circle(angle: float) -> FloatArray:
    """A unit vector in one plane, so that distances are known."""
    vector = np.zeros(ENCODER.dimensions, np.float32)
    vector[:2] = np.cos(angle), np.sin(angle)
    return vector


@pytest.fixture
def couple(tmp_path: Path) -> Iterator[Gallery]:
    """Ada at angle 0 and Bob at angle 1, who are 0.96 apart."""
    with Gallery.open(tmp_path / "couple", ENCODER, create=True) as gallery:
        gallery.add("Ada", [NewTemplate(on_circle(0.0))])
        gallery.add("Bob", [NewTemplate(on_circle(1.0))])
        yield gallery


@pytest.mark.parametrize(
    ("margin", "name", "status", "reason"),
    [
        (0.0, "Ada", MatchStatus.NAMED, None),
        (0.05, "Ada", MatchStatus.NAMED, None),
        (0.2, None, MatchStatus.UNSURE, "between_people"),
    ],
)
def test_a_face_between_two_people_is_unsure(
    couple: Gallery, margin: float, name: str | None, status: MatchStatus, reason: str | None
) -> None:
    match = couple.match(on_circle(0.45)[None], threshold_l2=1.0, min_margin_l2=margin)[0]
    assert (match.name, match.status, match.reason) == (name, status, reason)
    assert match.candidate_name == ("Ada" if status is MatchStatus.UNSURE else None)
    assert match.distance_l2 == pytest.approx(2 * np.sin(0.225), abs=1e-5)
    assert match.runner_up_name == "Bob"


def test_beyond_the_threshold_a_face_is_unknown_however_clear(couple: Gallery) -> None:
    match = couple.match(on_circle(-0.9)[None], threshold_l2=0.8, min_margin_l2=0.1)[0]
    assert (match.status, match.reason, match.candidate_name) == (MatchStatus.UNKNOWN, "nobody_near", None)


def test_of_two_faces_of_a_person_the_farther_is_unknown_because_the_person_is_taken(
    couple: Gallery,
) -> None:
    near, far = couple.match(np.stack([on_circle(-0.1), on_circle(-0.2)]))
    assert (near.name, near.reason) == ("Ada", None)
    assert (far.status, far.reason) == (MatchStatus.UNKNOWN, "taken")


def test_an_unsure_face_does_not_take_the_place_of_a_clear_one(couple: Gallery) -> None:
    """The unsure face is nearer to Ada (0.40) than the clear one (0.68)."""
    unsure, clear = couple.match(np.stack([on_circle(0.4), on_circle(-0.7)]), min_margin_l2=0.25)
    assert (unsure.status, unsure.candidate_name) == (MatchStatus.UNSURE, "Ada")
    assert (clear.status, clear.name) == (MatchStatus.NAMED, "Ada")


def test_the_codes_are_stable() -> None:
    assert {doubt.value for doubt in Doubt} == {"nobody_near", "between_people", "taken"}
    assert {status.value for status in MatchStatus} == {"named", "unsure", "unknown"}
    assert {measure.value for measure in PersonDistance} == {
        "nearest-or-mean",
        "nearest",
    }


@pytest.mark.parametrize("seed", range(20))
def test_one_face_a_person_is_the_best_assignment(seed: int) -> None:
    """Against SciPy's solver, where a face may only get its nearest person: most names, least distances."""
    rng = np.random.default_rng(seed)
    faces, people = rng.integers(1, 9, 2)
    distances = rng.uniform(0.3, 1.5, (faces, people + 2))
    order = np.argsort(distances, axis=1)
    nearest_l2 = np.take_along_axis(distances, order[:, :2], axis=1)
    nearest = NearestPeople(order[:, 0], nearest_l2[:, 0], order[:, 1], nearest_l2[:, 1])
    thresholds = np.full(faces, 1.0)
    named = [doubt is None for doubt in doubts(nearest, thresholds, 0.05, True)]

    gain = np.zeros_like(distances)  # More than any distance for a name, less the distance.
    wanting = (nearest.first_l2 <= 1.0) & (nearest.second_l2 - nearest.first_l2 >= 0.05)
    rows = np.flatnonzero(wanting)
    gain[rows, nearest.first[rows]] = 100 - nearest.first_l2[rows]
    chosen_rows, chosen_people = linear_sum_assignment(gain, maximize=True)
    expected = np.zeros(faces, np.bool_)
    expected[chosen_rows] = gain[chosen_rows, chosen_people] > 0
    assert named == expected.tolist()


# Whose threshold


def thresholds(gallery: Gallery, **asked: Any) -> list[float]:
    """Those at which a face near Ada and one near Bob are judged."""
    return [match.threshold_l2 for match in gallery.match(np.stack([on_circle(0), on_circle(1)]), **asked)]


def test_a_persons_threshold_goes_before_the_callers_the_gallerys_and_the_encoders(couple: Gallery) -> None:
    assert thresholds(couple) == [1.0, 1.0]
    couple.set_threshold(0.9)
    assert thresholds(couple) == [0.9, 0.9]
    assert thresholds(couple, threshold_l2=0.7) == [0.7, 0.7]
    couple.set_person_threshold("Bob", 0.3)
    assert thresholds(couple) == [0.9, 0.3]
    assert thresholds(couple, threshold_l2=0.7) == [0.7, 0.3]
    couple.set_person_threshold("Bob", None)
    couple.set_threshold(None)
    assert thresholds(couple) == [1.0, 1.0]


def test_a_persons_threshold_decides(couple: Gallery) -> None:
    query = on_circle(1.4)[None]  # 0.40 from Bob
    assert couple.match(query)[0].name == "Bob"
    couple.set_person_threshold("Bob", 0.3)
    strict = couple.match(query)[0]
    assert (strict.name, strict.reason, strict.threshold_l2) == (None, "nobody_near", 0.3)
    couple.set_person_threshold("Bob", 0.5)
    assert couple.match(query, threshold_l2=0.1)[0].name == "Bob"


def test_the_encoders_threshold_falls_as_the_gallery_grows(tmp_path: Path) -> None:
    """Where the encoder knows how near strangers come, unless somebody has set a threshold."""
    strangers = ImpostorModel(
        far=(0.1, 1e-3, 1e-5),
        distances_l2=(1.2, 1.0, 0.8),
        low_l2=(1.1, 0.9, 0.7),
        high_l2=(1.3, 1.1, 0.9),
        people=100,
        pairs=10_000,
        max_threshold_l2=2.0,
        source="",
    )
    encoder = replace(ENCODER, impostors=strangers)
    found = []
    with Gallery.open(tmp_path, encoder, create=True) as gallery:
        for seed in range(4):
            gallery.add(f"person {seed}", templates(person_vectors(seed, 10**seed)))
            found.append(gallery.match(person_vectors(0, 1))[0].threshold_l2)
            counts = [person.template_count for person in gallery.people()]
            chances = sum(counts) + min(len(counts), sum(counts) - len(counts))
            assert chances >= sum(count + (count > 1) for count in counts)  # A mean is one template more.
            assert found[-1] == gallery.default_threshold_l2 == strangers.threshold_l2(0.01, chances)
        assert found == sorted(set(found), reverse=True)
        gallery.set_threshold(0.95)
        assert gallery.match(person_vectors(0, 1))[0].threshold_l2 == 0.95
    with Gallery.open(tmp_path, ENCODER) as gallery:  # Without knowledge of strangers.
        gallery.set_threshold(None)
        assert gallery.default_threshold_l2 == ENCODER.threshold_l2


# What the distance to a person is


def slow_distance(query: FloatArray, vectors: FloatArray, measure: PersonDistance) -> float:
    exact = [float(np.linalg.norm(query.astype(float) - vector.astype(float))) for vector in vectors]
    match measure:
        case PersonDistance.NEAREST:
            return min(exact)
        case PersonDistance.NEAREST_OR_MEAN:
            total = vectors.astype(np.float64).sum(axis=0)
            to_mean = float(np.linalg.norm(query - total / np.sqrt((total**2).sum())))
            return min(*exact, to_mean)


@pytest.mark.parametrize("measure", PersonDistance)
def test_distances_to_people(tmp_path: Path, measure: PersonDistance) -> None:
    people = {f"person {i}": person_vectors(i, 1 + i, spread=0.07) for i in range(6)}
    queries = np.stack([person_vectors(i, 9, spread=0.07)[8] for i in range(6)])
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        for name, vectors in people.items():
            gallery.add(name, templates(vectors))
        matches = gallery.match(queries, threshold_l2=2.0, person_distance=measure)
    for query, match in zip(queries, matches, strict=True):
        ranking = sorted((slow_distance(query, vectors, measure), name) for name, vectors in people.items())
        (first_l2, first), (second_l2, second) = ranking[:2]
        assert (match.name, match.runner_up_name) == (first, second)
        assert match.distance_l2 == pytest.approx(first_l2, abs=1e-6)
        assert match.runner_up_distance_l2 == pytest.approx(second_l2, abs=1e-6)


@pytest.mark.parametrize("measure", PersonDistance)
def test_a_person_with_very_many_photos_leaves_room_for_a_runner_up(
    tmp_path: Path, measure: PersonDistance
) -> None:
    many = person_vectors(1, 200)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(many))
        gallery.add("Bob", templates(person_vectors(2, 1)))
        (match,) = gallery.match(many[:1], person_distance=measure)
    assert (match.name, match.runner_up_name) == ("Ada", "Bob")


@pytest.mark.parametrize("measure", PersonDistance)
def test_nobody_and_templates_that_cancel_out(tmp_path: Path, measure: PersonDistance) -> None:
    vector = person_vectors(1, 1)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        assert gallery.match(vector, person_distance=measure)[0].distance_l2 is None
        gallery.add("Ada", templates(np.concatenate([vector, -vector])))
        distance = gallery.match(vector, person_distance=measure)[0].distance_l2
    assert distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("measure", PersonDistance)
def test_no_people_no_distances(measure: PersonDistance) -> None:
    nobody = distances_to_people(
        person_vectors(1, 1)[0], np.zeros((0, 128), np.float32), np.zeros(0, np.int64), measure
    )
    assert nobody.shape == (0,)
