"""A threshold from a gallery's own people, measured against each other as each other's strangers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from facepipe.core.counting import counted
from facepipe.core.errors import GalleryError
from facepipe.gallery.impostors import (
    MIN_PEOPLE,
    ImpostorModel,
    IntArray,
    all_pairs,
    rate_of_one_comparison,
    some_faces,
)

if TYPE_CHECKING:
    from facepipe.gallery.gallery import Gallery

_RULE_OF_THREE = 3
"""95% bound of a rate of which nothing was seen in n independent trials: 3 / n."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold from a gallery's own faces, and how sure it can be.

    Attributes:
        threshold_l2: Recommended.
        low_l2: Lower end of its 95% interval.
        high_l2: Upper end.
        wanted: The wanted rate: of strangers named by the gallery, or of one comparison.
        chances: Templates that the rate is for: all of the gallery's, or 1.
        wanted_far: The rate of one comparison that this takes.
        people: Whose faces were measured.
        templates: How many faces were measured; of large galleries a random part.
        impostors: Pairs of faces of different people.
        false_accepts: How many of them lie within the threshold.
        far_high: The rate of one comparison that can't be ruled out (95%). Counted over pairs of people,
            for photos of the same two people repeat each other; none seen: the rule of three.
        shown: Whether so many people could show the wanted rate by counting. Where False, the threshold is
            continued from larger rates, by the shape of the distribution's tail.
        genuines: Pairs of faces of one person.
        true_accept_rate: Share of them within the threshold; None: nobody has two faces.
        nearest_l2: Smallest distance of faces of different people,
        nearest_people: and their names: perhaps one person under two.
    """

    threshold_l2: float
    low_l2: float
    high_l2: float
    wanted: float
    chances: int
    wanted_far: float
    people: int
    templates: int
    impostors: int
    false_accepts: int
    far_high: float
    shown: bool
    genuines: int
    true_accept_rate: float | None
    nearest_l2: float
    nearest_people: tuple[str, str]


def calibrate(gallery: Gallery, rate: float, chances: int | None = None) -> Calibration:
    """Measure a gallery's people against each other, as each other's strangers.

    Args:
        gallery: Whose templates are compared.
        rate: Wanted share of strangers that get a name, 0..1.
        chances: From how many templates; None: as many as the gallery has; 1: of one comparison.

    Raises:
        GalleryError: There are too few people.
        UsageError: The rate is not within 0..1.
    """
    names, people, vectors = _faces(gallery)
    chances = len(vectors) if chances is None else chances
    wanted_far = rate_of_one_comparison(rate, chances)
    if len(names) < MIN_PEOPLE:
        raise GalleryError(
            f"{gallery.path}: {counted(len(names), 'person')}: too few to measure how near strangers come; "
            f"enroll at least {MIN_PEOPLE}, or stay with the encoder's own threshold"
        )
    kept = some_faces(len(vectors))
    measured = all_pairs(vectors[kept], people[kept])
    model = ImpostorModel.measured(measured.impostor_l2, measured.impostor_people)
    threshold = model.threshold_l2(rate, chances)
    low, high = model.interval_l2(rate, chances)
    accepted = int(np.count_nonzero(measured.impostor_l2 <= threshold))
    genuine, nearest = measured.genuine_l2, int(np.argmin(measured.impostor_l2))
    pairs_of_people = model.people * (model.people - 1) // 2
    first, second = (names[person] for person in measured.impostor_people[nearest])
    return Calibration(
        threshold_l2=threshold,
        low_l2=low,
        high_l2=high,
        wanted=rate,
        chances=chances,
        wanted_far=wanted_far,
        people=model.people,
        templates=len(kept),
        impostors=model.pairs,
        false_accepts=accepted,
        far_high=highest_rate(accepted / model.pairs, pairs_of_people),
        shown=wanted_far * pairs_of_people >= _RULE_OF_THREE,
        genuines=len(genuine),
        true_accept_rate=float(np.mean(genuine <= threshold)) if len(genuine) else None,
        nearest_l2=float(measured.impostor_l2[nearest]),
        nearest_people=(first, second),
    )


def highest_rate(share: float, trials: int) -> float:
    """Upper end of the 95% interval of a rate that was seen to be `share` in so many independent trials.

    Sources: E. B. Wilson 1927; where nothing was seen, the rule of three (Hanley and Lippman-Hand 1983).
    """
    if share == 0:
        return min(1.0, _RULE_OF_THREE / trials)
    z2 = 1.959964**2
    half = np.sqrt(z2 * share * (1 - share) / trials + (z2 / trials) ** 2 / 4)
    return min(1.0, float((share + z2 / trials / 2 + half) / (1 + z2 / trials)))


def _faces(gallery: Gallery) -> tuple[list[str], IntArray, npt.NDArray[np.float32]]:
    """Names, and of every template the number of its name and its vector."""
    with gallery.one_state():
        names = [person.name for person in gallery.people()]
        vectors = [gallery.vectors(name) for name in names]
    people = np.repeat(np.arange(len(names)), [len(rows) for rows in vectors])
    empty = np.zeros((0, gallery.encoder.dimensions), np.float32)
    return names, people, np.concatenate([empty, *vectors])
