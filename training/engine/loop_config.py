"""Settings of every training run: its length, learning rate, checkpoints, device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from facepipe.core.errors import UsageError
from facepipe.training.engine.optimizer import OptimiserConfig, Precision

Schedule = Literal["cosine", "step", "constant"]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Length, schedule, precision and checkpoints of a run.

    Attributes:
        steps: Optimiser steps of the whole run.
        epochs: Length of the run in passes over all photos, in place of `steps`.
        batch_size: Samples a batch (a process, under torchrun).
        warmup_steps: Steps in which the learning rate rises linearly to its peak.
        schedule: Learning rate after the warm-up: "cosine" to zero, "step" (a tenth at each milestone) or
            "constant".
        milestones: Of "step": shares of the way from the end of the warm-up to the end of the run.
        freeze_steps: The parts that start trained (a backbone) stay as they are for so many steps.
        ema_decay: Of the averaged weights, which are validated and shipped.
        precision: "float32", or autocast to "bfloat16" or "float16" (with scaled losses).
        compile: Compile the network with torch.compile where that pays (a minute at the start, for long
            runs): on a CPU, steps are timed with and without it first. It needs a C++ compiler; where a first
            step of the compiled network fails, a warning says so and the run goes on uncompiled.
        validate_every, checkpoint_every, log_every: Steps from one validation, checkpoint or line of the log
            to the next; the end of the run has all three.
        patience: End the run when the score has not got better for so many validations; 0: never.
        keep_every: Keep a checkpoint of its own, step_NNN.pt, every so many steps; 0: never.
        tensorboard: Write TensorBoard events beside log.csv.
        workers: Processes that prepare batches; 0: in this one.
        seed: Of everything random.
    """

    steps: int = 10_000
    epochs: float | None = None
    batch_size: int = 16
    warmup_steps: int = 150
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.6, 0.85)
    freeze_steps: int = 0
    ema_decay: float = 0.998
    precision: Precision = "float32"
    compile: bool = False
    validate_every: int = 1000
    patience: int = 0
    checkpoint_every: int = 250
    log_every: int = 25
    keep_every: int = 0
    tensorboard: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"loop.{name}: expected at least 1, got {getattr(self, name)}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UsageError(f"loop.epochs: expected a positive number, got {self.epochs}")
        for name in ("warmup_steps", "freeze_steps", "patience", "keep_every", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"loop.{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"loop.ema_decay: expected 0 or more and below 1, got {self.ema_decay}")

    def with_known_length(self, samples: int, samples_per_step: int) -> LoopConfig:
        """Return the same settings with `epochs` of so many samples turned into steps."""
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * samples / samples_per_step))
        return replace(self, steps=steps, epochs=None)

    def rate_factor(self, step: int) -> float:
        """Learning rate as a share of its peak, for the step that follows `step` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.schedule == "step":
            return float(0.1 ** sum(done >= milestone for milestone in self.milestones))
        return 1.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Settings that the configurations of both trainers share.

    Attributes:
        cache: Folder for decoded images.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    cache: Path | None = None
    device: str = "auto"
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
