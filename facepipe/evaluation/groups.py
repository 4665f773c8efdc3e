"""Figures of the groups of a list of pairs: poses, age gaps, skin tones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.evaluation.arrays import BoolArray
from facepipe.evaluation.metrics.verification import (
    PhotoPair,
    VerificationResult,
    pair_distances,
    verification,
)
from facepipe.images.finding import natural_key


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Figures of the pairs of one group.

    Attributes:
        name: As in the list.
        genuines: Pairs of one person.
        impostors: Pairs of two.
        true_accept_rate: Share of the former within the threshold that is best on all pairs; None: no pair.
        false_accept_rate: Share of the latter likewise.
        verification: The figures of the group by itself, at its own thresholds; None: one kind of pairs.
    """

    name: str
    genuines: int
    impostors: int
    true_accept_rate: float | None
    false_accept_rate: float | None
    verification: VerificationResult | None


def by_group(
    pairs: Sequence[PhotoPair], vectors: Mapping[str, FloatArray], threshold_l2: float
) -> tuple[GroupResult, ...]:
    """Measure each group of the pairs, in the natural order of the names; pairs without a group are left out.

    Args:
        pairs: Of photos by key.
        vectors: By key; none of photos without a face.
        threshold_l2: Best on all pairs.
    """
    names = sorted({pair.group for pair in pairs if pair.group is not None}, key=natural_key)
    return tuple(
        _group(name, [pair for pair in pairs if pair.group == name], vectors, threshold_l2) for name in names
    )


def _group(
    name: str, pairs: Sequence[PhotoPair], vectors: Mapping[str, FloatArray], threshold_l2: float
) -> GroupResult:
    measured = pair_distances(pairs, vectors)
    accepted, same = measured.distances_l2 <= threshold_l2, measured.same_person
    return GroupResult(
        name,
        genuines=int(same.sum()),
        impostors=int((~same).sum()),
        true_accept_rate=_share(accepted[same]),
        false_accept_rate=_share(accepted[~same]),
        verification=verification(measured) if same.any() and not same.all() else None,
    )


def _share(rows: BoolArray) -> float | None:
    return float(np.mean(rows)) if len(rows) else None
