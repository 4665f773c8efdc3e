"""Which parts of a photo deserve a finer look, by the focus map of a coarse one, in NumPy.

A look at a quarter of the size costs a sixteenth, and finds large faces. Its network also gives a map of
where faces are that are too small for it, and the finer look goes there alone (AutoFocus: Najibi et al.,
arXiv:1812.01600).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from facepipe.core.faces import BoolArray, FloatArray

FINER_BY = 4
"""How much larger the photo is in the finer look than in the coarse one."""
CELL_PX = 8
"""Side of a cell of the focus map, in pixels of the coarse look."""
FINER_CELL_PX = CELL_PX * FINER_BY

_MARGIN = 2
"""Cells around those with faces: with less around it the network takes more background for faces."""
_COST_OF_A_REGION = 10
"""In cells: 4 for a call of the network, the rest for the lower accuracy in small regions."""
_WHOLE_SHARE = 0.8
"""Of the cells, from which on the whole is looked at: many regions take longer than one of the same area."""


class Region(NamedTuple):
    """A rectangle of cells; the ends are excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def cells(self) -> int:
        """Its area."""
        return (self.bottom - self.top) * (self.right - self.left)


def regions(focus: FloatArray, threshold: float) -> list[Region]:
    """Cover all cells of a focus map from a threshold on, with a margin, by rectangles.

    Rectangles are split where a row or column without such a cell passes through (XY-cut: Nagy et al., IEEE
    Computer 25, 1992), as long as that saves area. They may overlap by their margins.

    Args:
        focus: Probability of faces (rows, columns), 0..1.
        threshold: Least probability that is looked at.

    Returns:
        None where there is no such cell; one for all of it where little would be left out.
    """
    wanted = focus >= threshold
    if not wanted.any():
        return []
    whole = Region(0, 0, *focus.shape)
    found = [_with_margin(region, whole) for region in _cut(_around(wanted, whole), wanted, whole)]
    return found if sum(region.cells for region in found) < _WHOLE_SHARE * whole.cells else [whole]


def _cut(region: Region, wanted: BoolArray, whole: Region) -> Iterator[Region]:
    """Split a region at the empty line that saves most, and its parts in the same way."""
    best, least = None, _cost(region, whole)
    for parts in _splits(region, wanted):
        cost = sum(_cost(part, whole) for part in parts)
        if cost < least:
            best, least = parts, cost
    if best is None:
        yield region
        return
    for part in best:
        yield from _cut(part, wanted, whole)


def _splits(region: Region, wanted: BoolArray) -> Iterator[tuple[Region, Region]]:
    """Both sides of every gap between rows, then between columns, that have a wanted cell."""
    top, left, bottom, right = region
    inside = wanted[top:bottom, left:right]
    for row in _gaps(inside.any(axis=1)):
        cut = top + row
        upper, lower = region._replace(bottom=cut), region._replace(top=cut)
        yield _around(wanted, upper), _around(wanted, lower)
    for column in _gaps(inside.any(axis=0)):
        cut = left + column
        near, far = region._replace(right=cut), region._replace(left=cut)
        yield _around(wanted, near), _around(wanted, far)


def _gaps(line: Any) -> list[int]:
    """Where each run of False in a line of bools begins; the first and the last are True."""
    return [int(i) + 1 for i in np.flatnonzero(line[:-1] & ~line[1:])]


def _around(wanted: BoolArray, region: Region) -> Region:
    """Shrink a region to its wanted cells, of which there is one at least."""
    top, left, bottom, right = region
    inside = wanted[top:bottom, left:right]
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    first_row, last_row, first_column, last_column = map(int, (rows[0], rows[-1], columns[0], columns[-1]))
    return Region(top + first_row, left + first_column, top + last_row + 1, left + last_column + 1)


def _with_margin(region: Region, whole: Region) -> Region:
    return Region(
        max(whole.top, region.top - _MARGIN),
        max(whole.left, region.left - _MARGIN),
        min(whole.bottom, region.bottom + _MARGIN),
        min(whole.right, region.right + _MARGIN),
    )


def _cost(region: Region, whole: Region) -> int:
    return _with_margin(region, whole).cells + _COST_OF_A_REGION
