"""How far a network's inner maps are from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_VARIANCE = 1e-6
"""Of a map that is the same everywhere, which would be divided by 0."""


def map_errors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each map, as a share of the variance of the teacher's.

    Gradients of maps have their channels last in memory, as the maps of the trainers' networks have: where
    the two differ, BatchNorm's backward pass takes over ten times as long.

    Args:
        ours: Maps (batch, channels, h, w) of the network that learns.
        theirs: The teacher's, of the same shapes.

    Returns:
        float32 (maps,).
    """
    pairs = zip(map(_channels_last, ours), map(_channels_last, theirs), strict=True)
    return torch.stack(
        [functional.mse_loss(our, their) / their.var().clamp(min=_LEAST_VARIANCE) for our, their in pairs]
    )


def _channels_last(m: Tensor) -> Tensor:
    """View a map as float32 (batch, h, w, channels)."""
    return m.float().permute(0, 2, 3, 1)
