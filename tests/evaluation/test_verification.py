"""Pairs and their figures: by hand, by brute force, and on the real pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from facepipe.core.errors import DataError
from facepipe.evaluation.metrics.verification import (
    PairDistances,
    PhotoPair,
    best_threshold,
    pair_distances,
    pair_photos,
    verification,
)
from facepipe.evaluation.pair_lists import find_lfw_photos, read_lfw_pairs


def test_a_photo_without_a_face_is_different_from_all() -> None:
    pairs = [PhotoPair("a", "b", True, 0), PhotoPair("a", "c", True, 0), PhotoPair("d", "c", False, 1)]
    vectors = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 1.0])}
    measured = pair_distances(pairs, vectors)
    assert measured.distances_l2.tolist() == pytest.approx([np.sqrt(2), 2, 2])
    assert (measured.failed_pairs, measured.failed_photos) == (2, 2)
    result = verification(measured)
    assert (result.failed_pairs, result.failed_photos) == (2, 2)


def _measured(genuine: list[list[float]], impostors: list[list[float]]) -> PairDistances:
    """One list of distances a fold."""
    rows = [
        (d, same, fold)
        for same, lists in ((True, genuine), (False, impostors))
        for fold, distances in enumerate(lists)
        for d in distances
    ]
    columns = list(zip(*rows, strict=True))
    return PairDistances(np.array(columns[0]), np.array(columns[1]), np.array(columns[2]), 0, 0)


def test_each_fold_takes_the_threshold_of_the_others() -> None:
    # fold 0 separates at 0.6 and fold 1 at 1.0, so each makes the other's mistakes
    result = verification(_measured([[0.5, 0.5], [0.9, 0.9]], [[0.7, 1.3], [1.1, 1.3]]))
    assert [fold.threshold_l2 for fold in result.folds] == pytest.approx([1.0, 0.6])
    assert [fold.accuracy for fold in result.folds] == [0.75, 0.5]
    assert result.accuracy == 0.625
    assert result.accuracy_error == pytest.approx(0.125)
    assert result.auc == 14 / 16
    assert best_threshold(np.array([0.5, 0.9, 1.1]), np.array([True, True, False])) == pytest.approx(1.0)


def test_means_and_deviations_over_the_folds() -> None:
    # fold 0 has one pair of either kind in the wrong place; fold 1 is separable
    result = verification(_measured([[0.2, 0.4, 0.6, 1.2], [0.3, 0.4]], [[0.5, 0.9, 1.0, 1.4], [0.8, 1.1]]))
    assert [(fold.eer, fold.auc) for fold in result.folds] == [(0.25, 12 / 16), (0.0, 1.0)]
    assert [fold.accuracy for fold in result.folds] == [0.75, 1.0]
    assert result.over_folds is not None
    assert (result.over_folds.eer_mean, result.over_folds.auc_mean) == (0.125, 0.875)
    deviation = 0.125 * np.sqrt(2)  # of a sample of two
    assert result.over_folds.accuracy_deviation == pytest.approx(deviation)
    assert result.over_folds.eer_deviation == pytest.approx(deviation)
    assert result.over_folds.auc_deviation == pytest.approx(deviation)
    assert result.eer == pytest.approx(1 / 6)  # at 0.6, of six pairs of either kind


def test_a_fold_of_one_kind_has_no_curve() -> None:
    result = verification(_measured([[0.5], [0.6]], [[1.2, 1.3], []]))
    assert [(fold.eer, fold.auc) for fold in result.folds] == [(0.0, 1.0), (None, None)]
    assert result.over_folds is None


def test_one_fold_has_no_error_bar() -> None:
    result = verification(_measured([[0.5, 0.6]], [[1.2, 1.3]]))
    assert (result.accuracy, result.accuracy_error, result.auc) == (1.0, None, 1.0)
    assert (result.eer, result.over_folds) == (0.0, None)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_not_beaten(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.uniform(0, 2, 60).round(1)  # with ties
    same = rng.random(60) < 1.2 - distances / 2
    best = np.mean((distances <= best_threshold(distances, same)) == same)
    assert best == max(np.mean((distances <= t) == same) for t in np.arange(-0.05, 2.1, 0.05))


def test_true_accepts_at_false_accepts_by_hand() -> None:
    impostors = np.linspace(0.8, 1.8, 1001).tolist()
    result = verification(_measured([[0.7, 0.8, 0.8005, 0.805, 1.5]], [impostors]))
    at = {row.far: row for row in result.tar_at_far}
    assert [at[far].false_accepts for far in (1e-2, 1e-3, 1e-4)] == [10, 1, 0]
    assert [at[far].tar for far in (1e-2, 1e-3, 1e-4)] == [0.8, 0.6, 0.2]
    assert [at[far].resolved for far in (1e-2, 1e-3, 1e-4)] == [True, True, False]


def test_the_result_is_json() -> None:
    result = verification(_measured([[0.5], [0.6]], [[1.2], [0.55]]))
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["folds"][1]["pairs"] == 2
    assert read["tar_at_far"][0]["far"] == 0.01


def test_pairs_of_one_kind_are_refused() -> None:
    with pytest.raises(DataError, match="expected impostor distances, got none"):
        verification(_measured([[0.5]], []))


def test_the_real_pairs(shared_data: Path) -> None:
    pairs = read_lfw_pairs(shared_data / "lfw_dev" / "pairs.txt")
    assert len(pairs) == 1800
    assert [sum(p.same_person for p in pairs if p.fold == fold) for fold in range(3)] == [300] * 3
    photos = find_lfw_photos(shared_data / "lfw_dev" / "images", pair_photos(pairs))
    assert all(photo.is_file() for photo in photos.values())
    # random vectors know nothing
    rng = np.random.default_rng(0)
    vectors = {key: v / np.linalg.norm(v) for key in photos for v in [rng.normal(size=128)]}
    result = verification(pair_distances(pairs, vectors))
    assert result.accuracy == pytest.approx(0.5, abs=0.04)
    assert result.auc == pytest.approx(0.5, abs=0.04)
