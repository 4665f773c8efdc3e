"""How far a network's inner maps are from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LEAST_VARIANCE = 1e-6
"""Of a map that is the same everywhere, which would be divided by 0."""


def map_errors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each map, as a share of the variance of the teacher's.

    Gradients of maps have their channels last in memory, as the maps of the trainers' networks have: where
    the two differ, BatchNorm's backward pass takes over ten times as long.

    Args:
        ours: Maps (batch, channels, h, w) of the network that learns.
        theirs: The teacher's, of the same shapes; no gradient reaches them.

    Returns:
        float32 (maps,).
    """
    return torch.stack([_MapError.apply(our, their) for our, their in zip(ours, theirs, strict=True)])


class _MapError(torch.autograd.Function):
    """Error of one map, in fewer passes over memory than torch's own operations take."""

    @staticmethod
    def forward(ctx: Any, our: Tensor, their: Tensor) -> Tensor:
        difference = _values(our - their).float()
        values = _values(their).float()
        centred = values - values.mean()
        variance = torch.dot(centred, centred) / (len(centred) - 1)
        scale = 1 / (variance.clamp(min=_LEAST_VARIANCE) * len(difference))
        ctx.save_for_backward(difference, scale)
        ctx.shape, ctx.dtype = our.shape, our.dtype
        return torch.dot(difference, difference) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        difference, scale = ctx.saved_tensors
        batch, channels, h, w = ctx.shape
        values = (difference * (2 * gradient * scale)).to(ctx.dtype)
        return values.view(batch, h, w, channels).permute(0, 3, 1, 2), None


def _values(m: Tensor) -> Tensor:
    """Lay a map's values out as (batch x h x w x channels,), without a copy where its channels are last."""
    return m.permute(0, 2, 3, 1).reshape(-1)
