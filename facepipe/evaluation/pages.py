"""Curves as inline SVG for pages of `facepipe.reports.html`, and a report's two files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import OutputError
from facepipe.core.files import atomic_write_bytes, make_private_folder
from facepipe.core.overwriting import PAGE, Form, require_replaceable
from facepipe.evaluation.arrays import Float64Array, RealArray

_SIDE_PX, _MARGIN_PX = 360, 48
_COLOURS = ("#0060c8", "#c84600", "#1a8a3c", "#8a1a8a", "#555555")
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_FINEST = 1 / _SIDE_PX
"""A curve's points nearer to each other than a pixel are drawn as one."""

Curve = tuple[RealArray, RealArray]


def require_report_place(folder: Path, name: str) -> tuple[Path, Path]:
    """Check that a report replaces none but another one, before the work whose result it is.

    Returns:
        Its two files.

    Raises:
        OutputError: There is a file of such a name that facepipe did not write.
    """
    page, record = folder / f"{name}.html", folder / f"{name}.json"
    require_replaceable(page, PAGE)
    require_replaceable(record, Form("the record of a report", lambda _: page.exists()))
    return page, record


def write_report(folder: Path, name: str, html: str, record: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `<name>.html` and `<name>.json` into `folder`, which need not exist yet.

    Raises:
        OutputError: They can't be written, or would take the place of other files than such a report.
    """
    files = require_report_place(folder, name)
    try:
        make_private_folder(folder)
        for file, text in zip(files, (html, json.dumps(record)), strict=True):
            atomic_write_bytes(file, text.encode())
    except OSError as error:
        raise OutputError(f"{folder}: can't be written ({error.strerror}); choose another place") from error
    return files


def plot(
    curves: Mapping[str, Curve],
    x_name: str,
    y_name: str,
    x_ticks: Sequence[float] = _TICKS,
    y_ticks: Sequence[float] = _TICKS,
) -> str:
    """Curves, x and y (n,) of each; the axes go from their first tick to their last."""
    size = _SIDE_PX + 2 * _MARGIN_PX
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(curves)}
    lines = [
        _line((_shares(x, x_ticks), _shares(y, y_ticks)), colours[name]) for name, (x, y) in curves.items()
    ]
    axes = _axes(x_name, y_name, x_ticks, y_ticks)
    frame = f'viewBox="0 0 {size} {size}" width="{size}" font-size="12" fill="currentColor" role="img"'
    return "\n".join((f"<svg {frame}>", axes, *lines, _legend(colours), "</svg>"))


def _shares(values: RealArray, ticks: Sequence[float]) -> Float64Array:
    """Scale values to 0..1 from the first tick to the last, clipped at both."""
    shares: Float64Array = np.clip((np.asarray(values, np.float64) - ticks[0]) / (ticks[-1] - ticks[0]), 0, 1)
    return shares


def _axes(x_name: str, y_name: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    low, high = _MARGIN_PX, _MARGIN_PX + _SIDE_PX
    grid = []
    for tick, share in zip(x_ticks, _shares(np.asarray(x_ticks), x_ticks), strict=True):
        x, _ = _pixel(share, 0)
        grid.append(f'<path d="M{x:.0f},{low}V{high}" stroke="#8884"/>')
        grid.append(f'<text x="{x:.0f}" y="{high + 16}" text-anchor="middle">{tick:g}</text>')
    for tick, share in zip(y_ticks, _shares(np.asarray(y_ticks), y_ticks), strict=True):
        _, y = _pixel(0, share)
        grid.append(f'<path d="M{low},{y:.0f}H{high}" stroke="#8884"/>')
        grid.append(f'<text x="{low - 6}" y="{y + 4:.0f}" text-anchor="end">{tick:g}</text>')
    middle = (low + high) // 2
    grid.append(f'<text x="{middle}" y="{high + 36}" text-anchor="middle">{escape(x_name)}</text>')
    grid.append(f'<text x="{low}" y="{low - 12}">{escape(y_name)}</text>')
    return "\n".join(grid)


def _line(curve: Curve, colour: str) -> str:
    shares = np.stack([np.asarray(axis, np.float64) for axis in curve], axis=1)
    steps = np.abs(np.diff(shares, axis=0)).max(axis=1, initial=0.0)
    kept = shares[np.diff(np.floor(np.cumsum([0.0, *steps]) / _FINEST), prepend=-1.0) > 0]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_pixel(*share) for share in kept))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _legend(colours: dict[str, str]) -> str:
    x, y = _MARGIN_PX + 12, _MARGIN_PX + _SIDE_PX - 12
    names = reversed(colours.items())
    return "\n".join(
        f'<text x="{x}" y="{y - 18 * i}" style="fill: {colour}">{escape(name)}</text>'
        for i, (name, colour) in enumerate(names)
    )


def _pixel(x: float, y: float) -> tuple[float, float]:
    return _MARGIN_PX + x * _SIDE_PX, _MARGIN_PX + (1 - y) * _SIDE_PX
