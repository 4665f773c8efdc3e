"""Curves and thresholds of distances: by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.core.errors import DataError
from facepipe.evaluation.metrics.distances import (
    area_under_roc,
    equal_error_rate,
    largest_threshold,
    roc,
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
    pairs = [(g < i) + (g == i) / 2 for g in genuine for i in impostors]
    assert area_under_roc(genuine, impostors) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("far", "accepted"), [(0.001, 0), (0.1, 1), (0.19, 1), (0.3, 2), (0.4, 4), (1.0, 10)]
)
def test_the_largest_threshold_by_hand(far: float, accepted: int) -> None:
    impostors = np.array([0.5, 0.7, 0.9, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])  # two at 0.9: both or neither
    threshold = largest_threshold(impostors[::-1], far)
    assert np.count_nonzero(impostors <= threshold) == accepted
    beyond = np.nextafter(threshold, 2)
    assert threshold == 2 or np.count_nonzero(impostors <= beyond) > far * len(impostors)


@pytest.mark.parametrize(
    ("genuine", "impostors", "rate"),
    [
        ([0.2, 0.4, 0.6, 1.2], [0.5, 0.9, 1.0, 1.4], 1 / 4),  # at 0.6 one impostor in, one genuine pair out
        ([0.2, 1.0], [0.5, 1.5, 1.6], 1 / 3),  # from 0.5 to 1.0 refusals fall from 1/2 to none
        ([0.5], [1.5], 0.0),
        ([1.5], [0.5], 1.0),
        ([2.0, 2.0], [2.0], 1 / 2),  # all photos without a face
    ],
)
def test_the_equal_error_rate_by_hand(genuine: list[float], impostors: list[float], rate: float) -> None:
    assert equal_error_rate(np.array(genuine), np.array(impostors)) == pytest.approx(rate)


@pytest.mark.parametrize("seed", range(4))
def test_both_errors_are_as_near_as_thresholds_let_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genuine, impostors = rng.normal(0.8, 0.3, 40).round(1), rng.normal(1.3, 0.3, 60).round(1)
    errors = [(np.mean(impostors <= t), np.mean(genuine > t)) for t in np.arange(-0.05, 3, 0.1)]
    rate = equal_error_rate(genuine, impostors)
    assert max(far for far, refused in errors if far <= refused) <= rate
    assert rate <= min(far for far, refused in errors if far >= refused)


def test_bad_distances_are_refused() -> None:
    with pytest.raises(DataError, match="expected impostor distances, got none"):
        largest_threshold(np.zeros(0), 0.01)
    with pytest.raises(DataError, match="not numbers"):
        roc(np.array([np.nan]), np.array([1.0]))
