"""Thresholds by a gallery's size: against simulated galleries, and on galleries of one's own."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gallery_helpers import ENCODER, templates, unit

from facepipe.commands.calibrate import calibrate as calibrate_command
from facepipe.core.errors import DataError, GalleryError, UsageError, WeightsError
from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery
from facepipe.gallery.calibration import calibrate, highest_rate
from facepipe.gallery.impostors import ImpostorModel, all_pairs, rate_of_one_comparison, some_faces
from facepipe.pipeline import card_identity
from facepipe.weights.cards import WeightCard
from facepipe.weights.registry import DEFAULT_ENCODER, load_card


def _population(seed: int, people: int, photos: int) -> tuple[FloatArray, np.ndarray]:
    """Faces (people * photos, 24) about directions of their own, some people nearer to many than others."""
    rng = np.random.default_rng(seed)
    # An encoder is less sure of some people, whose vectors lie near a common direction.
    centres = unit(rng.normal(size=(people, 24)) + rng.uniform(0, 2.0, (people, 1)) * np.eye(24)[0])
    names = np.repeat(np.arange(people), photos)
    return unit(centres[names] + 0.1 * rng.normal(size=(len(names), 24))), names


@pytest.fixture(scope="module")
def model() -> ImpostorModel:
    measured = all_pairs(*_population(0, 300, 2))
    return ImpostorModel.measured(measured.impostor_l2, measured.impostor_people, source="simulated")


def test_the_rate_that_is_promised_comes_true_for_other_people(model: ImpostorModel) -> None:
    vectors, names = _population(1, 3000, 3)
    rng = np.random.default_rng(2)
    for count in (1, 20, 100, 1000):
        threshold = model.threshold_l2(0.05, count)
        rates = []
        for _ in range(40 if count < 1000 else 4):
            enrolled = rng.choice(3000, -(-count // 3), replace=False)
            gallery = vectors[np.isin(names, enrolled)][:count]
            probes = vectors[~np.isin(names, enrolled)][::10]
            nearest = np.sqrt(2 - 2 * (probes @ gallery.T).max(axis=1))
            rates.append(np.mean(nearest <= threshold))
        # Photos of one person are not three chances: rather fewer strangers are named than said.
        assert 0.5 * 0.05 < np.mean(rates) < 1.4 * 0.05, count


def test_error_bars_hold_the_truth(model: ImpostorModel) -> None:
    """The quantiles of a hundred times as many pairs lie within the bars, also where the tail is fitted."""
    measured = all_pairs(*_population(3, 1500, 1))
    for far, low, high in zip(model.far, model.low_l2, model.high_l2, strict=True):
        if far >= 1e-5:  # 11 pairs
            truth = np.quantile(measured.impostor_l2, far)
            assert low - 0.03 <= truth <= high + 0.03, far
    assert all(a <= b <= c for a, b, c in zip(model.low_l2, model.distances_l2, model.high_l2, strict=True))


def test_another_encoders_threshold_of_the_same_rate(model: ImpostorModel) -> None:
    nearer = replace(model, distances_l2=tuple(0.8 * distance for distance in model.distances_l2))
    for far in (1e-9, 1e-5, 0.01, 0.5):
        nearer_l2 = nearer.threshold_of_same_rate(model, model.threshold_l2(far, 1))
        assert nearer_l2 == pytest.approx(nearer.threshold_l2(far, 1))
        assert model.threshold_of_same_rate(nearer, nearer_l2) == pytest.approx(model.threshold_l2(far, 1))
    smallest_l2 = model.distances_l2[-1]
    assert nearer.threshold_of_same_rate(model, smallest_l2 / 2) == pytest.approx(0.8 * smallest_l2 / 2)
    assert (nearer.threshold_of_same_rate(model, 0), nearer.threshold_of_same_rate(model, 2)) == (0, 2)
    few = replace(
        model, **{name: getattr(model, name)[::2] for name in ("far", "distances_l2", "low_l2", "high_l2")}
    )
    assert few.threshold_of_same_rate(model, 1.0) == pytest.approx(1.0, abs=0.02)


def test_more_templates_and_rarer_errors_want_smaller_thresholds(model: ImpostorModel) -> None:
    sizes = [model.threshold_l2(0.01, count) for count in (1, 2, 10, 100, 1000, 10**5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] - 0.2
    assert model.threshold_l2(0.01, 0) == model.threshold_l2(0.01, 1)
    assert model.threshold_l2(0.001, 20) < model.threshold_l2(0.01, 20)
    low, high = model.interval_l2(0.01, 1000)
    assert low < model.threshold_l2(0.01, 1000) < high


@pytest.mark.parametrize("templates_count", [1, 7, 300, 10**5])
@pytest.mark.parametrize("fpir", [0.001, 0.01, 0.2])
def test_rate_and_threshold_are_each_others_inverse(
    model: ImpostorModel, fpir: float, templates_count: int
) -> None:
    threshold = model.threshold_l2(fpir, templates_count)
    assert model.fpir(threshold, templates_count) == pytest.approx(fpir, rel=1e-6)
    low, high = model.fpir_interval(threshold, templates_count)
    assert low <= fpir <= high


def test_everybody_is_named_without_limit_and_nearly_nobody_at_zero(model: ImpostorModel) -> None:
    assert model.fpir(2.0, 1) == pytest.approx(1)
    assert model.fpir(0.0, 1) == pytest.approx(1e-9)


def test_a_small_gallery_has_a_largest_threshold(model: ImpostorModel) -> None:
    capped = dataclasses.replace(model, max_threshold_l2=0.9)
    assert model.threshold_l2(0.01, 1) > 0.9
    assert capped.threshold_l2(0.01, 1) == 0.9
    assert capped.threshold_l2(0.01, 10**5) == model.threshold_l2(0.01, 10**5)


def test_the_rate_of_one_comparison_adds_up() -> None:
    assert rate_of_one_comparison(0.01, 1) == pytest.approx(0.01)
    assert 1 - (1 - rate_of_one_comparison(0.3, 40)) ** 40 == pytest.approx(0.3)
    with pytest.raises(UsageError, match="between 0 and 1, got 1"):
        rate_of_one_comparison(1, 5)


def test_a_card_can_hold_it(model: ImpostorModel) -> None:
    raw = json.loads(json.dumps(model.to_dict(), allow_nan=False))
    read = ImpostorModel.from_dict(raw)
    assert read.distances_l2 == pytest.approx(model.distances_l2, abs=1e-4)
    assert (read.people, read.pairs, read.source) == (300, model.pairs, "simulated")
    assert ImpostorModel.from_dict(read.to_dict()) == read
    raw["couples"] = raw.pop("pairs")  # on cards of earlier versions
    assert ImpostorModel.from_dict(raw) == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"far": [0.1]}, "as many distances"),
        ({"far": [0.1, 0.2]}, "rates falling"),
        ({"far": [2.0, 0.1]}, "rates falling"),
        ({"distances_l2": [1.0, 1.1]}, "falling distances"),
        ({"high_l2": [2.5, 1.1]}, "falling distances"),
        ({"distances_l2": ["near", "nearer"]}, r"distances_l2\[0\]: expected `float`"),
        ({"max_threshold_l2": 0}, "max_threshold_l2"),
        ({"more": 1}, "unknown key more"),
    ],
)
def test_a_damaged_description_is_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "far": [0.1, 0.01],
        "distances_l2": [1.2, 1.1],
        "low_l2": [1.1, 1.0],
        "high_l2": [1.3, 1.2],
    }
    good |= {"people": 10, "pairs": 45, "max_threshold_l2": 1.2, "source": ""}
    assert ImpostorModel.from_dict(good).threshold_l2(0.1, 1) == pytest.approx(1.2)
    with pytest.raises(DataError, match=f"impostors: .*{message}"):
        ImpostorModel.from_dict(good | change)


def test_pairs_by_hand() -> None:
    corners = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    found = all_pairs(corners, np.array([4, 4, 9]))
    assert found.genuine_l2.tolist() == [0]
    assert found.genuine_people.tolist() == [4]
    assert found.impostor_l2 == pytest.approx([np.sqrt(2)] * 2)
    assert found.impostor_people.tolist() == [[4, 9], [4, 9]]


def test_distances_that_can_not_be_measured_are_refused() -> None:
    with pytest.raises(DataError, match="at least 10 people, got 2"):
        ImpostorModel.measured(np.ones(5), np.array([[0, 1]] * 5))
    with pytest.raises(DataError, match="two people of each"):
        ImpostorModel.measured(np.ones(5), np.zeros((4, 2), int))
    with pytest.raises(DataError, match="finite"):
        ImpostorModel.measured(np.array([np.nan]), np.array([[0, 1]]))


def test_photos_that_are_all_the_same_break_nothing() -> None:
    people = np.array([(a, b) for a in range(12) for b in range(a)])
    flat = ImpostorModel.measured(np.full(len(people), 1.2), people)
    assert flat.threshold_l2(0.01, 50) == pytest.approx(1.2, abs=1e-3)


def test_how_high_a_rate_can_be() -> None:
    assert highest_rate(0, 100) == pytest.approx(0.03)  # the rule of three
    assert highest_rate(0, 2) == 1
    assert highest_rate(81 / 263, 263) == pytest.approx(0.3662, abs=1e-4)  # Newcombe 1998, table I


def test_always_the_same_of_many_faces() -> None:
    assert some_faces(5).tolist() == [0, 1, 2, 3, 4]
    assert len(np.unique(some_faces(10_000))) == 3000
    assert np.array_equal(some_faces(10_000), some_faces(10_000))


def test_a_gallery_takes_the_threshold_of_its_size(model: ImpostorModel, tmp_path: Path) -> None:
    card = load_card(DEFAULT_ENCODER).card
    assert card.embedding is not None
    embedding = dataclasses.replace(card.embedding, impostors=model.to_dict())
    identity = card_identity(WeightCard.from_json(dataclasses.replace(card, embedding=embedding).to_json()))
    with Gallery.open(tmp_path / "g", identity, create=True) as gallery:
        for count in (1, 30):
            gallery.add("Somebody", templates(unit(np.random.default_rng(count).normal(size=(count, 128)))))
            (size,) = (person.template_count for person in gallery.people())
            chances = size + (size > 1)  # The mean is one template more.
            assert gallery.default_threshold_l2 == pytest.approx(model.threshold_l2(0.01, chances), abs=1e-3)
    assert model.threshold_l2(0.01, 31) < model.threshold_l2(0.01, 1) - 0.1
    damaged = dataclasses.replace(card.embedding, impostors={"far": []})
    with pytest.raises(WeightsError, match=f"card of {card.name}: impostors: .*missing required field"):
        card_identity(dataclasses.replace(card, embedding=damaged))


def _gallery(folder: Path, people: int, photos: int) -> Path:
    vectors, names = _population(5, people, photos)
    wide = np.zeros((len(vectors), ENCODER.dimensions), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        for person in range(people):
            gallery.add(f"Person {person:02d}", templates(wide[names == person]))
    return folder


def test_a_gallery_of_ones_own(tmp_path: Path) -> None:
    with Gallery.open(_gallery(tmp_path / "g", 40, 3)) as gallery:
        strict, loose, single = calibrate(gallery, 0.01), calibrate(gallery, 0.2), calibrate(gallery, 0.01, 1)
    assert (strict.people, strict.templates, strict.chances) == (40, 120, 120)
    assert (strict.genuines, strict.impostors) == (120, 120 * 119 // 2 - 120)
    assert strict.threshold_l2 < loose.threshold_l2 < single.threshold_l2
    assert strict.low_l2 < strict.threshold_l2 < strict.high_l2
    assert single.shown
    assert not strict.shown
    assert single.false_accepts / single.impostors == pytest.approx(0.01, abs=0.002)
    assert single.false_accepts / single.impostors < single.far_high
    assert strict.true_accept_rate is not None
    assert single.true_accept_rate is not None
    assert strict.true_accept_rate <= single.true_accept_rate
    assert strict.nearest_l2 > 0
    assert len(set(strict.nearest_people)) == 2


def test_the_true_rate_is_within_what_can_not_be_ruled_out(tmp_path: Path) -> None:
    """Of the people that a small gallery was drawn from."""
    everybody = all_pairs(*_population(6, 1500, 1)).impostor_l2
    with Gallery.open(_gallery(tmp_path / "g", 40, 3)) as gallery:
        for rate in (0.001, 0.01, 0.1):
            found = calibrate(gallery, rate, 1)
            assert np.mean(everybody <= found.low_l2) <= rate <= np.mean(everybody <= found.high_l2)
            assert np.mean(everybody <= found.threshold_l2) <= found.far_high


def test_one_photo_each_tells_nothing_of_the_known(tmp_path: Path) -> None:
    with Gallery.open(_gallery(tmp_path / "g", 12, 1)) as gallery:
        assert calibrate(gallery, 0.01).true_accept_rate is None


def _run(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(calibrate_command, [str(option) for option in options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_the_command_recommends_and_applies(tmp_path: Path) -> None:
    folder = _gallery(tmp_path / "g", 20, 4)
    code, text = _run("--gallery", folder)
    assert code == 0
    assert "80 photos of 20 people" in text
    assert "lets in 0.01 of strangers, with 80 photos enrolled" in text
    assert "20 people are too few to show that rate by counting" in text
    with Gallery.open(folder) as gallery:
        assert gallery.threshold_l2 is None
    _, text = _run("--gallery", folder, "--far", 0.05, "--apply", "--json")
    record = json.loads(text)
    assert (record["wanted"], record["chances"], record["shown"]) == (0.05, 1, True)
    with Gallery.open(folder) as gallery:
        assert gallery.threshold_l2 == pytest.approx(record["threshold_l2"], abs=1e-4)


def test_the_command_refuses(tmp_path: Path) -> None:
    folder = _gallery(tmp_path / "few", 9, 4)
    with pytest.raises(GalleryError, match=r"few: 9 people: too few.*enroll at least 10"):
        _run("--gallery", folder)
    with pytest.raises(UsageError, match="exclude each other"):
        _run("--gallery", folder, "--far", 0.1, "--fpir", 0.1)
    with pytest.raises(UsageError, match="between 0 and 1, got 3"):
        _run("--gallery", folder, "--far", 3)
