"""Regions for the finer look: nothing that is wanted is left out, and little else is looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from facepipe.core.faces import FloatArray
from facepipe.retinaface.focus import Region, regions

SIDES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)


def covered(found: list[Region], shape: tuple[int, ...]) -> FloatArray:
    cells = np.zeros(shape, np.float32)
    for top, left, bottom, right in found:
        cells[top:bottom, left:right] = 1
    return cells


@given(SIDES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=32))))
def test_every_cell_from_the_threshold_on_is_looked_at_with_its_neighbours(focus: FloatArray) -> None:
    found = regions(focus, 0.9)
    looked_at = np.pad(covered(found, focus.shape), 1, constant_values=1)
    for row, column in zip(*np.nonzero(focus >= 0.9), strict=True):
        assert looked_at[row : row + 3, column : column + 3].all()
    for top, left, bottom, right in found:
        assert 0 <= top < bottom <= focus.shape[0]
        assert 0 <= left < right <= focus.shape[1]
    assert sum(region.cells for region in found) <= focus.size


def test_nothing_is_looked_at_where_nothing_is() -> None:
    assert regions(np.full((20, 30), 0.01, np.float32), 0.05) == []


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_a_crowd_is_looked_at_whole(share: float) -> None:
    focus = np.zeros((20, 30), np.float32)
    focus[: round(20 * share)] = 1
    assert regions(focus, 0.05) == [Region(0, 0, 20, 30)]


def test_faces_far_apart_are_looked_at_apart() -> None:
    focus = np.zeros((20, 30), np.float32)
    focus[2, 2] = focus[3:5, 26] = focus[17, 3] = 1
    assert sorted(regions(focus, 0.5)) == [Region(0, 0, 5, 5), Region(1, 24, 7, 29), Region(15, 1, 20, 6)]


def test_faces_close_together_are_looked_at_together() -> None:
    focus = np.zeros((20, 30), np.float32)
    focus[2, 2] = focus[2, 4] = 1
    assert regions(focus, 0.5) == [Region(0, 0, 5, 7)]
