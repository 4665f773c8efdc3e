"""What a detector says of small faces when it sees them twice as large, put as if it had seen them small."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facepipe.errors import UsageError
from facepipe.retinaface.network import ANCHORS_PER_CELL, RetinaFaceOutput
from training.detection.targets import FACE
from weights.card import AnchorSpec


@dataclass(frozen=True, slots=True)
class EnlargedView:
    """Where the smallest stride's anchors are found again, twice as large, in a picture twice as large.

    An anchor of 32 px is one of 64 px there, in the cell of the next stride that covers the same place. One
    of 16 px has four successors of 32 px, around its centre: the one that believes most in a face speaks.

    Args:
        anchors: Of the network that sees the picture.

    Raises:
        UsageError: An anchor of the smallest stride has no successor.
    """

    anchors: AnchorSpec

    def __post_init__(self) -> None:
        for size in self.anchors.sizes_px[0]:
            self._successor(size)

    def smallest_anchors(self, enlarged: RetinaFaceOutput, side_px: int) -> RetinaFaceOutput:
        """The outputs at the smallest stride's anchors of a square picture of `side_px`.

        Args:
            enlarged: Of the picture at 2 * `side_px`, all anchors of it.
            side_px: A multiple of the largest stride.

        Returns:
            Outputs at (`side_px` / stride)^2 cells with their anchors, regressions on those.
        """
        chosen = [self._anchor(enlarged, 2 * side_px, size) for size in self.anchors.sizes_px[0]]
        stacked = (torch.stack(values, dim=2).flatten(1, 2) for values in zip(*chosen, strict=True))
        return RetinaFaceOutput(*stacked)

    def _successor(self, size_px: int) -> tuple[int, int]:
        """Level and place within the cell of the anchor of twice the size, of strides up to the double."""
        strides = self.anchors.strides_px
        for level, (stride, sizes) in enumerate(zip(strides, self.anchors.sizes_px, strict=True)):
            if 2 * size_px in sizes and stride in (strides[0], 2 * strides[0]):
                return level, sizes.index(2 * size_px)
        raise UsageError(
            f"loss.distil_enlarged: no anchor of {2 * size_px} px at a stride of {strides[0]} or "
            f"{2 * strides[0]} px says of a face twice as large what that of {size_px} px says of it"
        )

    def _anchor(self, output: RetinaFaceOutput, side_px: int, size_px: int) -> RetinaFaceOutput:
        """The outputs (batch, cells, values) that stand for the smallest stride's anchor of `size_px`."""
        level, place = self._successor(size_px)
        strides = self.anchors.strides_px
        start = sum(ANCHORS_PER_CELL * (side_px // stride) ** 2 for stride in strides[:level])
        cells, per_cell = side_px // strides[level], 2 * strides[0] // strides[level]
        spots = RetinaFaceOutput(*(_by_cell(v, start, cells, place, per_cell) for v in output))
        surest = (spots.classes[..., FACE] - spots.classes[..., 1 - FACE]).argmax(dim=2)
        # The successors' centres, from that of the anchor they stand for, in units of a regression.
        steps = torch.arange(per_cell, device=surest.device) - (per_cell - 1) / 2
        unit = self.anchors.variances[0] * 2 * size_px / strides[level]
        offsets = torch.stack([steps[surest % per_cell], steps[surest // per_cell]], dim=-1) / unit
        boxes, classes, landmarks = (_at(values, surest) for values in spots)
        boxes = torch.cat([boxes[..., :2] + offsets, boxes[..., 2:]], dim=-1)
        return RetinaFaceOutput(boxes, classes, landmarks + offsets.repeat(1, 1, 5))


def _by_cell(values: Tensor, start: int, cells: int, place: int, per_cell: int) -> Tensor:
    """One level's anchor `place`, (batch, all anchors, n) to (batch, coarse cells, per_cell^2, n)."""
    stop, groups = start + ANCHORS_PER_CELL * cells**2, cells // per_cell
    shape = (len(values), groups, per_cell, groups, per_cell, ANCHORS_PER_CELL, values.shape[-1])
    grid = values[:, start:stop].reshape(shape)[..., place, :]
    return grid.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def _at(values: Tensor, chosen: Tensor) -> Tensor:
    """(batch, cells, spots, n) and (batch, cells) to (batch, cells, n)."""
    index = chosen[..., None, None].expand(-1, -1, 1, values.shape[-1])
    return values.gather(2, index).squeeze(2)
