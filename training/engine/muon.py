"""Muon (Jordan et al., kellerjordan.github.io/posts/muon), for networks with convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5
"""Of the Newton-Schulz iteration, as published: singular values end between 0.7 and 1.2."""


class Muon(torch.optim.AdamW):
    """Muon for the groups that have a `matrix_rate`, AdamW for the others.

    A matrix moves by its momentum with all singular values made nearly equal; in a dense convolution the
    matrix is (outputs, inputs x height x width). torch.optim.Muon takes parameters of two dimensions only.

    A group's `matrix_rate` is the root mean square of such an update as a share of the group's learning rate,
    as in Liu et al., arXiv:2502.16982 (0.2 there, about what AdamW's have). Its `momentum` is Nesterov's.

    Args:
        groups: Parameters, or groups of them.
        lr: Learning rate of groups that have none.
        dtype: In which the matrices are orthogonalised.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(groups, lr=lr)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """See `torch.optim.Optimizer.step`."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "matrix_rate" not in group]
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if "matrix_rate" in group:
                for weight in group["params"]:
                    self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        if weight.grad is None:
            return
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW's loading of states asks for it
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        direction = weight.grad.lerp(momentum, group["momentum"]).flatten(1)
        update = orthogonalised(direction.to(self._dtype)).to(weight.dtype)
        # An orthogonal m x n matrix has a root mean square of 1 / sqrt(max(m, n)).
        size = group["lr"] * group["matrix_rate"] * max(direction.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(update.reshape(weight.shape), alpha=size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return the matrix (m, n) with its singular values near 1 in place of what they were."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    wide: Tensor = matrix / (matrix.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        squared = wide @ wide.T
        wide = a * wide + (b * squared + c * squared @ squared) @ wide
    return wide


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Return the weights of linear layers and dense convolutions, but for those on images."""
    return [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > 3)
    ]
