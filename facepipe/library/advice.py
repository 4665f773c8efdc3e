"""Which threshold would have been right, by what people decided about faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.batch.decisions import Verdict
from facepipe.core.faces import BoolArray
from facepipe.gallery.calibration import highest_rate
from facepipe.library.library import Library
from facepipe.library.likelihood import Float64Array
from facepipe.library.models import Checked, LibraryFace

WRONG_NAME = 3.0
"""A wrong name is as bad as so many missing names."""
MIN_RIGHT, MIN_WRONG = 10, 5
"""Fewer decided faces show nothing about a threshold."""
_RESAMPLES, _SEED = 200, 0
_FACES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Share:
    """A share that was counted, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ThresholdAdvice:
    """What the decided faces show about a threshold.

    Attributes:
        name: Whose faces; None: of all people.
        missed: Faces of the nearest person that lie beyond the present threshold.
        wrong: Faces within it whose nearest person is not theirs.
        threshold_l2: Present: the person's own, or else the gallery's.
        best_l2: At which the fewest would be missed and wrong, a wrong one counted `WRONG_NAME` times: the
            present one where none is better; None: fewer than `MIN_RIGHT` or `MIN_WRONG` faces were decided,
            too few to know.
        low_l2: Lower end of its 95% interval; None with `best_l2`.
        high_l2: Upper end.
        best_missed: As `missed`, at `best_l2`.
        best_wrong: As `wrong`, at `best_l2`.
    """

    name: str | None
    missed: int
    wrong: int
    threshold_l2: float
    best_l2: float | None = None
    low_l2: float | None = None
    high_l2: float | None = None
    best_missed: int = 0
    best_wrong: int = 0

    @property
    def is_change_advised(self) -> bool:
        """The present threshold is outside the interval: that another is better is no accident."""
        if self.low_l2 is None or self.high_l2 is None:
            return False
        return not self.low_l2 <= self.threshold_l2 <= self.high_l2


def right_share(checked: Checked) -> Share | None:
    """Return which share of the checked names was right; None: none was checked."""
    count = checked.right + checked.wrong
    if not count:
        return None
    value = checked.right / count
    return Share(value, 1.0 - highest_rate(1.0 - value, count), highest_rate(value, count) if value else 0.0)


