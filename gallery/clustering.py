"""Groups of faces that are likely one person's, without any name: average-linkage clustering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import load_faiss

IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

LINK_SHARE = 0.90
"""Mean distance within a group, as a share of the encoder's threshold for naming, of faces good enough to be
enrolled. A wrong group costs more than two groups of one person (docs/research/experiments.md)."""

_FARTHEST_L2 = 2.0
_RANGE_SLACK_L2 = (
    0.01  # FAISS's distances are expanded squares, off by 1e-3 near zero; the graph may be wider
)
_LARGEST_PART = 8_000  # faces; all their distances take 256 MB, twice
_SHRINK = 0.95
_SAME_L2 = 0.05
_ROWS_AT_ONCE = 4096


def group_faces(vectors: FloatArray, photos: Sequence[str | None], max_distance_l2: float) -> IntArray:
    """Average-linkage clustering: groups are joined while the mean distance between their faces allows it.

    Faces that no chain of neighbours within `max_distance_l2` connects can't get into one group. So the graph
    of neighbours is taken apart first, by FAISS, and each part is clustered exactly. A part of more than
    8,000 faces is taken apart further, at smaller distances, until all its distances fit into memory: in so
    large a crowd look-alikes connect everybody.

    Two faces in one photo are two people: their distance counts as the largest there is, and where a group
    still gets both, the one nearer to the group's middle stays. The others are clustered by themselves.

    Source of the choice: on 30 people's whole photos and 270 people's crops single linkage and DBSCAN chain
    look-alikes together, and complete linkage tears people apart (docs/research/experiments.md).

    Args:
        vectors: float32 (n, d), unit length.
        photos: n keys, the same for faces of one photo; None: not known.
        max_distance_l2: Largest mean Euclidean distance of the faces of two groups that become one.

    Returns:
        int64 (n,), for each face the lowest row of its group.
    """
    labels = np.arange(len(vectors))
    for rows in _parts(vectors, np.arange(len(vectors)), max_distance_l2):
        groups = _linked(vectors[rows], [photos[row] for row in rows], max_distance_l2)
        for group in np.unique(groups):
            members = rows[groups == group]
            labels[members] = members.min()
    return labels


def _parts(vectors: FloatArray, rows: IntArray, radius_l2: float) -> Iterator[IntArray]:
    """Rows (rising) of two and more faces that are connected, and few enough to be clustered at once."""
    from scipy.sparse.csgraph import connected_components

    component = connected_components(_neighbours(vectors[rows], radius_l2), directed=False)[1]
    order = np.argsort(component, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        if len(members) > _LARGEST_PART and radius_l2 > _SAME_L2:
            yield from _parts(vectors, rows[members], radius_l2 * _SHRINK)
        elif len(members) > 1:
            yield rows[members][:_LARGEST_PART]


def _neighbours(vectors: FloatArray, radius_l2: float) -> Any:
    """Return a sparse (n, n) matrix that is not 0 where two faces are within the radius."""
    from scipy.sparse import csr_matrix

    faiss = load_faiss()
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    counts, found = [], []
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        batch = np.ascontiguousarray(vectors[start : start + _ROWS_AT_ONCE])
        limits, _, ids = index.range_search(batch, (radius_l2 + _RANGE_SLACK_L2) ** 2)
        counts.append(np.diff(limits.astype(np.int64)))
        found.append(ids.astype(np.int64))
    starts = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))])
    columns = np.concatenate([np.zeros(0, np.int64), *found])
    return csr_matrix((np.ones(len(columns), np.bool_), columns, starts), shape=(len(vectors),) * 2)


def _linked(vectors: FloatArray, photos: Sequence[str | None], max_distance_l2: float) -> IntArray:
    """Group numbers of the faces of one part."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    if len(vectors) < 2:
        return np.zeros(len(vectors), np.int64)
    distances: Float64Array = pdist(vectors.astype(np.float64))
    distances[_pairs_in_one_photo(photos)] = _FARTHEST_L2
    groups = np.asarray(fcluster(linkage(distances, "average"), max_distance_l2, "distance"), np.int64)
    surplus = np.flatnonzero(_surplus_faces(vectors, groups, photos))
    if len(surplus):
        others = _linked(vectors[surplus], [photos[row] for row in surplus.tolist()], max_distance_l2)
        groups[surplus] = groups.max() + 1 + others
    return groups


def _surplus_faces(
    vectors: FloatArray, groups: IntArray, photos: Sequence[str | None]
) -> npt.NDArray[np.bool_]:
    """bool (n,): faces whose group has a more typical face of the same photo."""
    surplus = np.zeros(len(vectors), np.bool_)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        typical = rows[np.argsort(-(vectors[rows] @ vectors[rows].sum(axis=0)), kind="stable")]
        seen: set[str | None] = set()
        for row in typical.tolist():
            surplus[row] = photos[row] is not None and photos[row] in seen
            seen.add(photos[row])
    return surplus


def _pairs_in_one_photo(photos: Sequence[str | None]) -> IntArray:
    """Indices in the result of `pdist` of the pairs of faces that share a photo."""
    rows_of: dict[str, list[int]] = {}
    for row, photo in enumerate(photos):
        if photo is not None:
            rows_of.setdefault(photo, []).append(row)
    pairs = [np.zeros((0, 2), np.int64)]
    for rows in rows_of.values():
        pairs.append(np.array(rows, np.int64)[np.stack(np.triu_indices(len(rows), 1), axis=1)])
    first, second = np.concatenate(pairs).T
    return np.asarray(len(photos) * first + second - (first + 2) * (first + 1) // 2)
