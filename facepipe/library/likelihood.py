"""How likely faces are one person's, by their distance."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_EVEN_SHARE, _LESS_A_DOUBLING, _SPREAD_SHARE = 0.887, 0.0425, 0.028
_ENOUGH_FACES = 4
"""Fitted between two archives of 300 people each (docs/research/questions.md): a single face is somebody's as
likely as not at 0.887 of the encoder's threshold. The means of two groups lie nearer together where they are
one person's, so the point moves down with each doubling of the smaller group, up to four faces."""


def same_person_odds(
    distance_l2: npt.ArrayLike, threshold_l2: float, faces: npt.ArrayLike, others: npt.ArrayLike
) -> Float64Array:
    """Odds that two groups of faces are one person's.

    Args:
        distance_l2: Euclidean, of the unit vectors along the means of both.
        threshold_l2: Of the encoder.
        faces: How many are in the one group; 1 and more.
        others: How many are in the other.
    """
    doublings = np.log2(np.minimum(np.minimum(faces, others), _ENOUGH_FACES))
    even_l2 = (_EVEN_SHARE - _LESS_A_DOUBLING * doublings) * threshold_l2
    exponent = (even_l2 - np.asarray(distance_l2, np.float64)) / (_SPREAD_SHARE * threshold_l2)
    return np.asarray(np.exp(np.clip(exponent, -30.0, 30.0)))


def reach_l2(probability: float, threshold_l2: float) -> float:
    """Distance beyond which two groups are less likely than this one person's, where nobody else is near."""
    return threshold_l2 * (_EVEN_SHARE - _SPREAD_SHARE * math.log(probability / (1.0 - probability)))


def nearest_is_right(odds: Float64Array, runner_up_odds: npt.ArrayLike) -> Float64Array:
    """Probability that the nearest person is the right one: neither the runner-up nor a stranger."""
    return np.asarray(odds / (1.0 + odds + np.asarray(runner_up_odds)))
