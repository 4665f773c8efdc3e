"""Thresholds and their error bars: by hand, by brute force, and by what the bars promise."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.errors import DataError
from training.evaluation.distances import (
    area_under_roc,
    largest_threshold,
    roc,
    threshold_for_far,
    wilson_interval,
)


@pytest.mark.parametrize("seed", range(4))
def test_roc_and_area_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genuine, impostors = rng.normal(0.8, 0.3, 40).round(1), rng.normal(1.3, 0.3, 60).round(1)  # with ties
    curve = roc(genuine, impostors)
    for threshold, far, tar in zip(
        curve.thresholds_l2, curve.false_accept_rate, curve.true_accept_rate, strict=True
    ):
        assert far == np.mean(impostors <= threshold)
        assert tar == np.mean(genuine <= threshold)
    couples = [(g < i) + (g == i) / 2 for g in genuine for i in impostors]
    assert area_under_roc(genuine, impostors) == pytest.approx(np.mean(couples))


@pytest.mark.parametrize(
    ("far", "accepted"), [(0.001, 0), (0.1, 1), (0.19, 1), (0.3, 2), (0.4, 4), (1.0, 10)]
)
def test_the_largest_threshold_by_hand(far: float, accepted: int) -> None:
    impostors = np.array([0.5, 0.7, 0.9, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])  # two at 0.9: both or neither
    threshold = largest_threshold(impostors[::-1], far)
    assert np.count_nonzero(impostors <= threshold) == accepted
    beyond = np.nextafter(threshold, 2)
    assert threshold == 2 or np.count_nonzero(impostors <= beyond) > far * len(impostors)


def test_wilson_interval_of_published_examples() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_no_false_accept_in_few_pairs_proves_little() -> None:
    found = threshold_for_far(np.linspace(1.0, 1.6, 100), 1e-3)
    assert not found.resolved
    assert found.threshold_l2 < 1.0
    assert found.far == 0
    assert found.far_high == pytest.approx(0.037, abs=1e-3)


def test_error_bars_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 60 samples from a known distribution, the 95% intervals miss the true threshold a few times."""
    truth = 1.4 - 2.326348 * 0.1  # 1% quantile of a normal distribution
    rng = np.random.default_rng(0)
    samples = [threshold_for_far(rng.normal(1.4, 0.1, 2000), 0.01) for _ in range(60)]
    held = [s.threshold_low_l2 <= truth <= s.threshold_high_l2 for s in samples]
    assert 52 <= sum(held) <= 60
    assert sum(s.far_low <= 0.01 <= s.far_high for s in samples) == 60
    assert max(s.threshold_high_l2 - s.threshold_low_l2 for s in samples) < 0.06


def test_people_who_look_alike_widen_the_bars() -> None:
    rng = np.random.default_rng(0)
    people = np.array([(a, b) for a in range(30) for b in range(a)])
    alike = rng.normal(0, 0.15, 30)  # a person who is near to everyone
    distances = 1.4 + alike[people].sum(axis=1) + rng.normal(0, 0.01, len(people))
    alone = threshold_for_far(distances, 0.05)
    together = threshold_for_far(distances, 0.05, people)
    assert together.threshold_l2 == alone.threshold_l2
    assert together.far_high > 1.5 * alone.far_high
    width = together.threshold_high_l2 - together.threshold_low_l2
    assert width > 1.5 * (alone.threshold_high_l2 - alone.threshold_low_l2)


def test_the_bootstrap_is_repeatable() -> None:
    distances = np.random.default_rng(3).normal(1.4, 0.1, 500)
    assert threshold_for_far(distances, 0.01) == threshold_for_far(distances[::-1], 0.01)


def test_bad_distances_are_refused() -> None:
    with pytest.raises(DataError, match="expected impostor distances, got none"):
        threshold_for_far(np.zeros(0), 0.01)
    with pytest.raises(DataError, match="not numbers"):
        roc(np.array([np.nan]), np.array([1.0]))
    with pytest.raises(DataError, match=r"the people of 3 pairs.*got \(2, 2\)"):
        threshold_for_far(np.ones(3), 0.01, np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for_far(np.ones(3), 1.0)
