"""Verification of pairs of photos: n-fold accuracy, true accepts at a false-accept rate.

Source of the protocol and of pairs.txt: G. Huang et al., "Labeled Faces in the Wild", 2007.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import BoolArray, Float64Array, IntArray, RealArray
from facepipe.evaluation.metrics.distances import area_under_roc, largest_threshold
from facepipe.gallery.impostors import FARTHEST_L2

FAR_LEVELS = (1e-2, 1e-3, 1e-4)
"""False-accept rates at which true accepts are reported."""


@dataclass(frozen=True, slots=True)
class PhotoPair:
    """Two photos by key, "<person>/<person>_<number of four digits>", in one fold of the protocol."""

    first: str
    second: str
    same_person: bool
    fold: int


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
class FoldAccuracy:
    """Accuracy (0..1) on one fold at the threshold that is best on the other folds."""

    fold: int
    pairs: int
    threshold_l2: float
    accuracy: float


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
        best_threshold_l2: The threshold best on all pairs.
        auc: Area under the ROC curve, 0..1.
        tar_at_far: At `FAR_LEVELS`.
    """

    pairs: int
    failed_pairs: int
    failed_photos: int
    accuracy: float
    accuracy_error: float | None
    folds: tuple[FoldAccuracy, ...]
    best_threshold_l2: float
    auc: float
    tar_at_far: tuple[TarAtFar, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def read_pairs(file: Path) -> tuple[PhotoPair, ...]:
    """Read a pairs.txt: a header, then per fold so many rows of one person and as many of two.

    The header is "folds pairs" or, for one fold, "pairs". Rows are "person number number" and "person number
    person number", split by tabs or, without any tab, by blanks.

    Raises:
        DataError: The file is missing, a row has another form, or the count differs from the header's.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't read the list of pairs ({error})") from error
    folds, per_class = _header(file, lines)
    if len(lines) - 1 != folds * per_class * 2:
        raise DataError(
            f"{file}: the header promises {folds} folds of 2 x {per_class} pairs, "
            f"{folds * per_class * 2} rows, but there are {len(lines) - 1}"
        )
    return tuple(_pair(file, line, i // (2 * per_class)) for i, line in enumerate(lines[1:]))


def pair_photos(pairs: Sequence[PhotoPair]) -> tuple[str, ...]:
    """Return the keys of all photos in the pairs, sorted, each once."""
    return tuple(sorted({key for pair in pairs for key in (pair.first, pair.second)}))


def find_photos(images: Path, keys: Sequence[str]) -> dict[str, Path]:
    """Return the photo file of every key at `images/<person>/<person>_<number>.<any format>`.

    Raises:
        DataError: A photo is not there.
    """
    people = {key.partition("/")[0] for key in keys}
    files = {
        f"{person}/{file.stem}": file for person in sorted(people) for file in (images / person).glob("*.*")
    }
    if missing := sorted(set(keys) - files.keys()):
        raise DataError(
            f"{images}: {len(missing)} of {len(keys)} photos of the pairs are missing, as {missing[0]}"
        )
    return {key: files[key] for key in keys}


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
    folds = tuple(_fold_accuracy(measured, int(fold)) for fold in np.unique(measured.folds))
    accuracies = np.array([fold.accuracy for fold in folds])
    return VerificationResult(
        pairs=len(distances),
        failed_pairs=measured.failed_pairs,
        failed_photos=measured.failed_photos,
        accuracy=float(accuracies.mean()),
        accuracy_error=float(accuracies.std(ddof=1) / np.sqrt(len(folds))) if len(folds) > 1 else None,
        folds=folds,
        best_threshold_l2=best_threshold(distances, same),
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


def _fold_accuracy(measured: PairDistances, fold: int) -> FoldAccuracy:
    inside = measured.folds == fold
    chosen_on = ~inside if not inside.all() else inside
    threshold = best_threshold(measured.distances_l2[chosen_on], measured.same_person[chosen_on])
    right = (measured.distances_l2[inside] <= threshold) == measured.same_person[inside]
    return FoldAccuracy(fold, int(inside.sum()), threshold, float(right.mean()))


def _header(file: Path, lines: Sequence[str]) -> tuple[int, int]:
    try:
        numbers = [int(word) for word in lines[0].split()]
        folds, per_class = (1, *numbers) if len(numbers) == 1 else numbers
    except (IndexError, ValueError) as error:
        raise DataError(f"{file}: expected a header of 'folds pairs' or 'pairs'") from error
    return folds, per_class


def _pair(file: Path, line: str, fold: int) -> PhotoPair:
    words = [word.strip() for word in (line.split("\t") if "\t" in line else line.split())]
    try:
        if len(words) == 3:
            return PhotoPair(_photo_key(words[0], words[1]), _photo_key(words[0], words[2]), True, fold)
        if len(words) == 4:
            return PhotoPair(_photo_key(words[0], words[1]), _photo_key(words[2], words[3]), False, fold)
    except ValueError as error:
        raise DataError(f"{file}: expected photo numbers in {line!r}") from error
    raise DataError(f"{file}: expected 3 or 4 columns, got {len(words)} in {line!r}")


def _photo_key(person: str, number: str) -> str:
    return f"{person}/{person}_{int(number):04d}"
