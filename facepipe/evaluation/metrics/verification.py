"""Verification of pairs of photos: n-fold accuracy, equal error rate, true accepts at a false-accept rate.

Source of the protocol: G. Huang et al., "Labeled Faces in the Wild", 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from facepipe.evaluation.arrays import BoolArray, Float64Array, IntArray, RealArray
from facepipe.evaluation.metrics.distances import area_under_roc, equal_error_rate, largest_threshold
from facepipe.gallery.impostors import FARTHEST_L2

FAR_LEVELS = (1e-2, 1e-3, 1e-4)
"""False-accept rates at which true accepts are reported."""


@dataclass(frozen=True, slots=True)
class PhotoPair:
    """Two photos by key, in one fold of the protocol.

    `group` is the name of its group in the list, such as an age gap; None: it has none.
    """

    first: str
    second: str
    same_person: bool
    fold: int
    group: str | None = None


@dataclass(frozen=True, slots=True)
class PairDistances:
    """The measured pairs.

    Attributes:
        distances_l2: float64 (n,), 0..2; 2 where a photo has no embedding.
        same_person: bool (n,).
        folds: int64 (n,).
        failed_pairs: Pairs of which a photo has no embedding.
        failed_photos: Photos without an embedding.
    """

    distances_l2: Float64Array
    same_person: BoolArray
    folds: IntArray
    failed_pairs: int
    failed_photos: int


@dataclass(frozen=True, slots=True)
class TarAtFar:
    """True accepts where at most `far` of the impostors are accepted.

    `resolved` False: with so few impostor pairs this is the rate at no false accept at all.
    """

    far: float
    tar: float
    threshold_l2: float
    false_accepts: int
    resolved: bool


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Figures of one fold, 0..1.

    Attributes:
        fold: From 0.
        pairs: How many.
        threshold_l2: The threshold best on the other folds.
        accuracy: At that threshold.
        eer: Equal error rate; None: the fold lacks pairs of one person, or of two.
        auc: Area under the ROC curve; None likewise.
    """

    fold: int
    pairs: int
    threshold_l2: float
    accuracy: float
    eer: float | None
    auc: float | None


