"""Genuine and impostor distances against a threshold: a pair is accepted at a distance <= the threshold.

Distances are Euclidean between unit vectors, 0 (the same) to 2 (opposite).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import Float64Array, RealArray
from facepipe.gallery.impostors import FARTHEST_L2


@dataclass(frozen=True, slots=True)
class Roc:
    """A ROC curve: shares of accepted pairs by the threshold.

    Attributes:
        thresholds_l2: float64 (k,), every distance that occurs, rising.
        false_accept_rate: float64 (k,), share of impostor pairs with a distance <= the threshold.
        true_accept_rate: float64 (k,), share of genuine pairs likewise.
    """

    thresholds_l2: Float64Array
    false_accept_rate: Float64Array
    true_accept_rate: Float64Array


def roc(genuine_l2: RealArray, impostor_l2: RealArray) -> Roc:
    """Return the curve over all distances that occur.

    Raises:
        DataError: No genuine or no impostor distance, or one that is not a number.
    """
    genuine, impostors = _sorted("genuine", genuine_l2), _sorted("impostor", impostor_l2)
    thresholds = np.unique(np.concatenate([genuine, impostors]))
    far, tar = (np.searchsorted(d, thresholds, side="right") / len(d) for d in (impostors, genuine))
    return Roc(thresholds, far, tar)


def area_under_roc(genuine_l2: RealArray, impostor_l2: RealArray) -> float:
    """The share of (genuine, impostor) pairs whose genuine distance is the smaller; a tie counts half."""
    genuine, impostors = _sorted("genuine", genuine_l2), _sorted("impostor", impostor_l2)
    smaller = np.searchsorted(genuine, impostors, side="left") + np.searchsorted(
        genuine, impostors, side="right"
    )
    return float(smaller.sum() / (2 * len(genuine) * len(impostors)))


def equal_error_rate(genuine_l2: RealArray, impostor_l2: RealArray) -> float:
    """Return the rate, 0..1, at which as many impostors are accepted as genuine pairs are refused.

    Between two distances that occur, the ROC curve is a straight line.
    """
    curve = roc(genuine_l2, impostor_l2)
    accepted = np.concatenate(([0.0], curve.false_accept_rate))
    excess = np.concatenate(([-1.0], curve.false_accept_rate + curve.true_accept_rate - 1))
    after = int(np.argmax(excess >= 0))
    share = excess[after - 1] / (excess[after - 1] - excess[after])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def largest_threshold(impostor_l2: RealArray, far: float) -> float:
    """Return the largest distance at which at most the share `far` (0..1) of impostors is accepted."""
    return _below(_sorted("impostor", impostor_l2), int(np.floor(far * len(impostor_l2) + 1e-9)))


def _below(distances: Float64Array, allowed: int) -> float:
    """Return the largest threshold that accepts at most `allowed` of the distances, which rise."""
    if allowed >= len(distances):
        return FARTHEST_L2
    return min(FARTHEST_L2, float(np.nextafter(distances[allowed], -np.inf)))


def _sorted(kind: str, distances_l2: RealArray) -> Float64Array:
    distances = np.sort(np.asarray(distances_l2, np.float64).ravel())
    if not len(distances):
        raise DataError(f"expected {kind} distances, got none")
    if np.isnan(distances[-1]):
        raise DataError(f"{kind} distances hold values that are not numbers")
    return distances
