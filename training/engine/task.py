"""The interface between the training loop and what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from facepipe.training.engine.stream import Batches

Batch = TypeVar("Batch")


class Task(Protocol[Batch]):
    """Module, batches, losses and validation of one kind of training."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained, on its device; saved in checkpoints and averaged."""

    @property
    def samples_per_epoch(self) -> int:
        """Photos, to count epochs by."""

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the parts of `module` that `LoopConfig.freeze_steps` freezes."""

    def batches(self, first_step: int) -> Batches[Batch]:
        """Return an endless stream for this process that continues exactly at `first_step` (in batches)."""

    def losses(self, module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted parts of the loss; their sum is minimised. `progress`: 0 at the start, 1 at the end."""

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of the averaged weights; "score", larger is better, chooses the best checkpoint."""

    def describe(self, batch: Batch) -> str:
        """Names of the batch's files, for an error."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run after a step.

    Attributes:
        step, steps: Finished, and of the whole run.
        losses: Parts of this step's loss.
    """

    step: int
    steps: int
    losses: dict[str, float]
