"""Which of a person's confirmed faces become templates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import FloatArray

MAX_TEMPLATES = 30
"""Of one person; docs/research/questions.md has what fewer and more would name."""
REDUNDANT_L2 = 0.7
"""A face this near to a template adds nothing: docs/research/questions.md."""

IntArray = npt.NDArray[np.int64]


def useful_templates(
    embeddings: FloatArray,
    weights: FloatArray,
    limit: int = MAX_TEMPLATES,
    redundant_l2: float = REDUNDANT_L2,
) -> IntArray:
    """Choose the faces of a person that others are best compared with.

    The first is the most typical: the nearest to the weighted mean of all. Each further one is the face that
    lies farthest from those chosen before, so that few templates cover how differently a person looks.

    Args:
        embeddings: float32 (n, d), unit length: a person's faces.
        weights: float (n,), not negative: how good each face is as a template; 0: it is never chosen.
            Distances to chosen faces count times the weight: of two faces about as far the better is taken.
        limit: Largest number of faces.
        redundant_l2: Faces within this Euclidean distance of a chosen one are set aside.

    Returns:
        int64 (k,), k <= limit: rows, the most useful first; none twice.
    """
    quality = np.asarray(weights, np.float64)
    if limit < 1 or not np.any(quality > 0):
        return np.zeros(0, np.int64)
    vectors = embeddings.astype(np.float64)
    typicality = vectors @ (quality @ vectors)
    row = int(np.argmax(np.where(quality > 0, typicality, -np.inf)))
    chosen, nearest_l2 = [row], _distances(vectors, row)
    while len(chosen) < limit:
        usefulness = np.where(nearest_l2 > redundant_l2, nearest_l2 * quality, 0.0)
        row = int(np.argmax(usefulness))
        if usefulness[row] <= 0:
            break
        chosen.append(row)
        nearest_l2 = np.minimum(nearest_l2, _distances(vectors, row))
    return np.array(chosen, np.int64)


def _distances(vectors: npt.NDArray[np.float64], row: int) -> npt.NDArray[np.float64]:
    """Euclidean distances (n,) of unit vectors (n, d) to one of them; exactly 0 to itself."""
    return np.asarray(np.linalg.norm(vectors - vectors[row], axis=1))
