"""Training of the focus map: a detector learns where it finds faces in a look at four times the size."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray
from facepipe.retinaface.anchors import decode_boxes, make_anchors
from facepipe.retinaface.focus import FINER_BY, FINER_CELL_PX
from facepipe.retinaface.network import RetinaFace
from facepipe.retinaface.small_faces import FocusedRetinaFace
from facepipe.training.detection.augment import AugmentConfig
from facepipe.training.detection.crops import DetectionBatch, WeightedPhotos
from facepipe.training.detection.part_task import PartTask
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.weights.cards import AnchorSpec, FocusSpec, InputSpec

_LARGEST_FACE_PX = 200.0
"""Shorter side, in pixels of the finer look: larger faces are found in the coarse one."""
_CERTAIN, _NOTHING = 0.5, 0.1
"""Scores of a face from which on, and up to which, a cell is one to look at, and is not; linear between."""
_POSITIVE_WEIGHT = 6.0
"""Of a cell to look at, beside one of background: a face that is left out costs more than a look in vain."""
_CELLS_OF_A_FACE = 4
"""Total weight of each certain candidate, which its cells share: 1 each where it covers so many."""
_LEAST_WEIGHT, _MOST_WEIGHT = 0.3, 4.0
"""Of a cell, by the candidates in it: a crowd of small faces costs more than a part of one large face."""


class TrainedFocus(nn.Module):
    """A detector of which the focus map alone learns; the rest is frozen, BatchNorm's statistics too.

    Args:
        network: With a focus map.

    Raises:
        UsageError: It has none.
    """

    def __init__(self, network: RetinaFace) -> None:
        super().__init__()
        if not isinstance(network, FocusedRetinaFace):
            raise UsageError("focus: the network has no map of it; take retinaface_mobilenet025_focus")
        self.network = network.requires_grad_(False)
        network.focus.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the focus map; the rest stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        self.network.focus.train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map preprocessed images (batch, 3, h, w) to logits (batch, h/8, w/8)."""
        return self.network.focus_logits(images)


class FocusTask(PartTask):
    """Training of the focus map alone.

    Crops are finer looks; what the network finds in them, it learns to foresee in a quarter of their size.

    Args:
        network: With a focus map, and trained.
        input_spec: Its preprocessing.
        anchors: Its anchors.
        data: See `PartTask`.
        augment: See `PartTask`; sides of crops are multiples of 128.
        loop: Of the run.
        device: Of network and batches.

    Raises:
        UsageError: The network has no focus map, or crops are of another size.
    """

    def __init__(
        self,
        network: RetinaFace,
        input_spec: InputSpec,
        anchors: AnchorSpec,
        data: list[WeightedPhotos],
        augment: AugmentConfig,
        loop: LoopConfig,
        device: torch.device | None = None,
    ) -> None:
        size_px = augment.size_px
        if size_px % (32 * FINER_BY):
            raise UsageError(f"augment.size_px: focus takes multiples of {32 * FINER_BY}, got {size_px}")
        super().__init__(input_spec, data, augment, loop, device)
        self._anchors = make_anchors(size_px, size_px, anchors)
        self._variances, self._cells = anchors.variances, size_px // FINER_CELL_PX
        self.module = TrainedFocus(network).to(self._device)

    def losses(self, module: nn.Module, batch: DetectionBatch, progress: float) -> dict[str, Tensor]:
        """Compute the cross-entropy against what the network finds in the finer look."""
        pixels = self._pixels(batch)
        scores, weights = self._found(pixels)
        coarse = functional.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), FINER_BY)
        logits = module(self._input(coarse.round().to(torch.uint8).permute(0, 2, 3, 1)))
        return {"focus": focus_loss(logits, scores, weights)}

    @torch.no_grad()
    def _found(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map finer looks to the scores and weights of cells (batch, rows, columns): see `cell_targets`."""
        output = self.module.network(self._input(pixels))
        scores = functional.softmax(output.classes.float(), dim=-1)[..., 1].cpu().numpy()
        found = []
        for regression, of_crop in zip(output.boxes.float().cpu().numpy(), scores, strict=True):
            likely = np.flatnonzero(of_crop > _NOTHING)
            boxes = decode_boxes(regression[likely], self._anchors[likely], self._variances)
            found.append(cell_targets(boxes, of_crop[likely], self._cells))
        scores_of_cells, weights = (torch.from_numpy(np.stack(maps)) for maps in zip(*found, strict=True))
        return scores_of_cells.to(self._device), weights.to(self._device)


def focus_of(network: RetinaFace) -> FocusSpec | None:
    """Return what a card says of a network's focus map; None: it has none."""
    return FocusSpec() if isinstance(network, FocusedRetinaFace) else None


def cell_targets(boxes_xyxy: FloatArray, scores: FloatArray, cells: int) -> tuple[FloatArray, FloatArray]:
    """Return the targets of the cells of a square look, and their weights in the loss.

    Args:
        boxes_xyxy: Candidates for faces in pixels of the finer look, (n, 4); large ones are left out.
        scores: (n,), 0..1.
        cells: Of a row.

    Returns:
        Best score of the candidates that reach into each cell (cells, cells), 0 without one, and how much a
        cell with one weighs, from 0.3 to 4: the more, the more candidates it has and the smaller they are.
    """
    best, weights = np.zeros((2, cells, cells), np.float32)
    small = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).min(axis=1, initial=np.inf) <= _LARGEST_FACE_PX
    first = np.floor(boxes_xyxy[:, :2] / FINER_CELL_PX).clip(0).astype(int)
    end = np.ceil(boxes_xyxy[:, 2:] / FINER_CELL_PX).clip(0).astype(int)
    wanted = _wanted(torch.from_numpy(scores)).numpy()
    rows = zip(first[small], end[small], scores[small], wanted[small], strict=True)
    for (left, top), (right, bottom), score, target in rows:
        reached = best[top:bottom, left:right]
        np.maximum(reached, score, out=reached)
        weights[top:bottom, left:right] += target * _CELLS_OF_A_FACE / max(1, reached.size)
    return best, weights.clip(_LEAST_WEIGHT, _MOST_WEIGHT)


def focus_loss(logits: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy (batch, rows, columns) against scores of what is found; see `cell_targets`."""
    wanted = _wanted(scores)
    of_cells = (1 - wanted) + _POSITIVE_WEIGHT * wanted * weights
    errors = functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    return (errors * of_cells).sum() / of_cells.sum()


def _wanted(scores: Tensor) -> Tensor:
    """Target probabilities of the focus map, 0..1, for cells with these best scores."""
    return ((scores - _NOTHING) / (_CERTAIN - _NOTHING)).clamp(0, 1)
