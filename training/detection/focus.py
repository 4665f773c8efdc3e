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
_POSITIVE_WEIGHT = 5.0
"""Of a cell to look at, beside one of background: a face that is left out costs more than a look in vain."""


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
        targets = self._found(pixels)
        coarse = functional.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), FINER_BY)
        logits = module(self._input(coarse.round().to(torch.uint8).permute(0, 2, 3, 1)))
        return {"focus": focus_loss(logits, targets)}

    @torch.no_grad()
    def _found(self, pixels: Tensor) -> Tensor:
        """Map finer looks to the best score of a face in each cell (batch, rows, columns)."""
        output = self.module.network(self._input(pixels))
        scores = functional.softmax(output.classes.float(), dim=-1)[..., 1].cpu().numpy()
        found = []
        for regression, of_crop in zip(output.boxes.float().cpu().numpy(), scores, strict=True):
            likely = np.flatnonzero(of_crop > _NOTHING)
            boxes = decode_boxes(regression[likely], self._anchors[likely], self._variances)
            found.append(torch.from_numpy(score_map(boxes, of_crop[likely], self._cells)))
        return torch.stack(found).to(self._device)


def focus_of(network: RetinaFace) -> FocusSpec | None:
    """Return what a card says of a network's focus map; None: it has none."""
    return FocusSpec() if isinstance(network, FocusedRetinaFace) else None


def score_map(boxes_xyxy: FloatArray, scores: FloatArray, cells: int) -> FloatArray:
    """Best score of the faces that reach into each cell of a square look, (cells, cells); 0 without one.

    Args:
        boxes_xyxy: In pixels of the finer look, (n, 4); large ones are left out.
        scores: (n,), 0..1.
        cells: Of a row.
    """
    best = np.zeros((cells, cells), np.float32)
    small = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).min(axis=1, initial=np.inf) <= _LARGEST_FACE_PX
    first = np.floor(boxes_xyxy[:, :2] / FINER_CELL_PX).clip(0).astype(int)
    end = np.ceil(boxes_xyxy[:, 2:] / FINER_CELL_PX).clip(0).astype(int)
    for (left, top), (right, bottom), score in zip(first[small], end[small], scores[small], strict=True):
        reached = best[top:bottom, left:right]
        np.maximum(reached, score, out=reached)
    return best


def focus_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Mean cross-entropy (batch, rows, columns) against scores of what is found, weighted by cells."""
    wanted = ((scores - _NOTHING) / (_CERTAIN - _NOTHING)).clamp(0, 1)
    weights = 1 + (_POSITIVE_WEIGHT - 1) * wanted
    errors = functional.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    return (errors * weights).sum() / weights.sum()
