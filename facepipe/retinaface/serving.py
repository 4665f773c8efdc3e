"""RetinaFace as it is exported and served, in torch: the same function in fewer operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.retinaface.network import (
    ANCHORS_PER_CELL,
    BOX_VALUES,
    CLASS_VALUES,
    LANDMARK_VALUES,
    RetinaFace,
)
from facepipe.retinaface.small_faces import FocusedRetinaFace

_VALUES = [BOX_VALUES, CLASS_VALUES, LANDMARK_VALUES]


class RetinaFaceServing(nn.Module):
    """A network that gives probabilities, and whose three heads of a stride are one convolution.

    Args:
        network: Its heads are copied: it must not be trained on.
    """

    def __init__(self, network: RetinaFace) -> None:
        super().__init__()
        self.network = network
        heads = zip(network.box_heads, network.class_heads, network.landmark_heads, strict=True)
        self.heads = nn.ModuleList(_fused(of_stride) for of_stride in heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (batch, 3, h, w) to boxes (batch, anchors, 4), probabilities (.., 2), landmarks (.., 10).

        Then the focus map (batch, h/8, w/8) as probabilities, if the network has one.
        """
        if not isinstance(self.network, FocusedRetinaFace):
            return self._outputs(self.network.context_maps(images))
        maps, focus = self.network.context_maps_and_focus(images)
        return *self._outputs(maps), torch.sigmoid(focus)

    def _outputs(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        outputs = [head(m) for head, m in zip(self.heads, maps, strict=True)]
        rows = [o.permute(0, 2, 3, 1).reshape(o.shape[0], -1, sum(_VALUES)) for o in outputs]
        boxes, classes, landmarks = torch.split(torch.cat(rows, dim=1), _VALUES, dim=-1)
        return boxes, functional.softmax(classes, dim=-1), landmarks


def _fused(heads: Sequence[nn.Module]) -> nn.Conv2d:
    """One 1x1 convolution: all values of the first anchor of a cell, then those of the second."""
    weight, bias = (
        torch.cat([_by_anchor(head.get_parameter(name)) for head in heads], dim=1).flatten(0, 1)
        for name in ("weight", "bias")
    )
    fused = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device=weight.device)
    fused.weight, fused.bias = (nn.Parameter(values, requires_grad=False) for values in (weight, bias))
    return fused


def _by_anchor(parameter: Tensor) -> Tensor:
    return parameter.detach().unflatten(0, (ANCHORS_PER_CELL, -1))  # type: ignore[no-any-return]
