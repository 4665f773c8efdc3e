"""Boxes as arrays: left, top, right, bottom, in pixels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.float32, np.float64)


def iou(boxes: npt.NDArray[Number], others: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Intersection over union of boxes (..., 4) with boxes (n, 4), as (..., n); 0 of boxes without area."""
    low = np.maximum(boxes[..., :2], others[:, :2])
    high = np.minimum(boxes[..., 2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = _areas(boxes) + _areas(others) - shared
    overlap: npt.NDArray[Number] = shared / np.maximum(union, np.finfo(np.float32).tiny)
    return overlap


def _areas(boxes: npt.NDArray[Number]) -> npt.NDArray[Number]:
    areas: npt.NDArray[Number] = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    return areas
