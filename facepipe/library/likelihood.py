"""How likely faces are one person's, by their distance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

WRONG_NAME = 3.0
"""A wrong name is as bad as so many missing names."""
_EVEN_SHARE, _EVEN_SHARE_OF_MEANS = 0.967, 0.021
_SPREAD_SHARE = 0.019
_ENOUGH_FACES = 4
"""Fitted to 2,800 faces of 300 people and of strangers (docs/research/questions.md): one face is one person's
as likely as not at 0.967 of the encoder's threshold. Means of more faces are nearer to their own, and no
nearer to others: the point moves down with each doubling, up to four faces."""


def same_person_odds(
    distance_l2: npt.ArrayLike, threshold_l2: float, faces: npt.ArrayLike, others: npt.ArrayLike = 1
) -> Float64Array:
    """Odds that two groups of faces are one person's.

    Args:
        distance_l2: Euclidean, of the unit vectors along the means of both.
        threshold_l2: Of the encoder.
        faces: How many are in the one group; 1 and more.
        others: How many are in the other.
    """
    doublings = sum(np.log2(np.clip(number, 1, _ENOUGH_FACES)) for number in (faces, others))
    even_l2 = (_EVEN_SHARE - _EVEN_SHARE_OF_MEANS * doublings) * threshold_l2
    exponent = (even_l2 - np.asarray(distance_l2, np.float64)) / (_SPREAD_SHARE * threshold_l2)
    return np.asarray(np.exp(np.clip(exponent, -30.0, 30.0)))


def nearest_is_right(odds: Float64Array, runner_up_odds: npt.ArrayLike) -> Float64Array:
    """Probability that the nearest person is the right one: neither the runner-up nor a stranger."""
    return np.asarray(odds / (1.0 + odds + np.asarray(runner_up_odds)))
