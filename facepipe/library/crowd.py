"""People and groups of unknown faces by the means of their faces, compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import BoolArray, FloatArray
from facepipe.library.face_columns import NONE, FaceColumns, IntArray
from facepipe.library.likelihood import Float64Array, nearest_is_right, same_person_odds
from facepipe.library.neighbors import Labeled, NearestTwo

_NEAR_SHARE = 1.0
"""A single face farther than this share of the threshold from everybody is nobody known."""

_NAMED_ODDS = 200.0
"""By how much the odds rise that a face is somebody's where the gallery gave it the name: it was near, and
nobody else was about as near."""


@dataclass(frozen=True, slots=True, eq=False)
class Bundles:
    """Faces bundled: k people, or k groups of unknown faces.

    Attributes:
        labels: int64 (k,): row of the person's name, or number of the group; `NONE` for a single face.
        sizes: int64 (k,): faces in each.
        means: float32 (k, d), of unit length.
        rows: int64 (n,): rows of the faces in the columns, bundle by bundle.
        starts: int64 (k,): where each begins in `rows`.
    """

    labels: IntArray
    sizes: IntArray
    means: FloatArray
    rows: IntArray
    starts: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def members(self, bundle: int) -> IntArray:
        """Rows of the faces of one."""
        start = self.starts[bundle]
        return self.rows[start : start + self.sizes[bundle]]


@dataclass(frozen=True, slots=True, eq=False)
class LikelyFaces:
    """Faces that may be of one person, or of that of their name.

    Attributes:
        rows: int64 (n,), in the columns.
        right: float64 (n,), probability of each.
    """

    rows: IntArray
    right: Float64Array

    def only(self, kept: BoolArray | IntArray) -> LikelyFaces:
        """Some of them."""
        return LikelyFaces(self.rows[kept], self.right[kept])

    def once_a_photo(self, columns: FaceColumns, taken: IntArray) -> LikelyFaces:
        """The first face of each photo, of photos other than those taken."""
        photos = columns.photo[self.rows]
        first = np.zeros(len(photos), np.bool_)
        first[np.unique(photos, return_index=True)[1]] = True
        return self.only(first & ~np.isin(photos, taken))


def people_of(columns: FaceColumns, embeddings: FloatArray) -> Bundles:
    """Bundle the faces that have a name and an embedding."""
    rows = np.flatnonzero((columns.person != NONE) & (columns.embedding_row != NONE))
    return _bundled(columns, embeddings, rows, columns.person[rows])


def unknown_of(columns: FaceColumns, embeddings: FloatArray) -> Bundles:
    """Bundle the faces without a name that may be asked about, in groups and single ones."""
    is_open = ~columns.is_settled & (columns.person == NONE) & (columns.embedding_row != NONE)
    rows = np.flatnonzero(is_open)
    single = columns.group[rows] == NONE
    labels = np.where(single, -1 - np.arange(len(rows)) - 1, columns.group[rows])
    bundles = _bundled(columns, embeddings, rows, labels)
    return Bundles(
        np.maximum(bundles.labels, NONE), bundles.sizes, bundles.means, bundles.rows, bundles.starts
    )


def _bundled(columns: FaceColumns, embeddings: FloatArray, rows: IntArray, labels: IntArray) -> Bundles:
    from scipy.sparse import csr_matrix

    order = np.argsort(labels, kind="stable")
    found, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    members, is_single = columns.embedding_row[rows[order]], sizes == 1
    means = np.empty((len(found), embeddings.shape[1]), np.float32)
    means[is_single] = embeddings[members[starts[is_single]]]
    together = members[np.repeat(~is_single, sizes)]
    ends = np.append(0, np.cumsum(sizes[~is_single]))
    shape = int((~is_single).sum()), len(embeddings)
    sums = csr_matrix((np.ones(len(together), np.float32), together, ends), shape=shape) @ embeddings
    lengths = np.sqrt(np.einsum("nd,nd->n", sums, sums))
    means[~is_single] = sums / np.maximum(lengths, 1e-9)[:, None]
    return Bundles(found, sizes, means, rows[order], starts)


@dataclass(frozen=True, slots=True, eq=False)
class NearestPerson:
    """The nearest person of each of k bundles of unknown faces.

    Attributes:
        person: int64 (k,): bundle of the person; `NONE`: nobody is near.
        distance_l2: float64 (k,).
        runner_up: int64 (k,), likewise.
        runner_up_l2: float64 (k,).
        probability: float64 (k,): that it is this person.
    """

    person: IntArray
    distance_l2: Float64Array
    runner_up: IntArray
    runner_up_l2: Float64Array
    probability: Float64Array


def nearest_person(
    columns: FaceColumns, unknown: Bundles, people: Bundles, threshold_l2: float, memory: NearestTwo
) -> NearestPerson:
    """Compare groups of unknown faces, and single ones that the gallery found somebody near, with people.

    Args:
        columns: Of the faces.
        unknown: Groups and single faces.
        people: With names.
        threshold_l2: Of the encoder.
        memory: Of the last call.
    """
    count = len(unknown)
    found = NearestPerson(
        np.full(count, NONE),
        np.full(count, np.inf),
        np.full(count, NONE),
        np.full(count, np.inf),
        np.zeros(count),
    )
    first_rows = unknown.rows[unknown.starts]
    is_near = columns.distance_l2[first_rows] <= _NEAR_SHARE * threshold_l2
    compared = np.flatnonzero((unknown.sizes > 1) | is_near)
    if not len(people) or not len(compared):
        return found
    asked = _labeled(unknown, compared, first_rows)
    memory.update(asked, Labeled(people.labels, people.means))
    places = asked.rows_of(_stable_labels(unknown, first_rows)[compared])
    nearest = np.searchsorted(people.labels, memory.labels[:, places])
    cosines, sizes, odds = memory.cosines[:, places], unknown.sizes[compared], []
    for order, (person, distance_l2) in enumerate(
        ((found.person, found.distance_l2), (found.runner_up, found.runner_up_l2))
    ):
        person[compared] = np.where(np.isfinite(cosines[order]), nearest[order], NONE)
        distance_l2[compared] = l2_of(cosines[order])
        best = np.minimum(nearest[order], len(people) - 1)
        odds.append(same_person_odds(distance_l2[compared], threshold_l2, people.sizes[best], sizes))
    found.probability[compared] = nearest_is_right(*odds)
    return found


def _stable_labels(unknown: Bundles, first_rows: IntArray) -> IntArray:
    """int64 (k,): number of a group, and below zero for a single face."""
    return np.where(unknown.labels != NONE, unknown.labels, -2 - first_rows)


def _labeled(unknown: Bundles, compared: IntArray, first_rows: IntArray) -> Labeled:
    labels = _stable_labels(unknown, first_rows)[compared]
    order = np.argsort(labels)
    return Labeled(labels[order], unknown.means[compared[order]])


def l2_of(cosines: npt.ArrayLike) -> Float64Array:
    """Euclidean distance of unit vectors, by their cosine; infinite for minus infinity."""
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * np.asarray(cosines, np.float64), 0.0)))


def doubtful_names(columns: FaceColumns, threshold_l2: float) -> LikelyFaces:
    """Named faces that nobody confirmed, with the probability that the name is right."""
    rows = np.flatnonzero(~columns.is_settled & (columns.person != NONE))
    odds, runner_up_odds = (
        same_person_odds(distance_l2[rows], threshold_l2, 1, 1)
        for distance_l2 in (columns.distance_l2, columns.runner_up_l2)
    )
    return LikelyFaces(rows, nearest_is_right(_NAMED_ODDS * odds, runner_up_odds))
