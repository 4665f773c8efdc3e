"""A picture of a run's figures over its steps, drawn with OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

from facepipe.core.faces import UInt8Array
from facepipe.training.engine.logs import Curves

_PANEL_WH = (420, 240)
_MARGIN_LTRB = (64, 30, 16, 28)
_COLUMNS = 3
_LINE_RGB, _AXIS_RGB, _TEXT_RGB = (0, 96, 200), (190, 190, 190), (40, 40, 40)


def draw_curves(curves: Curves) -> UInt8Array:
    """One panel a figure, RGB uint8; a panel's title ends with the last value."""
    panels = [_panel(name, points) for name, points in curves.items() if points]
    if not panels:
        return np.full((_PANEL_WH[1], _PANEL_WH[0], 3), 255, np.uint8)
    while len(panels) % _COLUMNS and len(panels) > _COLUMNS:
        panels.append(np.full_like(panels[0], 255))
    rows = [np.hstack(panels[i : i + _COLUMNS]) for i in range(0, len(panels), _COLUMNS)]
    return np.vstack(rows)


def _panel(name: str, points: list[tuple[int, float]]) -> UInt8Array:
    width, height = _PANEL_WH
    left, top, right, bottom = _MARGIN_LTRB
    picture = np.full((height, width, 3), 255, np.uint8)
    steps, values = np.array(points, np.float64).T
    # A few wild values at the start would flatten the rest of the curve.
    high = float(np.quantile(values, 0.98)) if len(values) > 20 else float(values.max())
    low = float(values.min())
    cv2.rectangle(picture, (left, top), (width - right, height - bottom), _AXIS_RGB, 1)
    x = left + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (width - left - right)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    y = height - bottom - share * (height - top - bottom)
    line = np.stack([x, y], axis=1).round().astype(np.int32)
    cv2.polylines(picture, [line], False, _LINE_RGB, 1, cv2.LINE_AA)
    cv2.circle(picture, (int(line[-1, 0]), int(line[-1, 1])), 2, _LINE_RGB, -1, cv2.LINE_AA)
    _text(picture, f"{name}: {values[-1]:.4g}", (left, top - 9), 0.5)
    _text(picture, f"{high:.3g}", (6, top + 8), 0.4)
    _text(picture, f"{low:.3g}", (6, height - bottom), 0.4)
    _text(picture, f"step {steps[0]:.0f} to {steps[-1]:.0f}", (left, height - 9), 0.4)
    return picture


def _text(picture: UInt8Array, text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _TEXT_RGB, 1, cv2.LINE_AA)
