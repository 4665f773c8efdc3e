"""Accuracy of clustering: BCubed precision and recall."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import Float64Array


@dataclass(frozen=True, slots=True)
class BCubed:
    """Figures of one grouping, each a mean over faces, 0..1. Source: Bagga and Baldwin 1998.

    Attributes:
        precision: Of the faces in a face's group, itself among them, the share that is its person's.
        recall: Of the faces of a face's person, itself among them, the share that is in its group.
        f: Harmonic mean of the two.
        faces: How many.
        people: How many they are of.
        groups: Of two and more faces.
    """

    precision: float
    recall: float
    f: float
    faces: int
    people: int
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def bcubed(groups: Sequence[Hashable], people: Sequence[Hashable]) -> BCubed:
    """Measure a grouping; a face alone is a group.

    Args:
        groups: n labels that were found.
        people: n labels that are true.

    Raises:
        DataError: No faces, or lengths that do not agree.
    """
    if not len(groups) or len(groups) != len(people):
        raise DataError(
            f"expected a person for each of the faces in groups, got {len(people)} for {len(groups)}"
        )
    counts = _contingency(groups, people)
    squares = counts**2
    precision = float((squares / counts.sum(axis=1, keepdims=True)).sum() / counts.sum())
    recall = float((squares / counts.sum(axis=0, keepdims=True)).sum() / counts.sum())
    return BCubed(
        precision=precision,
        recall=recall,
        f=2 * precision * recall / (precision + recall),
        faces=len(people),
        people=counts.shape[1],
        groups=int((counts.sum(axis=1) > 1).sum()),
    )


def _contingency(groups: Sequence[Hashable], people: Sequence[Hashable]) -> Float64Array:
    """float64 (groups, people): how many faces are in both."""
    group_numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
    person_numbers = {label: number for number, label in enumerate(dict.fromkeys(people))}
    counts = np.zeros((len(group_numbers), len(person_numbers)))
    for group, person in zip(groups, people, strict=True):
        counts[group_numbers[group], person_numbers[person]] += 1
    return counts
