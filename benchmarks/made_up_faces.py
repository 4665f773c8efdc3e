"""Made-up embeddings, as far from one another as those of real faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray

DIMENSIONS = 128
FACES_A_PERSON = 10
STRANGERS_L2 = (1.339, 0.111)
"""Mean and deviation of the distances between faces of different people: 2,442,422 pairs among 2,217
aligned crops of 300 people (Families in the Wild, CelebA), by an early encoder,
mirror images averaged."""
SAME_PERSON_L2 = (0.951, 0.182)
"""Of 14,014 pairs of the same person among them."""
CHUNK = 1 << 16
"""Rows that are computed at once."""


@dataclass(frozen=True, slots=True)
class Faces:
    """Enrolled faces and queries, with their exact answers.

    Attributes:
        enrolled: float32 (n, d), mapped from a file; person i owns rows 10 i to 10 i + 9.
        known: float32 (q, d), other photos of enrolled people.
        strangers: float32 (q, d).
        nearest: int64 (2 q,), the nearest row of each query, known ones first, by exact search.
        people: int64 (2 q,), the nearest person: by rows and means of rows.
        people_l2: float64 (2 q,).
    """

    enrolled: FloatArray
    known: FloatArray
    strangers: FloatArray
    nearest: npt.NDArray[np.int64]
    people: npt.NDArray[np.int64]
    people_l2: npt.NDArray[np.float64]

    @property
    def queries(self) -> FloatArray:
        """All queries, known people first."""
        return np.concatenate([self.known, self.strangers])


class FaceMaker:
    """Generator of unit vectors with the distances measured of real faces.

    A face is the mean face, plus a deviation of the person, plus one of the photo (larger for some photos),
    with variances that differ by direction as those of real embeddings do, in a random rotation. The
    variances were chosen to give the measured distances; `distances_made` describes what they give.
    """

    def __init__(self, people: int, seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        self._turn = np.linalg.qr(self._rng.standard_normal((DIMENSIONS, DIMENSIONS)))[0].astype(np.float32)
        self._photo_scale = _spread(total=0.44, fading=25)
        self._people = self._rng.standard_normal((people, DIMENSIONS), np.float32)
        self._people *= _spread(total=0.46, fading=15)
        self._people += np.float32(0.317 / np.sqrt(DIMENSIONS))

    def photos(self, people: npt.NDArray[np.int64]) -> FloatArray:
        """float32 (n, d): one new photo of each person."""
        amount = np.exp(0.42 * self._rng.standard_normal((len(people), 1), np.float32))
        own = self._rng.standard_normal((len(people), DIMENSIONS), np.float32) * self._photo_scale
        faces = (self._people[people] + amount * own) @ self._turn
        unit: FloatArray = faces / np.linalg.norm(faces, axis=1, keepdims=True)
        return unit


def _spread(total: float, fading: float) -> FloatArray:
    """Deviation (d,) along each direction; the variances fade exponentially and sum up to `total`."""
    variances = np.exp(-np.arange(DIMENSIONS) / fading)
    deviations: FloatArray = np.sqrt(total * variances / variances.sum()).astype(np.float32)
    return deviations


def make_faces(size: int, queries: int, file: Path) -> Faces:
    """Enrolled faces in `file`, and queries with their exact answers."""
    people = size // FACES_A_PERSON
    maker = FaceMaker(people + queries)
    enrolled = np.lib.format.open_memmap(file, "w+", np.float32, (people * FACES_A_PERSON, DIMENSIONS))
    for at in range(0, len(enrolled), CHUNK):
        rows = np.arange(at, min(at + CHUNK, len(enrolled)))
        enrolled[rows] = maker.photos(rows // FACES_A_PERSON)
    known = maker.photos(np.random.default_rng(2).integers(0, people, queries))
    strangers = maker.photos(people + np.arange(queries))
    everybody = np.concatenate([known, strangers])
    nearest = nearest_by_brute_force(enrolled, everybody)
    return Faces(enrolled, known, strangers, nearest, *_nearest_people(enrolled, nearest, everybody))


def _nearest_people(
    enrolled: FloatArray, nearest: npt.NDArray[np.int64], queries: FloatArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The nearest person of each query, and how far: the nearest row's, or one with a nearer mean."""
    means = enrolled.reshape(-1, FACES_A_PERSON, DIMENSIONS).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    by_mean = nearest_by_brute_force(means, queries)
    rows_l2, means_l2 = (
        np.linalg.norm(vectors.astype(np.float64) - queries, axis=1)
        for vectors in (enrolled[nearest], means[by_mean])
    )
    people = np.where(means_l2 < rows_l2, by_mean, nearest // FACES_A_PERSON)
    return people, np.minimum(rows_l2, means_l2)


def nearest_by_brute_force(enrolled: FloatArray, queries: FloatArray) -> npt.NDArray[np.int64]:
    """The nearest row of each query, by all products."""
    best = np.full(len(queries), -np.inf, np.float32)
    nearest = np.zeros(len(queries), np.int64)
    for at in range(0, len(enrolled), CHUNK):
        scores = queries @ enrolled[at : at + CHUNK].T
        column = scores.argmax(axis=1)
        score = scores[np.arange(len(queries)), column]
        nearest[score > best] = (at + column)[score > best]
        best = np.maximum(best, score)
    return nearest


def distances_made(seed: int = 5) -> str:
    """Describe the distances of made-up faces beside those of real ones."""
    maker = FaceMaker(2000, seed)
    people = np.arange(2000)
    one, other = maker.photos(people), maker.photos(people)
    same = np.linalg.norm(one - other, axis=1)
    strangers = np.linalg.norm(one - np.roll(other, 1, axis=0), axis=1)
    return (
        f"distances made: same person {same.mean():.3f} +- {same.std():.3f} "
        f"(real faces {SAME_PERSON_L2[0]} +- {SAME_PERSON_L2[1]}), "
        f"strangers {strangers.mean():.3f} +- {strangers.std():.3f} "
        f"(real {STRANGERS_L2[0]} +- {STRANGERS_L2[1]})"
    )
