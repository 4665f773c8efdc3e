"""How near strangers come: false-accept rates of distances, for one comparison and for a whole gallery.

Distances are Euclidean between unit vectors, 0 (the same) to 2 (opposite). A face is compared with every
template, and one template within the threshold is enough for a wrong name. So the rate of strangers that get
a name (FPIR, false-positive identification rate) depends on how many templates there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import DataError, UsageError, one_line
from facepipe.core.validation import convert

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PersonArray = npt.NDArray[np.int32]

DEFAULT_FPIR = 0.01
"""Share of strangers that may get a name where no other rate is given."""

FARTHEST_L2 = 2.0
"""Largest distance of two unit vectors."""

FAR_LEVELS = (0.5, 0.3, 0.1, *(step * 10.0**-decade for decade in range(2, 10) for step in (3, 1)))
"""False-accept rates of one comparison at which distances are kept: 1e-9 is 1% in ten million templates."""

MIN_PEOPLE = 10
"""Fewer are no sample of strangers: ten people are 45 pairs."""

_TAIL_SHARE = (3e-3, 0.1)
"""Smallest and largest share of the nearest pairs that the tail is fitted to."""
_TAIL_PAIRS = 200
_MAX_FACES = 3000
"""Number of faces that are compared with each other: four and a half million pairs, some seconds."""


@dataclass(frozen=True, slots=True)
class ImpostorModel:
    """How near strangers come to one template, with 95% error bars, as plain numbers on an encoder's card.

    A stranger is named if any of N templates is within the threshold: FPIR = 1 - (1 - FAR)^N, where FAR is
    the share of pairs of strangers within it. That takes the templates for independent. Templates of one
    person are not, so the true rate is smaller: N is the worst case, and the bound N * FAR holds whatever the
    dependence. Measured on strangers in LFW who had no part in the model, rates were as predicted within
    a fifth for galleries of 1 to 1,000 templates (docs/research/experiments.md). Strangers who
    resemble the gallery's people more than those of the measured photos resemble each other (a family, a
    team of one age and origin) are named more often.

    Attributes:
        far: Falling false-accept rates of one comparison.
        distances_l2: The distance that the share `far` of pairs of strangers is within.
        low_l2: Lower ends of their 95% intervals.
        high_l2: Upper ends.
        people: How many were measured.
        pairs: Number of pairs of photos of different people.
        max_threshold_l2: No threshold is larger, however few the templates: beyond the one that
            separates pairs of photos best, more strangers are accepted than known faces.
        source: Which photos, found and encoded by what.

    Raises:
        DataError: The numbers are of another form.
    """

    far: tuple[float, ...]
    distances_l2: tuple[float, ...]
    low_l2: tuple[float, ...]
    high_l2: tuple[float, ...]
    people: int
    pairs: int
    max_threshold_l2: float
    source: str

    def __post_init__(self) -> None:
        columns = (self.far, self.distances_l2, self.low_l2, self.high_l2)
        if len({len(column) for column in columns}) != 1 or len(self.far) < 2:
            raise DataError("impostors: expected as many distances, low and high ends as rates, at least two")
        falling = all(b < a for a, b in pairwise(self.far))
        if not (falling and self.far[-1] > 0 and self.far[0] <= 1):
            raise DataError(f"impostors: expected rates falling within 0..1, got {self.far}")
        for column in columns[1:]:
            falling = all(b <= a for a, b in pairwise(column))
            if not (falling and column[-1] >= 0 and column[0] <= FARTHEST_L2):
                raise DataError(f"impostors: expected falling distances within 0..2, got {column}")
        if not 0 < self.max_threshold_l2 <= FARTHEST_L2:
            raise DataError(f"impostors: expected max_threshold_l2 in (0, 2], got {self.max_threshold_l2}")

    @classmethod
    def measured(
        cls,
        distances_l2: npt.ArrayLike,
        people: npt.NDArray[np.integer],
        *,
        max_threshold_l2: float = FARTHEST_L2,
        source: str = "",
        resamples: int = 100,
    ) -> Self:
        """Return the model of measured distances.

        Common distances are kept as they are. The rare small ones are smoothed, and continued to rates that
        so many pairs can't show, by a generalised Pareto distribution in the cosine, fitted by
        probability-weighted moments (Hosking and Wallis 1987) to the nearest 0.3% of pairs, or the nearest
        200 where those are more. Pairs that share a person are not independent: a few look-alikes make
        many of the small distances. So the error bars come from resampling people, a pair's weight being
        the product of its two people's (Owen's pigeonhole bootstrap).

        Args:
            distances_l2: (n,), of pairs of photos of different people.
            people: int (n, 2), numbers of the two people of each pair.
            max_threshold_l2: See the attribute.
            source: See the attribute.
            resamples: For the error bars; a million pairs take some seconds.

        Raises:
            DataError: The arrays do not agree, or there are fewer than `MIN_PEOPLE` people.
        """
        distances, ids = np.asarray(distances_l2, np.float64).ravel(), np.asarray(people)
        if ids.shape != (len(distances), 2) or not np.isfinite(distances).all():
            raise DataError(
                f"expected finite distances and the two people of each, got {distances.shape}, {ids.shape}"
            )
        names, ids = np.unique(ids, return_inverse=True)
        if len(names) < MIN_PEOPLE:
            raise DataError(f"expected photos of at least {MIN_PEOPLE} people, got {len(names)}")
        order = np.argsort(distances, kind="stable")
        cosines, first, second = 1 - distances[order] ** 2 / 2, *ids.reshape(-1, 2)[order].T.astype(np.int32)
        low, high = np.percentile(_bootstrap(cosines, first, second, resamples), [2.5, 97.5], axis=0)
        middle = _quantiles(cosines, np.ones(len(cosines)))
        return cls(
            far=FAR_LEVELS,
            distances_l2=_as_distances(middle),
            low_l2=_as_distances(high),
            high_l2=_as_distances(low),
            people=len(names),
            pairs=len(cosines),
            max_threshold_l2=max_threshold_l2,
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON and for `from_dict`; distances to a ten-thousandth."""
        return {
            name: [round(x, 4) if name != "far" else float(f"{x:.1g}") for x in value]
            if isinstance(value, tuple)
            else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            DataError: A field is missing, unknown or of another form.
        """
        named = {"pairs" if key == "couples" else key: value for key, value in raw.items()}  # until 0.2
        try:
            return convert(named, cls)
        except ValueError as error:
            raise DataError(f"impostors: {one_line(error)}") from error

    def threshold_l2(self, fpir: float, templates: int) -> float:
        """Return the threshold at which the share `fpir` of strangers gets a name from so many templates.

        At most `max_threshold_l2`. An empty gallery counts as one of one template.

        Raises:
            UsageError: The rate is not within 0..1.
        """
        return min(self.max_threshold_l2, self._distance(self.distances_l2, fpir, templates))

    def interval_l2(self, fpir: float, templates: int) -> tuple[float, float]:
        """Return the 95% interval of that threshold, before `max_threshold_l2` cuts it off."""
        return self._distance(self.low_l2, fpir, templates), self._distance(self.high_l2, fpir, templates)

    def fpir(self, threshold_l2: float, templates: int) -> float:
        """Return the share of strangers that get a name from so many templates, 0..1."""
        return self._fpir(self.distances_l2, threshold_l2, templates)

    def fpir_interval(self, threshold_l2: float, templates: int) -> tuple[float, float]:
        """Return the 95% interval of that share."""
        return (
            self._fpir(self.high_l2, threshold_l2, templates),
            self._fpir(self.low_l2, threshold_l2, templates),
        )

    def threshold_of_same_rate(self, other: ImpostorModel, other_l2: float) -> float:
        """Return the threshold within which as many strangers lie as within `other_l2` of another encoder.

        Below the smallest rate that is known, thresholds are in proportion.
        """
        own_l2 = np.interp(-np.log(other.far), -np.log(self.far), self.distances_l2)
        theirs, ours = ((0.0, *falling[::-1], FARTHEST_L2) for falling in (other.distances_l2, own_l2))
        return float(np.interp(other_l2, theirs, ours))

    def _distance(self, curve_l2: tuple[float, ...], fpir: float, templates: int) -> float:
        far = rate_of_one_comparison(fpir, templates)
        return float(np.interp(-np.log(far), -np.log(self.far), curve_l2))

    def _fpir(self, curve_l2: tuple[float, ...], threshold_l2: float, templates: int) -> float:
        # Rates below the last one that is known are taken to be it.
        distances, logs = (FARTHEST_L2, *curve_l2)[::-1], (0.0, *np.log(self.far))[::-1]
        far = min(1 - 1e-12, float(np.exp(np.interp(threshold_l2, distances, logs))))
        return float(-np.expm1(max(templates, 1) * np.log1p(-far)))


def rate_of_one_comparison(fpir: float, templates: int) -> float:
    """Return the false-accept rate of one comparison that adds up to `fpir` over so many independent ones.

    Raises:
        UsageError: The rate is not within 0..1.
    """
    if not 0 < fpir < 1:
        raise UsageError(f"expected a rate between 0 and 1, got {fpir}")
    return float(-np.expm1(np.log1p(-fpir) / max(templates, 1)))


@dataclass(frozen=True, slots=True)
class FacePairs:
    """Distances of all pairs of some faces.

    Attributes:
        genuine_l2: float64 (m,), distances of faces of one person.
        genuine_people: int64 (m,), that person.
        impostor_l2: float64 (n,), distances of faces of different people.
        impostor_people: int64 (n, 2), those two.
    """

    genuine_l2: Float64Array
    genuine_people: IntArray
    impostor_l2: Float64Array
    impostor_people: IntArray


def all_pairs(vectors: npt.NDArray[np.floating], people: npt.NDArray[np.integer]) -> FacePairs:
    """Compare every face with every other.

    Args:
        vectors: (k, d), unit length; k * k numbers are kept in memory.
        people: int (k,), number of each one's person.
    """
    first, second = np.triu_indices(len(vectors), 1)
    matrix = vectors.astype(np.float64)
    distances = np.sqrt(np.clip(2 - 2 * (matrix @ matrix.T)[first, second], 0, None))
    same = people[first] == people[second]
    strangers = np.stack([people[first[~same]], people[second[~same]]], axis=1)
    return FacePairs(distances[same], people[first[same]], distances[~same], strangers)


def some_faces(count: int) -> IntArray:
    """Rows of faces to measure with each other: all, or always the same random 3,000 of more."""
    if count <= _MAX_FACES:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, _MAX_FACES, replace=False))


def _as_distances(cosines: Float64Array) -> tuple[float, ...]:
    distances = np.sqrt(np.clip(2 - 2 * cosines, 0, FARTHEST_L2**2))
    return tuple(float(distance) for distance in np.minimum.accumulate(distances))


def _bootstrap(
    cosines: Float64Array, first: PersonArray, second: PersonArray, resamples: int
) -> Float64Array:
    """`_quantiles` (resamples, levels) of resampled people; the given cosines fall."""
    rng, people = np.random.default_rng(0), int(max(first.max(), second.max())) + 1
    rows: list[Float64Array] = []
    while len(rows) < resamples:
        drawn = rng.poisson(1.0, people).astype(np.float64)
        weights = drawn[first] * drawn[second]
        # A resample of few people can hold hardly anyone.
        if np.count_nonzero(weights) >= MIN_PEOPLE:
            rows.append(_quantiles(cosines, weights))
    return np.stack(rows)


def _quantiles(cosines: Float64Array, weights: Float64Array) -> Float64Array:
    """Return the cosines that the shares `FAR_LEVELS` lie above; float64 (levels,). The given ones fall."""
    heap = np.cumsum(weights)
    far, last = np.asarray(FAR_LEVELS), len(cosines) - 1
    counted = cosines[np.minimum(np.searchsorted(heap, far * heap[-1]), last)]
    start = float(np.clip(_TAIL_PAIRS / len(cosines), *_TAIL_SHARE))
    edge = min(int(np.searchsorted(heap, start * heap[-1])), last)
    tail = cosines[edge] + _tail(cosines[: edge + 1] - cosines[edge], weights[: edge + 1], far / start)
    quantiles: Float64Array = np.where(far < start, tail, counted)
    return quantiles


def _tail(excess: Float64Array, weights: Float64Array, shares: Float64Array) -> Float64Array:
    """By how much the `shares` (of the excesses, which fall) exceed, by a generalised Pareto distribution."""
    above = (np.cumsum(weights) - weights / 2) / weights.sum()
    mean = float(np.average(excess, weights=weights))
    moment = float(np.average(excess * above, weights=weights))
    spread = max(mean - 2 * moment, 1e-9)
    shape, scale = 2 - mean / spread, 2 * mean * moment / spread
    logs = np.log(np.minimum(shares, 1))
    if abs(shape) < 1e-9:
        return np.asarray(-scale * logs)
    return np.asarray(scale * np.expm1(-shape * logs) / shape)
