"""Test of thresholds by `ImpostorModel` on galleries of other people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.evaluation.arrays import BoolArray, Float64Array, IntArray
from facepipe.gallery.impostors import (
    DEFAULT_FPIR,
    MIN_PEOPLE,
    FacePairs,
    ImpostorModel,
    all_pairs,
    some_faces,
)

GALLERY_SIZES = (1, 20, 100, 1000)
"""Templates of the galleries on which a model is tried."""

_SPLITS, _GALLERIES = 10, 3


@dataclass(frozen=True, slots=True)
class GalleryCheck:
    """Rate of strangers named at a threshold by `ImpostorModel`, measured on people who had no part in it.

    Attributes:
        templates: Of the galleries tried.
        threshold_l2: Mean of the thresholds for `wanted`.
        wanted: Share of strangers for which the threshold was made.
        measured: Share of strangers named, the mean over galleries.
        spread: Its standard deviation over the random halves of the people.
    """

    templates: int
    threshold_l2: float
    wanted: float
    measured: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVectors:
    """Faces whose people are known: vectors float64 (n, d) of unit length, person numbers int64 (n,)."""

    vectors: Float64Array
    people: IntArray

    @classmethod
    def of(cls, vectors: Mapping[str, FloatArray], people: Mapping[str, str]) -> LabelledVectors:
        """Take the vectors and persons of photos by key; of very many faces a random part."""
        numbers = np.unique([people[key] for key in vectors], return_inverse=True)[1]
        rows = some_faces(len(numbers))
        return cls(np.stack(list(vectors.values())).astype(np.float64)[rows], numbers.astype(np.int64)[rows])

    def select(self, rows: BoolArray) -> LabelledVectors:
        """Some of the faces."""
        return LabelledVectors(self.vectors[rows], self.people[rows])

    def all_pairs(self) -> FacePairs:
        """Return all pairs of the faces."""
        return all_pairs(self.vectors, self.people)


def check_galleries(faces: LabelledVectors, fpir: float = DEFAULT_FPIR) -> tuple[GalleryCheck, ...]:
    """Test the model on random galleries of `GALLERY_SIZES`, as far as there are faces.

    Ten times, a model is made of one half of the people, galleries are drawn from all, and people of the
    other half who are not in the gallery try to get a name. A gallery takes all photos of a person.
    """
    rates: dict[int, list[tuple[float, float]]] = {size: [] for size in GALLERY_SIZES}
    names = np.unique(faces.people)
    if len(names) < 4 * MIN_PEOPLE:
        return ()
    for split in range(_SPLITS):
        rng = np.random.default_rng(split)
        first_half = np.isin(faces.people, rng.permutation(names)[: len(names) // 2])
        model = _quick_model(faces.select(first_half))
        for size in GALLERY_SIZES:
            threshold = model.threshold_l2(fpir, size)
            named = [_named(faces, ~first_half, size, threshold, rng) for _ in range(_GALLERIES)]
            rates[size] += [(threshold, share) for share in named if share is not None]
    return tuple(_check(size, fpir, np.array(found)) for size, found in rates.items() if found)


def _quick_model(faces: LabelledVectors) -> ImpostorModel:
    measured = faces.all_pairs()
    return ImpostorModel.measured(measured.impostor_l2, measured.impostor_people, resamples=1)


def _named(
    faces: LabelledVectors, may_probe: BoolArray, size: int, threshold_l2: float, rng: np.random.Generator
) -> float | None:
    """Share of strangers within the threshold of a random gallery; None: there are not faces enough."""
    order = rng.permutation(np.unique(faces.people))
    rows = np.concatenate([np.flatnonzero(faces.people == person) for person in order])[:size]
    strangers = may_probe & ~np.isin(faces.people, faces.people[rows])
    if len(rows) < size or np.count_nonzero(strangers) < 100:
        return None
    cosines = (faces.vectors[strangers] @ faces.vectors[rows].T).max(axis=1)
    return float(np.mean(2 - 2 * cosines <= threshold_l2**2))


def _check(size: int, fpir: float, found: Float64Array) -> GalleryCheck:
    thresholds, shares = found.T
    return GalleryCheck(size, float(thresholds.mean()), fpir, float(shares.mean()), float(shares.std()))
