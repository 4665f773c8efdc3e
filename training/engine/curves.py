"""A picture of a run's losses, learning rate and other figures over its steps, drawn with matplotlib."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facepipe.core.errors import MissingExtraError, OutputError
from facepipe.core.files import atomic_write_bytes
from facepipe.core.home import facepipe_home
from facepipe.training.engine.logs import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_PANEL_INCHES = (4.2, 2.6)
_OUTLIERS = 0.02
"""Share of the highest values that may lie outside a panel: a few at the start would flatten the rest."""


def write_curves(curves: Curves, picture: Path) -> None:
    """Write a PNG with one panel a figure; its legend gives the last value.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: The file can't be written.
    """
    columns = min(_COLUMNS, max(1, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure = new_figure(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        _draw(panel, name, points)
    for panel in panels[len(curves) :]:
        panel.remove()
    save_figure(figure, picture)


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Return an empty figure of matplotlib.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Its cache of fonts belongs beside ours, not elsewhere in the home folder.
    os.environ.setdefault("MPLCONFIGDIR", str(facepipe_home() / "cache" / "matplotlib"))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing curves", "train") from error
    return Figure((width_inches, height_inches), layout="constrained")


def save_figure(figure: Figure, picture: Path) -> None:
    """Write a figure as a PNG.

    Raises:
        OutputError: The file can't be written.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    try:
        atomic_write_bytes(picture, stream.getvalue())
    except OSError as error:
        raise OutputError(f"{picture}: can't write the curves of the run: {error}") from error


def _draw(panel: Axes, name: str, points: list[tuple[int, float]]) -> None:
    steps, values = np.array(points, np.float64).T
    panel.plot(steps, values, "." if len(values) == 1 else "-", label=f"{values[-1]:.4g}")
    panel.set(title=name, xlabel="step")
    panel.grid(alpha=0.3)
    panel.legend(title="last")
    low, high = float(values.min()), float(np.quantile(values, 1 - _OUTLIERS))
    if len(values) > 1 / _OUTLIERS and low < high:
        margin = 0.05 * (high - low)
        panel.set_ylim(low - margin, high + margin)
