"""RetinaFace's anchors and the coding of boxes and landmarks against them (NumPy; the networks' maths only).

Conventions: anchors are centre x, centre y, width, height in pixels of the network's input. Order: strides
rising; within a stride row by row; within a cell the smaller anchor first.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.weights.cards import AnchorSpec


@lru_cache(maxsize=32)
def make_anchors(width_px: int, height_px: int, spec: AnchorSpec) -> FloatArray:
    """float32 (anchors, 4), centre x, centre y, width, height in pixels; cached by size, read-only.

    Both sides must be multiples of the largest stride.
    """
    levels = [
        _level(-(-width_px // stride), -(-height_px // stride), stride, sizes)
        for stride, sizes in zip(spec.strides_px, spec.sizes_px, strict=True)
    ]
    anchors = np.concatenate(levels)
    anchors.setflags(write=False)
    return anchors


def _level(columns: int, rows: int, stride: int, sizes: tuple[int, ...]) -> FloatArray:
    grid = np.empty((rows, columns, len(sizes), 4), np.float32)
    grid[..., 0] = ((np.arange(columns, dtype=np.float32) + 0.5) * stride)[None, :, None]
    grid[..., 1] = ((np.arange(rows, dtype=np.float32) + 0.5) * stride)[:, None, None]
    grid[..., 2:] = np.asarray(sizes, np.float32)[None, None, :, None]
    return grid.reshape(-1, 4)


def decode_boxes(regression: FloatArray, anchors: FloatArray, variances: tuple[float, float]) -> FloatArray:
    """Regressions (n, 4) on anchors (n, 4) -> float32 boxes (n, 4), left, top, right, bottom in pixels."""
    centre = anchors[:, :2] + regression[:, :2] * variances[0] * anchors[:, 2:]
    half = anchors[:, 2:] * np.exp(regression[:, 2:] * variances[1]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def decode_landmarks(
    regression: FloatArray, anchors: FloatArray, variances: tuple[float, float]
) -> FloatArray:
    """Regressions (n, 10) on anchors (n, 4) -> float32 landmarks (n, 5, 2), x and y in pixels."""
    offsets = regression.reshape(-1, 5, 2) * variances[0]
    points: FloatArray = anchors[:, None, :2] + offsets * anchors[:, None, 2:]
    return points
