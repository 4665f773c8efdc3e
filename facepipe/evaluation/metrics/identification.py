"""Open-set identification: the nearest template of a gallery, with strangers among the probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import BoolArray, Float64Array, IntArray, RealArray
from facepipe.evaluation.metrics.distances import largest_threshold

FPIR = 0.01
"""Share of strangers named at which misses are reported (false-positive identification rate)."""

_PROBES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest template to every probe.

    Attributes:
        names: Of the nearest template's person; where no face was found in the probe, None.
        distances_l2: float64 (n,), to that template; infinite where no face was found.
    """

    names: tuple[str | None, ...]
    distances_l2: Float64Array


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """Shares (0..1) at one threshold, where a probe gets the nearest name up to that distance.

    Attributes:
        threshold_l2: The threshold.
        right: Share of known probes with their own name.
        wrong: Share of known probes with another's name.
        unnamed: The rest of them, probes without a face included.
        strangers_named: Share of strangers with a name; None without strangers.
    """

    threshold_l2: float
    right: float
    wrong: float
    unnamed: float
    strangers_named: float | None


@dataclass(frozen=True, slots=True)
class IdentificationResult:
    """Open-set identification of one encoder.

    Attributes:
        templates: Embeddings in the gallery.
        people: Names in the gallery.
        known: Probes of people in the gallery.
        strangers: Probes of people who are not.
        without_face: Probes in which no face was found: known ones are missed, strangers are left unnamed.
        rank1: Share of known probes whose nearest template is their own, whatever its distance.
        at_thresholds: At the thresholds asked for, in their order.
        at_fpir: Where at most 1% of the strangers are named; None without strangers.
        fnir_at_fpir: Share of known probes not named right there (FNIR at FPIR 1%); None without strangers.
        fpir_resolved: Whether there are enough strangers (100) to show 1%; else `at_fpir` names none of them.
    """

    templates: int
    people: int
    known: int
    strangers: int
    without_face: int
    rank1: float
    at_thresholds: tuple[AtThreshold, ...]
    at_fpir: AtThreshold | None
    fnir_at_fpir: float | None
    fpir_resolved: bool

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def nearest_templates(gallery: RealArray, gallery_names: Sequence[str], probes: RealArray) -> Nearest:
    """Find the nearest template to every probe by exact search.

    Args:
        gallery: (m, d), unit vectors, several a person where there are several photos.
        gallery_names: m names.
        probes: (n, d), unit vectors; a row of NaN is a probe in which no face was found.

    Raises:
        DataError: Empty gallery, lengths that do not agree, or vectors that are not finite.
    """
    templates = np.asarray(gallery, np.float64)
    if not len(templates) or len(templates) != len(gallery_names):
        raise DataError(
            f"expected a name for each of the templates, got {len(gallery_names)} for {len(templates)}"
        )
    if not np.isfinite(templates).all():
        raise DataError("the gallery's vectors are not all finite")
    vectors = np.asarray(probes, np.float64).reshape(-1, templates.shape[1])
    found: BoolArray = np.asarray(np.isfinite(vectors).all(axis=1))
    nearest, distances = np.zeros(len(vectors), np.int64), np.full(len(vectors), np.inf)
    nearest[found], distances[found] = _search(templates, vectors[found])
    rows = zip(nearest.tolist(), found.tolist(), strict=True)
    names = tuple(gallery_names[row] if ok else None for row, ok in rows)
    return Nearest(names, distances)


def identification(
    gallery: RealArray,
    gallery_names: Sequence[str],
    probes: RealArray,
    true_names: Sequence[str | None],
    thresholds_l2: Sequence[float] = (),
) -> IdentificationResult:
    """Identify the probes and count the outcomes.

    Args:
        gallery: As in `nearest_templates`, and so the next two.
        gallery_names: m names.
        probes: (n, d).
        true_names: n names, None for a stranger.
        thresholds_l2: Where to count.

    Raises:
        DataError: As `nearest_templates`; no known probe; or a true name that is not in the gallery.
    """
    enrolled = set(gallery_names)
    known = [name is not None for name in true_names]
    if not any(known):
        raise DataError("expected at least one probe of a person in the gallery")
    if absent := {name for name in true_names if name is not None} - enrolled:
        raise DataError(
            f"{min(absent)}: a probe's person is not in the gallery; the true name of a stranger is None"
        )
    nearest = nearest_templates(gallery, gallery_names, probes)
    hits = [name is not None and name == found for name, found in zip(true_names, nearest.names, strict=True)]
    counts = _Counts(nearest.distances_l2, np.array(known, np.bool_), np.array(hits, np.bool_))
    stranger_distances = nearest.distances_l2[~counts.known]
    at_fpir = counts.at(largest_threshold(stranger_distances, FPIR)) if len(stranger_distances) else None
    return IdentificationResult(
        templates=len(gallery_names),
        people=len(enrolled),
        known=int(counts.known.sum()),
        strangers=len(stranger_distances),
        without_face=int(np.isinf(nearest.distances_l2).sum()),
        rank1=float(counts.hits[counts.known].mean()),
        at_thresholds=tuple(counts.at(threshold) for threshold in thresholds_l2),
        at_fpir=at_fpir,
        fnir_at_fpir=1 - at_fpir.right if at_fpir else None,
        fpir_resolved=FPIR * len(stranger_distances) >= 1,
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    distances_l2: Float64Array
    known: BoolArray
    hits: BoolArray

    def at(self, threshold_l2: float) -> AtThreshold:
        named = self.distances_l2 <= threshold_l2
        right, wrong = (float((named & rows)[self.known].mean()) for rows in (self.hits, ~self.hits))
        unnamed = float((~named)[self.known].mean())
        strangers = None if self.known.all() else float(named[~self.known].mean())
        return AtThreshold(threshold_l2, right, wrong, unnamed, strangers)


def _search(templates: Float64Array, probes: Float64Array) -> tuple[IntArray, Float64Array]:
    nearest = [np.zeros(0, np.int64)]
    squares = (templates**2).sum(axis=1)
    for start in range(0, len(probes), _PROBES_AT_ONCE):
        block = probes[start : start + _PROBES_AT_ONCE]
        nearest.append(np.argmin(squares - 2 * block @ templates.T, axis=1))
    rows = np.concatenate(nearest)
    return rows, np.linalg.norm(probes - templates[rows], axis=1)
