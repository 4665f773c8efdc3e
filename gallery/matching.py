"""Naming a face: whether the nearest person is near enough, and the next nearest other one far enough."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import Match
from facepipe.gallery.ranking import NearestPeople


class Doubt(Enum):
    """Why a face that was compared is not named. The values are stable codes for reports."""

    NOBODY_NEAR = "nobody_near"
    """The nearest person is farther than the threshold, or there is nobody."""
    BETWEEN_PEOPLE = "between_people"
    """The next person is hardly farther: it could be either."""
    TAKEN = "taken"
    """Another face of the photo is nearer to that person, who can be there once only."""


@dataclass(frozen=True, slots=True)
class PersonAt:
    """A person at a Euclidean distance."""

    name: str
    distance_l2: float


def others_than(name: str, nearest: NearestPeople, names: dict[int, str]) -> list[PersonAt | None]:
    """Return the nearest people who are not `name`; None where there is nobody else."""
    found: list[PersonAt | None] = []
    for row in range(len(nearest.first)):
        first, second = names.get(int(nearest.first[row])), names.get(int(nearest.second[row]))
        if first is not None and first != name:
            found.append(PersonAt(first, float(nearest.first_l2[row])))
        elif second is not None:
            found.append(PersonAt(second, float(nearest.second_l2[row])))
        else:
            found.append(None)
    return found


def doubts(
    nearest: NearestPeople,
    thresholds_l2: npt.NDArray[np.float64],
    min_margin_l2: float,
    one_person_per_photo: bool,
    photos: npt.ArrayLike | None = None,
) -> list[Doubt | None]:
    """Why each of n faces does not get the name of its nearest person; None where it does.

    `thresholds_l2` float64 (n,) are those of the nearest people. The next nearest person must be farther by
    the margin, or it could as well be them. With `one_person_per_photo` each person goes to the nearest (the
    first of equals) of the faces that are clearly this person. A farther person is never a second choice.
    With that rule the best assignment over all faces and people is the best face of each person, so no solver
    is needed; docs/research/experiments.md has the figures of the rules that need one.
    """
    # Where there is nobody both distances are infinite, and their difference would be no number.
    margins = np.subtract(
        nearest.second_l2, nearest.first_l2, out=np.zeros(len(nearest.first)), where=nearest.first >= 0
    )
    near = nearest.first_l2 <= thresholds_l2
    clear = near & (margins >= min_margin_l2)
    best = _best_faces(nearest, clear, photos) if one_person_per_photo else clear
    return [_doubt(*face) for face in zip(best, clear, near, strict=True)]


def _doubt(is_best: bool, is_clear: bool, is_near: bool) -> Doubt | None:
    if is_best:
        return None
    if is_clear:
        return Doubt.TAKEN
    return Doubt.BETWEEN_PEOPLE if is_near else Doubt.NOBODY_NEAR


def _best_faces(
    nearest: NearestPeople, candidates: npt.NDArray[np.bool_], photos: npt.ArrayLike | None
) -> npt.NDArray[np.bool_]:
    """bool (n,): of the candidates bool (n,) of one photo with the same nearest person, the nearest."""
    places = np.zeros(len(candidates), np.int64) if photos is None else np.asarray(photos, np.int64)
    rising = np.flatnonzero(candidates)[np.argsort(nearest.first_l2[candidates], kind="stable")]
    best_of: dict[tuple[int, int], int] = {}
    for row, photo, person in zip(
        rising.tolist(), places[rising].tolist(), nearest.first[rising].tolist(), strict=True
    ):
        best_of.setdefault((photo, person), row)
    best = np.zeros(len(candidates), np.bool_)
    best[list(best_of.values())] = True
    return best


def as_matches(
    nearest: NearestPeople,
    reasons: list[Doubt | None],
    thresholds_l2: npt.NDArray[np.float64],
    names: dict[int, str],
) -> tuple[Match, ...]:
    """Return the matches of n faces, one each."""
    people = [names.get(int(person)) for person in nearest.first]
    return tuple(
        Match(
            name=person if doubt is None else None,
            distance_l2=_finite(nearest.first_l2[row]),
            threshold_l2=float(thresholds_l2[row]),
            runner_up_name=names.get(int(nearest.second[row])),
            runner_up_distance_l2=_finite(nearest.second_l2[row]),
            candidate_name=person if doubt is Doubt.BETWEEN_PEOPLE else None,
            reason=None if doubt is None else doubt.value,
        )
        for row, (person, doubt) in enumerate(zip(people, reasons, strict=True))
    )


def _finite(distance: np.float64) -> float | None:
    return float(distance) if np.isfinite(distance) else None