def threshold_advice(library: Library) -> list[ThresholdAdvice]:
    """Return advice for all people together, then for each of whom enough faces were decided, by name.

    Each decided face is compared with the other confirmed ones, as if it were new. Its nearest person is
    right, or wrong: the face was confirmed as somebody else, rejected as this person, ignored, or is no face.
    Whom a rejected face shows may not be known: it counts only where it was rejected as its nearest person.
    """
    judged = _judged(library)
    threshold_l2 = library.gallery.default_threshold_l2 or 0.0
    own_l2 = {person.name: person.threshold_l2 for person in library.gallery.people()}
    advice = [_advice(None, judged, threshold_l2)]
    for name in sorted(set(judged.names), key=lambda name: (name.casefold(), name)):
        own = judged.only(np.array([other == name for other in judged.names], np.bool_))
        advised = _advice(name, own, own_l2.get(name) or threshold_l2)
        if advised.best_l2 is not None:
            advice.append(advised)
    return advice


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Decided faces: the nearest person, the distance float64 (n,), whether the person is right (n,)."""

    names: list[str]
    distances_l2: Float64Array
    is_right: BoolArray

    def only(self, kept: BoolArray) -> _Judged:
        names = [name for name, is_kept in zip(self.names, kept.tolist(), strict=True) if is_kept]
        return _Judged(names, self.distances_l2[kept], self.is_right[kept])


def _judged(library: Library) -> _Judged:
    decided = [
        face
        for face in library.faces.values()
        if face.decision is not None and face.embedding_row is not None
    ]
    nearest = _nearest_others(library, decided)
    names, distances_l2, is_right = [], [], []
    for face, (name, distance_l2) in zip(decided, nearest, strict=True):
        verdict = None if name is None else _is_right(face, name)
        if name is not None and verdict is not None:
            names.append(name)
            distances_l2.append(distance_l2)
            is_right.append(verdict)
    return _Judged(names, np.array(distances_l2, np.float64), np.array(is_right, np.bool_))


def _is_right(face: LibraryFace, name: str) -> bool | None:
    """Whether a decided face shows this person; None: that was not decided."""
    decision = face.decision
    assert decision is not None
    if decision.verdict is Verdict.IS:
        return decision.name == name
    if decision.verdict is not None or name in decision.not_names:
        return False
    return None


def _nearest_others(library: Library, decided: list[LibraryFace]) -> list[tuple[str | None, float]]:
    """The nearest person of each face, by the nearest or the mean of the confirmed faces but itself."""
    confirmed = sorted((face for face in decided if face.is_confirmed), key=lambda face: face.name or "")
    if not confirmed:
        return [(None, np.inf)] * len(decided)
    names, starts, labels = np.unique(
        [face.name for face in confirmed], return_index=True, return_inverse=True
    )
    templates = _vectors(library, confirmed)
    column = {face.id: row for row, face in enumerate(confirmed)}
    found: list[tuple[str | None, float]] = []
    for start in range(0, len(decided), _FACES_AT_ONCE):
        faces = decided[start : start + _FACES_AT_ONCE]
        vectors = _vectors(library, faces)
        own = np.array([column.get(face.id, -1) for face in faces])
        cosines = _cosines(vectors, own, templates, starts, labels)
        best = cosines.argmax(axis=1)
        distances_l2 = np.sqrt(np.maximum(2.0 - 2.0 * cosines[np.arange(len(faces)), best], 0.0))
        is_near = np.isfinite(distances_l2).tolist()
        found += [
            (str(names[row]) if near else None, float(distance_l2))
            for row, distance_l2, near in zip(best.tolist(), distances_l2, is_near, strict=True)
        ]
    return found


def _vectors(library: Library, faces: list[LibraryFace]) -> Float64Array:
    rows = [face.embedding_row for face in faces if face.embedding_row is not None]
    return library.embeddings[rows].astype(np.float64)


def _cosines(
    vectors: Float64Array,
    own: npt.NDArray[np.int64],
    templates: Float64Array,
    starts: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> Float64Array:
    """Cosines (n, p) of faces to the nearest template or the mean of each person, a face itself left out.

    Args:
        vectors: float64 (n, d), of the faces.
        own: int64 (n,): which template is the face itself; -1: none.
        templates: float64 (m, d), person by person.
        starts: int64 (p,), where each person begins.
        labels: int64 (m,), the person of each template.
    """
    each, sums = vectors @ templates.T, np.add.reduceat(templates, starts, axis=0)
    to_sums, lengths = vectors @ sums.T, np.tile(np.linalg.norm(sums, axis=1), (len(vectors), 1))
    known = np.flatnonzero(own >= 0)
    person = labels[own[known]]
    each[known, own[known]] = -np.inf
    rest = sums[person] - templates[own[known]]
    to_sums[known, person] = np.einsum("nd,nd->n", vectors[known], rest)
    lengths[known, person] = np.linalg.norm(rest, axis=1)
    to_means = np.where(lengths > 1e-6, to_sums / np.maximum(lengths, 1e-6), -np.inf)
    return np.asarray(np.maximum(np.maximum.reduceat(each, starts, axis=1), to_means))


def _advice(name: str | None, judged: _Judged, threshold_l2: float) -> ThresholdAdvice:
    missed, wrong = _errors(judged, threshold_l2)
    right_count = int(judged.is_right.sum())
    if right_count < MIN_RIGHT or len(judged.is_right) - right_count < MIN_WRONG:
        return ThresholdAdvice(name, missed, wrong, threshold_l2)
    best_l2 = _best_threshold(judged.distances_l2, judged.is_right, threshold_l2)
    random = np.random.default_rng(_SEED)
    samples = random.integers(len(judged.is_right), size=(_RESAMPLES, len(judged.is_right)))
    spread = [
        _best_threshold(judged.distances_l2[rows], judged.is_right[rows], threshold_l2) for rows in samples
    ]
    low_l2, high_l2 = np.quantile(spread, [0.025, 0.975]).tolist()
    return ThresholdAdvice(
        name, missed, wrong, threshold_l2, best_l2, low_l2, high_l2, *_errors(judged, best_l2)
    )


def _errors(judged: _Judged, threshold_l2: float) -> tuple[int, int]:
    """How many faces are missed and how many named wrong."""
    is_within = judged.distances_l2 <= threshold_l2
    return int((judged.is_right & ~is_within).sum()), int((~judged.is_right & is_within).sum())


def _best_threshold(distances_l2: Float64Array, is_right: BoolArray, present_l2: float) -> float:
    """The present threshold where none costs less, or else the middle between the faces where one does."""
    order = np.argsort(distances_l2, kind="stable")
    rising = distances_l2[order]
    costs = np.concatenate([[0.0], np.cumsum(np.where(is_right[order], -1.0, WRONG_NAME))])
    best = int(np.argmin(costs))
    if costs[np.searchsorted(rising, present_l2, side="right")] == costs[best]:
        return present_l2
    below = rising[best - 1] if best else 0.0
    above = rising[best] if best < len(rising) else below
    return float((below + above) / 2)
