"""WIDER FACE's ground truth for photos of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from facepipe.evaluation.metrics.wider import SETTINGS


def write_ground_truth(
    folder: Path, boxes_xywh: Mapping[str, Sequence[Sequence[float]]], kept: Mapping[str, Sequence[int]]
) -> None:
    """The four .mat files.

    Args:
        folder: Where to.
        boxes_xywh: By "<event>/<stem>", sorted.
        kept: Numbers from 1 of the faces that count in every subset; of a photo that is not there, none.
    """
    events = sorted({key.split("/")[0] for key in boxes_xywh})
    keys = [[key for key in boxes_xywh if key.split("/")[0] == event] for event in events]
    table = {
        "event_list": _column(events),
        "file_list": _column([_column([key.split("/")[1] for key in group]) for group in keys]),
        "face_bbx_list": _column([_column([np.array(boxes_xywh[key]) for key in group]) for group in keys]),
    }
    savemat(folder / "wider_face_val.mat", table)
    rows = [_column([np.array(kept.get(key, [])).reshape(-1, 1) for key in group]) for group in keys]
    for setting in SETTINGS:
        savemat(folder / f"wider_{setting}_val.mat", {**table, "gt_list": _column(rows)})


def _column(values: Sequence[Any]) -> Any:
    """A MATLAB cell array (n, 1)."""
    cells = np.empty((len(values), 1), object)
    for cell, value in zip(cells, values, strict=True):
        cell[0] = value
    return cells