@dataclass(frozen=True, slots=True)
class FoldSpread:
    """Means over the folds and standard deviations (of a sample), 0..1, as CFP's authors publish them.

    The mean of the accuracies is `VerificationResult.accuracy`.
    """

    accuracy_deviation: float
    eer_mean: float
    eer_deviation: float
    auc_mean: float
    auc_deviation: float


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """Figures of one encoder on one list of pairs.

    Attributes:
        pairs: How many.
        failed_pairs: Pairs with a photo in which no face was found; they count as "different", at distance 2.
        failed_photos: Photos in which no face was found.
        accuracy: Mean over the folds, 0..1.
        accuracy_error: Its standard error over the folds; None with one fold, whose threshold was chosen on
            the very pairs that it is measured on.
        folds: Fold by fold.
        over_folds: Their means and deviations; None: one fold, or a fold without pairs of both kinds.
        best_threshold_l2: The threshold best on all pairs.
        eer: Equal error rate, 0..1.
        auc: Area under the ROC curve, 0..1.
        tar_at_far: At `FAR_LEVELS`.
    """

    pairs: int
    failed_pairs: int
    failed_photos: int
    accuracy: float
    accuracy_error: float | None
    folds: tuple[FoldResult, ...]
    over_folds: FoldSpread | None
    best_threshold_l2: float
    eer: float
    auc: float
    tar_at_far: tuple[TarAtFar, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def pair_photos(pairs: Sequence[PhotoPair]) -> tuple[str, ...]:
    """Return the keys of all photos in the pairs, sorted, each once."""
    return tuple(sorted({key for pair in pairs for key in (pair.first, pair.second)}))


def pair_distances(pairs: Sequence[PhotoPair], embeddings: Mapping[str, RealArray]) -> PairDistances:
    """Measure the pairs; a photo that is not in `embeddings` (by key) counts as one without a face.

    Such a pair is at distance 2, "different": a fault when it is one person, and right when it is two.
    """
    distances = np.full(len(pairs), FARTHEST_L2)
    for i, pair in enumerate(pairs):
        if pair.first in embeddings and pair.second in embeddings:
            difference = np.subtract(embeddings[pair.first], embeddings[pair.second], dtype=np.float64)
            distances[i] = np.linalg.norm(difference)
    failed = [p for p in pairs if p.first not in embeddings or p.second not in embeddings]
    return PairDistances(
        distances,
        np.array([pair.same_person for pair in pairs], np.bool_),
        np.array([pair.fold for pair in pairs], np.int64),
        failed_pairs=len(failed),
        failed_photos=len(set(pair_photos(failed)) - embeddings.keys()),
    )


def verification(measured: PairDistances) -> VerificationResult:
    """Compute the figures of the measured pairs.

    Raises:
        DataError: No pair of one person, or none of two.
    """
    distances, same = measured.distances_l2, measured.same_person
    auc = area_under_roc(distances[same], distances[~same])
    folds = tuple(_fold_result(measured, int(fold)) for fold in np.unique(measured.folds))
    accuracies = np.array([fold.accuracy for fold in folds])
    return VerificationResult(
        pairs=len(distances),
        failed_pairs=measured.failed_pairs,
        failed_photos=measured.failed_photos,
        accuracy=float(accuracies.mean()),
        accuracy_error=float(accuracies.std(ddof=1) / np.sqrt(len(folds))) if len(folds) > 1 else None,
        folds=folds,
        over_folds=_fold_spread(folds),
        best_threshold_l2=best_threshold(distances, same),
        eer=equal_error_rate(distances[same], distances[~same]),
        auc=auc,
        tar_at_far=true_accepts(distances[same], distances[~same]),
    )


def best_threshold(distances_l2: Float64Array, same_person: BoolArray) -> float:
    """Return the most accurate threshold of all possible ones: half way to the next distance.

    Of several equally good ones, the middle one.
    """
    order = np.argsort(distances_l2, kind="stable")
    distances = distances_l2[order]
    right = np.cumsum(np.concatenate(([0], np.where(same_person[order], 1, -1))))
    edges = np.concatenate(([0.0], distances, [FARTHEST_L2]))
    possible = np.concatenate((distances[:1] > 0, distances[1:] > distances[:-1], [True]))
    best = np.flatnonzero(possible & (right == right[possible].max()))
    middle = best[len(best) // 2]
    return float((edges[middle] + edges[middle + 1]) / 2)


def true_accepts(genuine_l2: Float64Array, impostor_l2: Float64Array) -> tuple[TarAtFar, ...]:
    """At `FAR_LEVELS`.

    Raises:
        DataError: No impostor distance.
    """
    return tuple(_true_accepts(genuine_l2, impostor_l2, far) for far in FAR_LEVELS)


def _true_accepts(genuine_l2: Float64Array, impostor_l2: Float64Array, far: float) -> TarAtFar:
    threshold = largest_threshold(impostor_l2, far)
    return TarAtFar(
        far=far,
        tar=float(np.mean(genuine_l2 <= threshold)),
        threshold_l2=threshold,
        false_accepts=int(np.count_nonzero(impostor_l2 <= threshold)),
        resolved=far * len(impostor_l2) >= 1,
    )


def _fold_result(measured: PairDistances, fold: int) -> FoldResult:
    inside = measured.folds == fold
    chosen_on = ~inside if not inside.all() else inside
    threshold = best_threshold(measured.distances_l2[chosen_on], measured.same_person[chosen_on])
    distances, same = measured.distances_l2[inside], measured.same_person[inside]
    accuracy = float(((distances <= threshold) == same).mean())
    if same.all() or not same.any():
        return FoldResult(fold, len(same), threshold, accuracy, None, None)
    genuine, impostors = distances[same], distances[~same]
    eer, auc = equal_error_rate(genuine, impostors), area_under_roc(genuine, impostors)
    return FoldResult(fold, len(same), threshold, accuracy, eer, auc)


def _fold_spread(folds: Sequence[FoldResult]) -> FoldSpread | None:
    rows = [(f.accuracy, f.eer, f.auc) for f in folds if f.eer is not None and f.auc is not None]
    if len(folds) < 2 or len(rows) < len(folds):
        return None
    means, deviations = np.mean(rows, axis=0).tolist(), np.std(rows, axis=0, ddof=1).tolist()
    return FoldSpread(deviations[0], means[1], deviations[1], means[2], deviations[2])
