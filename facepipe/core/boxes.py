"""Boxes as arrays: left, top, right, bottom, in pixels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.float32, np.float64)


def iou(boxes: npt.NDArray[Number], others: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Intersection over union of boxes (..., 4) with boxes (n, 4), as (..., n); 0 of boxes without area."""
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    other_left, other_top, other_right, other_bottom = others.T
    width = np.minimum(right, other_right) - np.maximum(left, other_left)
    height = np.minimum(bottom, other_bottom) - np.maximum(top, other_top)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    union = np.maximum(area + other_area - shared, np.finfo(np.float32).tiny)
    overlap: npt.NDArray[Number] = shared / union
    return overlap
