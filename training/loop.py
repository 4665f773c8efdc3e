"""The one training loop: accumulation, averaged weights, checkpoints, resume, logs, several processes.

Tasks bring batches and losses.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facepipe.errors import DataError, FacepipeError, UsageError
from training.checkpoints import changed_settings, load_checkpoint, save_checkpoint
from training.distributed import any_rank, is_main, sum_over_ranks, world_size
from training.logs import RunLog
from training.optimisation import (
    OptimiserConfig,
    Precision,
    Schedule,
    ScheduleConfig,
    autocast,
    build_optimiser,
    restore_optimiser,
    set_rate,
)
from training.signals import StopWish, stop_wish

_LOG = logging.getLogger("facepipe.training")
Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How long a run is and what it leaves behind.

    Attributes:
        steps: Optimiser steps of the whole run.
        batch_size: Samples a batch (a process, under torchrun).
        warmup_steps, schedule, milestones, step_factor: See `ScheduleConfig`.
        freeze_steps: The parts that start trained (a backbone) stay as they are for so many steps.
        ema_decay: Of the averaged weights, which are validated and shipped.
        precision: "float32", or autocast to "bfloat16" or "float16" (with scaled losses).
        compile: Compile the network with torch.compile (a minute at the start; pays on long runs). It needs
            a C++ compiler; where there is none, trainers say so and run uncompiled.
        validate_every, checkpoint_every, log_every: In steps. The end of the run is always validated.
        keep_every: Keep a checkpoint of its own, step_NNN.pt, every so many steps; 0: never.
        tensorboard: Write TensorBoard events beside log.csv.
        workers: Processes that prepare batches; 0: in this one.
        seed: Of everything random.
    """

    steps: int = 10_000
    batch_size: int = 16
    warmup_steps: int = 150
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.6, 0.85)
    step_factor: float = 0.1
    freeze_steps: int = 0
    ema_decay: float = 0.998
    precision: Precision = "float32"
    compile: bool = False
    validate_every: int = 1000
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
        for name in ("warmup_steps", "freeze_steps", "keep_every", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"loop.{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"loop.ema_decay: expected 0 or more and below 1, got {self.ema_decay}")


class Task(Protocol[Batch]):
    """What one kind of training brings to the loop."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained, on its device; saved in checkpoints and averaged."""

    @property
    def samples_per_epoch(self) -> int:
        """Photos, to count epochs by."""

    def pretrained_parts(self) -> list[nn.Module]:
        """The parts of `module` that `LoopConfig.freeze_steps` means."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """An endless stream for this process that continues exactly at `first_step` (in batches)."""

    def losses(self, module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Weighted parts of the loss; their sum is minimised. `progress`: 0 at the start, 1 at the end."""

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of the averaged weights; "score", larger is better, chooses the best checkpoint."""

    def describe(self, batch: Batch) -> str:
        """Names of the batch's files, for an error."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, after every step.

    Attributes:
        step, steps: Finished, and of the whole run.
        losses: Parts of this step's loss.
        samples_per_s: Lately, all processes together.
        seconds_left: At this speed, without validation.
    """

    step: int
    steps: int
    losses: dict[str, float]
    samples_per_s: float
    seconds_left: float


class NonFiniteLossError(FacepipeError):
    """A loss or a gradient became NaN or infinite."""


class TrainingLoop(Generic[Batch]):
    """Runs a task in `folder`: `last.pt`, `best.pt`, `log.csv`.

    Args:
        task: What to train.
        optimiser: See `OptimiserConfig`.
        config: See `LoopConfig`.
        folder: Made where missing.
        record: Plain data stored in every checkpoint (the merged configuration).
        on_log: Called with the figures of every logged step and validation.
        on_step: Called after every step.
    """

    def __init__(
        self,
        task: Task[Batch],
        optimiser: OptimiserConfig,
        config: LoopConfig,
        folder: Path,
        record: dict[str, Any],
        on_log: Callable[[dict[str, float]], None] = lambda _: None,
        on_step: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.task, self.config, self.folder, self.record = task, config, folder, record
        self.on_log, self.on_step = on_log, on_step
        self.accumulate, self.clip_norm = optimiser.accumulate, optimiser.clip_norm
        torch.manual_seed(config.seed)
        self._device = next(task.module.parameters()).device
        self._samples_per_step = config.batch_size * optimiser.accumulate * world_size()
        self._schedule = ScheduleConfig(
            config.steps, config.warmup_steps, config.schedule, config.milestones, config.step_factor
        )
        self.optimiser = build_optimiser(task.module, optimiser, self._samples_per_step)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "float16")
        self.average = copy.deepcopy(task.module).requires_grad_(False)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.figures: dict[str, float] = {}

    def run(self, resume: bool = True) -> float:
        """Train to the end, or to Ctrl-C, which saves and returns. Returns the best validation score.

        Args:
            resume: Continue from `last.pt` where there is one.

        Raises:
            DataError: That checkpoint is damaged or of another network.
            NonFiniteLossError: Names the files of the batch.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log_file = RunLog(self.folder, self.config.tensorboard and is_main())
        if resume and (self.folder / "last.pt").is_file():
            self._restore(self.folder / "last.pt")
        with stop_wish() as wish:
            self._train(wish)
        return self.best

    def _train(self, wish: StopWish) -> None:
        config = self.config
        batches = self.task.batches(self.step * self.accumulate)
        module = self._prepared()
        window = _Window()
        while self.step < config.steps and not any_rank(wish.asked, self._device):
            if self.step == config.freeze_steps and self.step:
                module = self._prepared()
            started = time.perf_counter()
            losses = self._one_step(module, batches)
            self.step += 1
            spent = time.perf_counter() - started
            self.seconds += spent
            window.add(losses, spent)
            self._report(window)
            if self.step % config.validate_every == 0 or self.step == config.steps:
                self._validate()
            if self.step % config.checkpoint_every == 0:
                self._save("last.pt")
            if config.keep_every and self.step % config.keep_every == 0:
                self._save(f"step_{self.step:06d}.pt")
        self._save("last.pt")

    def _prepared(self) -> nn.Module:
        """The module as it is called: parts frozen or not, spread over processes, compiled."""
        for part in self.task.pretrained_parts():
            part.requires_grad_(self.step >= self.config.freeze_steps)
        module = self.task.module
        if world_size() > 1:
            module = DistributedDataParallel(module, [self._device] if self._device.type == "cuda" else None)
        return torch.compile(module) if self.config.compile else module  # type: ignore[return-value]

    def _one_step(self, module: nn.Module, batches: Iterator[Batch]) -> dict[str, float]:
        module.train()
        if self.step < self.config.freeze_steps:
            for part in self.task.pretrained_parts():
                part.eval()  # BatchNorm's statistics stay too
        set_rate(self.optimiser, self._schedule.factor(self.step))
        seen: dict[str, float] = {}
        for i in range(self.accumulate):
            batch = next(batches)
            with _no_exchange(module) if i + 1 < self.accumulate else nullcontext():
                parts = self._backward(module, batch)
            for key, value in parts.items():
                seen[key] = seen.get(key, 0.0) + value / self.accumulate
        self._move_weights(batch)
        return seen

    def _backward(self, module: nn.Module, batch: Batch) -> dict[str, float]:
        """Add the gradients of one batch."""
        with autocast(self.config.precision, self._device):
            parts = self.task.losses(module, batch, self.step / self.config.steps)
        total = torch.stack(list(parts.values())).sum()
        # One trip from the device for all of them.
        values = dict(zip(parts, torch.stack([v.detach() for v in parts.values()]).tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            shown = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
            raise NonFiniteLossError(f"step {self.step}: {shown}; files: {self.task.describe(batch)}")
        self._scaler.scale(total / self.accumulate).backward()  # type: ignore[no-untyped-call]
        return values

    def _move_weights(self, batch: Batch) -> None:
        self._scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.task.module.parameters(), self.clip_norm)
        # Scaled losses overflow now and then: the scaler skips such a step and scales less.
        if not self._scaler.is_enabled() and not torch.isfinite(norm):
            raise NonFiniteLossError(
                f"step {self.step}: the gradient's norm is {float(norm)}; files: {self.task.describe(batch)}"
            )
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if is_main():
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young average follows quickly, so that the first weights are soon forgotten.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.task.module.state_dict()
        for name, value in self.average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def _report(self, window: _Window) -> None:
        config = self.config
        speed = self._samples_per_step * window.steps / window.seconds
        left = (config.steps - self.step) * window.seconds / window.steps
        self.on_step(Progress(self.step, config.steps, window.latest, speed, left))
        if self.step % config.log_every == 0 or self.step == config.steps:
            rate = self._schedule.factor(self.step - 1)
            self._log({"samples_per_s": speed, "rate": rate, **window.means(self._device)})
            window.clear()

    def _log(self, figures: dict[str, float]) -> None:
        if is_main():
            self._log_file.write(self.step, self.seconds, figures)
            self.on_log({"step": self.step, "seconds": round(self.seconds, 1), **figures})

    def _validate(self) -> None:
        if not is_main():
            return
        self.average.eval()
        with torch.no_grad():
            self.figures = self.task.validate(self.average)
        if self.figures:
            self._log(self.figures)
        if self.figures.get("score", -math.inf) > self.best:
            self.best = self.figures["score"]
            self._save("best.pt")

    def _save(self, name: str) -> None:
        if is_main():
            save_checkpoint(self.folder / name, self._state())

    def _state(self) -> dict[str, Any]:
        """The schedule has no state of its own, and sample i is a function of the seed and i."""
        on_cuda = self._device.type == "cuda"
        return {
            "step": self.step,
            "epoch": self.step * self._samples_per_step / max(1, self.task.samples_per_epoch),
            "seconds": self.seconds,
            "best": self.best,
            "figures": self.figures,
            "module": self.task.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self._device) if on_cuda else None,
            "record": self.record,
        }

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        try:
            self.task.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            restore_optimiser(self.optimiser, state["optimiser"])
            if self._scaler.is_enabled() and state.get("scaler"):
                self._scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(
                f"{path}: does not fit this configuration ({str(error)[:300]}); train in another folder"
            ) from error
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state.get("cuda_random") is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self._device)
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        self.figures = dict(state.get("figures", {}))
        if is_main():
            self._log_file.forget_after(self.step)
        if changes := changed_settings(state["record"], self.record):
            _LOG.warning("this run continues with other settings than before: %s", "; ".join(changes))
        _LOG.info("continuing at step %d of %d", self.step, self.config.steps)


class _Window:
    """Sums since the last line of the log."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.clear()

    def clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps, self.seconds = 0, 0.0

    def add(self, losses: dict[str, float], seconds: float) -> None:
        self.latest = losses
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self, device: torch.device) -> dict[str, float]:
        """Over steps and processes."""
        values = torch.tensor(list(self.sums.values()), device=device) / self.steps
        return dict(zip(self.sums, (sum_over_ranks(values) / world_size()).tolist(), strict=True))


def _no_exchange(module: nn.Module) -> Any:
    """While gradients only add up, processes need not exchange them."""
    inner = getattr(module, "_orig_mod", module)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()
