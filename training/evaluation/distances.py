"""Genuine and impostor distances against a threshold: a pair is accepted at a distance <= the threshold.

Distances are Euclidean between unit vectors, 0 (the same) to 2 (opposite).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.errors import DataError
from training.evaluation.arrays import Float64Array, IntArray, RealArray

FARTHEST_L2 = 2.0
"""Largest distance of two unit vectors; what a photo without a face is given to everything."""

_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Roc:
    """What is accepted as the threshold grows.

    Attributes:
        thresholds_l2: float64 (k,), every distance that occurs, rising.
        false_accept_rate: float64 (k,), share of impostor pairs with a distance <= the threshold.
        true_accept_rate: float64 (k,), share of genuine pairs likewise.
    """

    thresholds_l2: Float64Array
    false_accept_rate: Float64Array
    true_accept_rate: Float64Array


@dataclass(frozen=True, slots=True)
class FarThreshold:
    """The threshold that lets through a wanted share of impostors, and how sure that is.

    Attributes:
        threshold_l2: Largest distance whose measured false-accept rate does not exceed the wanted one.
        threshold_low_l2: Lower end of the 95% interval of that threshold, by bootstrap.
        threshold_high_l2: Upper end likewise.
        far_wanted: Wanted false-accept rate.
        far: Measured false-accept rate at `threshold_l2`, at most the wanted one.
        far_low: Lower end of the 95% interval of the true rate at `threshold_l2`.
        far_high: Upper end likewise: the rate that can't be ruled out.
        impostors: How many distances were measured.
        resolved: Whether so many could show the wanted rate at all: one false accept is not more than it.
            Where False, the threshold merely lies below the smallest distance seen, and only `far_high` means
            anything.
    """

    threshold_l2: float
    threshold_low_l2: float
    threshold_high_l2: float
    far_wanted: float
    far: float
    far_low: float
    far_high: float
    impostors: int
    resolved: bool


def roc(genuine_l2: RealArray, impostor_l2: RealArray) -> Roc:
    """The curve over all distances that occur.

    Raises:
        DataError: No genuine or no impostor distance, or one that is not a number.
    """
    genuine, impostors = _sorted("genuine", genuine_l2), _sorted("impostor", impostor_l2)
    thresholds = np.unique(np.concatenate([genuine, impostors]))
    far, tar = (np.searchsorted(d, thresholds, side="right") / len(d) for d in (impostors, genuine))
    return Roc(thresholds, far, tar)


def area_under_roc(genuine_l2: RealArray, impostor_l2: RealArray) -> float:
    """The share of (genuine, impostor) couples whose genuine distance is the smaller; a tie counts half."""
    genuine, impostors = _sorted("genuine", genuine_l2), _sorted("impostor", impostor_l2)
    smaller = np.searchsorted(genuine, impostors, side="left") + np.searchsorted(
        genuine, impostors, side="right"
    )
    return float(smaller.sum() / (2 * len(genuine) * len(impostors)))


def largest_threshold(impostor_l2: RealArray, far: float) -> float:
    """The largest distance at which at most the share `far` (0..1) of impostors is accepted."""
    return _below(_sorted("impostor", impostor_l2), int(np.floor(far * len(impostor_l2) + 1e-9)))


def threshold_for_far(
    impostor_l2: RealArray, far: float, people: npt.NDArray[np.integer] | None = None, seed: int = 0
) -> FarThreshold:
    """Finds the threshold of a wanted false-accept rate with its error bars.

    Distances that share a person are not independent: a few look-alikes make many of the small ones. So the
    bootstrap draws people, and a pair's weight is the product of its two people's (Owen's pigeonhole
    bootstrap). The interval of the rate is the wider one of the bootstrap's and Wilson's for independent
    pairs, which says what no false accept in n pairs is worth. A million distances take some seconds.

    Args:
        impostor_l2: (n,), distances of pairs of different people.
        far: Wanted false-accept rate of one comparison, 0 < far < 1.
        people: int (n, 2), numbers of the two people of each pair; None: all pairs are independent.
        seed: Of the bootstrap.

    Raises:
        DataError: No distances, or `people` of another length.
        ValueError: `far` out of range.
    """
    if not 0 < far < 1:
        raise ValueError(f"expected a false-accept rate between 0 and 1, got {far}")
    distances = _sorted("impostor", impostor_l2)
    threshold = largest_threshold(distances, far)
    accepted = int(np.searchsorted(distances, threshold, side="right"))
    order = np.argsort(impostor_l2, kind="stable")
    drawn_thresholds, drawn_rates = _bootstrap(distances, far, accepted, _ids(people, order), seed)
    low, high = np.percentile(drawn_thresholds, [2.5, 97.5])
    rate_low, rate_high = np.percentile(drawn_rates, [2.5, 97.5])
    wilson_low, wilson_high = wilson_interval(accepted, len(distances))
    return FarThreshold(
        threshold_l2=threshold,
        threshold_low_l2=float(low),
        threshold_high_l2=float(high),
        far_wanted=far,
        far=accepted / len(distances),
        far_low=min(float(rate_low), wilson_low),
        far_high=max(float(rate_high), wilson_high),
        impostors=len(distances),
        resolved=far * len(distances) >= 1,
    )


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """95% interval of a share seen in `count` of `total` independent trials. Source: Wilson 1927."""
    z = 1.959964
    share, spread = count / total, z * z / total
    centre = share + spread / 2
    half = z * np.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, float((centre - half) / (1 + spread))), min(1.0, float((centre + half) / (1 + spread)))


def _bootstrap(
    distances: Float64Array, far: float, accepted: int, ids: IntArray | None, seed: int
) -> tuple[Float64Array, Float64Array]:
    """Thresholds for `far`, and rates of the first `accepted` distances, one of each per resample."""
    rng = np.random.default_rng(seed)
    thresholds: list[float] = []
    rates: list[float] = []
    while len(thresholds) < _RESAMPLES:
        if ids is None:
            weights = rng.poisson(1.0, len(distances))
        else:
            weights = rng.poisson(1.0, int(ids.max()) + 1)[ids].prod(axis=1)
        heap = np.cumsum(weights)
        if not heap[-1]:  # a resample of few people can be empty
            continue
        thresholds.append(_below(distances, int(np.searchsorted(heap, far * heap[-1] + 1e-9, side="right"))))
        rates.append(float(heap[accepted - 1] / heap[-1]) if accepted else 0.0)
    return np.asarray(thresholds), np.asarray(rates)


def _ids(people: npt.NDArray[np.integer] | None, order: IntArray) -> IntArray | None:
    if people is None:
        return None
    if people.shape != (len(order), 2):
        raise DataError(
            f"expected the people of {len(order)} pairs, shape {(len(order), 2)}, got {people.shape}"
        )
    numbers: IntArray = np.unique(people, return_inverse=True)[1].reshape(people.shape)
    return numbers[order]


def _below(distances: Float64Array, allowed: int) -> float:
    """The largest threshold that accepts at most `allowed` of the distances, which rise."""
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
