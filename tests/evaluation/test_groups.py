"""Figures of groups of pairs, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from facepipe.core.faces import FloatArray
from facepipe.evaluation.groups import by_group
from facepipe.evaluation.metrics.verification import PhotoPair, pair_distances, verification


def _at(distance_l2: float) -> FloatArray:
    """A unit vector at this distance from (1, 0)."""
    angle = 2 * np.arcsin(distance_l2 / 2)
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def _pair(name: str, same: bool, group: str | None, fold: int = 0) -> PhotoPair:
    return PhotoPair("origin", name, same, fold, group)


VECTORS = {"origin": _at(0), "near": _at(0.5), "middle": _at(1.0), "far": _at(1.5)}
PAIRS = [
    _pair("near", True, "10-20"),
    _pair("middle", True, "10-20", 1),
    _pair("middle", False, "10-20", 1),
    _pair("far", False, "10-20"),
    _pair("near", False, None),
    _pair("no face", True, "5-10"),
    _pair("near", True, "5-10"),
    _pair("far", False, "children"),
]


def test_groups_at_one_threshold_and_by_themselves() -> None:
    five, ten, children = by_group(PAIRS, VECTORS, 0.9)
    assert (five.name, ten.name, children.name) == ("5-10", "10-20", "children")  # in natural order
    assert (ten.genuines, ten.impostors) == (2, 2)
    assert (ten.true_accept_rate, ten.false_accept_rate) == (0.5, 0.0)
    assert ten.verification == verification(pair_distances(PAIRS[:4], VECTORS))
    assert ten.verification.auc == pytest.approx(3.5 / 4)  # three in order and a tie
    assert [fold.pairs for fold in ten.verification.folds] == [2, 2]


def test_a_group_of_one_kind_has_only_rates() -> None:
    five, _, children = by_group(PAIRS, VECTORS, 0.9)
    assert (five.genuines, five.impostors, five.verification) == (2, 0, None)
    assert (five.true_accept_rate, five.false_accept_rate) == (0.5, None)  # no face: refused
    assert (children.true_accept_rate, children.false_accept_rate) == (None, 0.0)


def test_pairs_without_groups_have_none() -> None:
    assert by_group([_pair("near", True, None), _pair("far", False, None)], VECTORS, 1.0) == ()
