"""The optimiser and its learning rate, and the precision that networks run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from facepipe.core.errors import UsageError
from facepipe.training.engine.muon import Muon, hidden_matrices

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """The optimiser and its settings.

    Attributes:
        name: "adamw", "sgd" with momentum, or "muon": Muon for the matrices of linear layers and dense
            convolutions, AdamW for all other weights.
        learning_rate: Peak rate for `reference_batch` samples a step; scaled linearly with the samples of a
            step (batch, times accumulated batches, times processes).
        reference_batch: Samples of a step for which `learning_rate` is meant.
        momentum: Of sgd and muon.
        matrix_rate: Of muon: root mean square of a matrix's update, as a share of the learning rate.
        weight_decay: On weights of two or more dimensions only, never on BatchNorm or biases.
        clip_norm: Largest norm of the gradient.
        accumulate: Batches whose gradients are added up before one step.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = 2e-3
    reference_batch: int = 16
    momentum: float = 0.9
    matrix_rate: float = 0.2
    weight_decay: float = 0.02
    clip_norm: float = 10.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.clip_norm > 0 and self.weight_decay >= 0):
            raise UsageError("optimiser: expected positive learning_rate and clip_norm, weight_decay from 0")
        if not self.matrix_rate > 0:
            raise UsageError(f"optimiser.matrix_rate: expected a positive number, got {self.matrix_rate}")
        if min(self.reference_batch, self.accumulate) < 1 or not 0 < self.momentum < 1:
            raise UsageError(
                "optimiser: expected reference_batch and accumulate from 1, momentum between 0 and 1"
            )


def build_optimiser(
    module: nn.Module, config: OptimiserConfig, samples_per_step: int, precision: Precision = "float32"
) -> torch.optim.Optimizer:
    """Build the optimiser of all parameters; "initial_lr" of its groups is the peak learning rate."""
    rate = config.learning_rate * samples_per_step / config.reference_batch
    trained = list(module.parameters())  # frozen ones too: they have no gradient and stay
    decayed, free = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "initial_lr": rate},
        {"params": free, "weight_decay": 0.0, "initial_lr": rate},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    if config.name == "muon":
        matrices = {id(p): p for p in hidden_matrices(module)}
        groups[0]["params"] = [p for p in decayed if id(p) not in matrices]
        of_matrices = {"momentum": config.momentum, "matrix_rate": config.matrix_rate}
        groups.append({**groups[0], "params": list(matrices.values()), **of_matrices})
        return Muon(groups, rate, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return torch.optim.AdamW(groups, lr=rate)


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments and counters from a checkpoint; rates and weight decay stay as configured now."""
    kept = ("initial_lr", "weight_decay", "matrix_rate")
    configured = [{key: group[key] for key in kept if key in group} for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, configured, strict=True):
        group.update(settings)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which networks run in this precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float16)
