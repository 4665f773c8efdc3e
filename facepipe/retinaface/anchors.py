"""RetinaFace's anchors (prior boxes), and boxes and landmarks as regressions on them.

Anchors are centre x, centre y, width, height in pixels of the network's input. Order: strides rising; within
a stride row by row; within a cell the smaller anchor first.

Encoding (for training, in torch) and decoding (of detections, in NumPy) are each other's inverse:

    centre = anchor centre + regression * variances[0] * anchor size
    size = anchor size * exp(regression * variances[1])
    landmark = anchor centre + regression * variances[0] * anchor size
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.weights.cards import AnchorSpec

if TYPE_CHECKING:
    from torch import Tensor


@lru_cache(maxsize=32)
def make_anchors(width_px: int, height_px: int, spec: AnchorSpec) -> FloatArray:
    """Make the anchors of an input of this size, cached and read-only.

    Args:
        width_px, height_px: Multiples of the largest stride.
        spec: Strides, and the sizes of their anchors.

    Returns:
        float32 (anchors, 4), centre x, centre y, width, height in pixels.
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


def encode_boxes(boxes_xyxy: Tensor, anchors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Boxes (n, 4), left, top, right, bottom in pixels -> regressions (n, 4) on anchors (n, 4)."""
    import torch  # not needed to detect

    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=1e-3)
    offsets = (centres - anchors[:, :2]) / (variances[0] * anchors[:, 2:])
    return torch.cat([offsets, torch.log(sizes / anchors[:, 2:]) / variances[1]], dim=1)


def decode_boxes(regression: FloatArray, anchors: FloatArray, variances: tuple[float, float]) -> FloatArray:
    """Regressions (n, 4) on anchors (n, 4) -> float32 boxes (n, 4), left, top, right, bottom in pixels."""
    centre = anchors[:, :2] + regression[:, :2] * variances[0] * anchors[:, 2:]
    half = anchors[:, 2:] * np.exp(regression[:, 2:] * variances[1]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def encode_landmarks(landmarks: Tensor, anchors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Landmarks (n, 5, 2), x and y in pixels -> regressions (n, 10) on anchors (n, 4); NaN stays NaN."""
    offsets = (landmarks - anchors[:, None, :2]) / (variances[0] * anchors[:, None, 2:])
    return offsets.flatten(1)


def decode_landmarks(
    regression: FloatArray, anchors: FloatArray, variances: tuple[float, float]
) -> FloatArray:
    """Regressions (n, 10) on anchors (n, 4) -> float32 landmarks (n, 5, 2), x and y in pixels."""
    offsets = regression.reshape(-1, 5, 2) * variances[0]
    points: FloatArray = anchors[:, None, :2] + offsets * anchors[:, None, 2:]
    return points
