"""The one training loop: accumulation, averaged weights, checkpoints, resume, logs, several processes.

Tasks bring batches and losses.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facepipe.core.errors import DataError, FacepipeError
from facepipe.core.files import make_private_folder
from facepipe.training.engine.checkpoints import (
    BEST,
    LAST,
    changed_settings,
    holds_run,
    load_last,
    save_checkpoint,
    save_last,
)
from facepipe.training.engine.compiling import compiles
from facepipe.training.engine.depthwise import replace_strided_depthwise
from facepipe.training.engine.distributed import any_rank, is_main, sum_over_ranks, world_size
from facepipe.training.engine.logs import RunLog
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import (
    OptimiserConfig,
    ScheduleConfig,
    autocast,
    build_optimiser,
    restore_optimiser,
    set_rate,
)
from facepipe.training.engine.signals import StopRequest, stop_wish
from facepipe.training.engine.stream import Batches
from facepipe.training.engine.task import Progress, Task

_LOG = logging.getLogger("facepipe.training")
Batch = TypeVar("Batch")
Result = TypeVar("Result")


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
        replace_strided_depthwise(task.module)
        self._device = next(task.module.parameters()).device
        self._samples_per_step = config.batch_size * optimiser.accumulate * world_size()
        self._schedule = ScheduleConfig(config.steps, config.warmup_steps, config.schedule, config.milestones)
        self.optimiser = build_optimiser(task.module, optimiser, self._samples_per_step)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "float16")
        self.average = copy.deepcopy(task.module).requires_grad_(False)
        self.step, self.seconds, self.best, self._validated = 0, 0.0, -math.inf, 0
        self.figures: dict[str, float] = {}
        self._module: nn.Module | None = None
        self._random: dict[str, Any] = {}
        self._failure: Exception | None = None

    def run(self, resume: bool = True) -> float:
        """Train to the end, or to Ctrl-C, which saves and returns. Returns the best validation score.

        Args:
            resume: Continue the run in `folder` where there is one.

        Raises:
            DataError, PhotoError: A batch can't be made (what was done is saved), or the run's checkpoints
                are damaged or of another network.
            NonFiniteLossError: Names the files of the batch.
            OutputError: A file can't be written.
            KeyboardInterrupt: It ended before the first step, or by a second Ctrl-C.
        """
        make_private_folder(self.folder)
        if resume and holds_run(self.folder):
            state, damage = load_last(self.folder)
            if damage:
                _LOG.warning("%s; the run continues from the one before, of step %d", damage, state["step"])
            self._restore(state)
        self._log_file = RunLog(self.folder, self.config.tensorboard and is_main(), self.step)
        if is_main():
            self._log_file.forget_after(self.step)
        with ExitStack() as self._until_the_end, stop_wish() as wish:
            batches = self.task.batches(self.step * self.accumulate)
            with closing(batches):
                self._train(batches, wish)
        return self.best

    def _train(self, batches: Batches[Batch], wish: StopRequest) -> None:
        config, window = self.config, _Window()
        self._validate_when_due(wish)  # a run that was stopped may owe it
        started = time.perf_counter()
        while (work := self._ready(batches, wish)) is not None:
            losses = self._one_step(work)
            self.step += 1
            spent = time.perf_counter() - started
            self.seconds += spent
            window.add(losses, spent)
            self._report(window)
            self._validate_when_due(wish)
            if self.step % config.checkpoint_every == 0:
                self._save()
            if config.keep_every and self.step % config.keep_every == 0:
                self._save(f"step_{self.step:06d}.pt")
            started = time.perf_counter()
        self._end()

    def _end(self) -> None:
        """Save, and raise what went wrong; a run without any step leaves nothing to continue."""
        failed = any_rank(self._failure is not None, self._device)
        try:
            if self.step:
                self._save()
        finally:
            if self._failure is not None:
                raise self._failure
        if failed:
            raise DataError("another process of this run failed, and says why")
        if not self.step:
            raise KeyboardInterrupt

    def _ready(self, batches: Batches[Batch], wish: StopRequest) -> list[Batch] | None:
        """The batches of the next step, for which the network is ready; None: the run ends here."""

        def make_ready() -> list[Batch]:
            work = [next(batches) for _ in range(self.accumulate)]
            if self._module is None or self.step == self.config.freeze_steps:
                self._module = self._prepared(work[0])
            return work

        if self.step >= self.config.steps:
            return None
        work = self._attempt(make_ready, wish)
        return None if any_rank(work is None, self._device) else work

    def _attempt(self, work: Callable[[], Result], wish: StopRequest) -> Result | None:
        """Do something between two steps, where a run can be saved; None: it was interrupted or failed."""
        if self._failure is not None:
            return None
        try:
            with wish.interrupting():
                return work()
        except KeyboardInterrupt:
            if not wish.asked:
                raise
        except Exception as error:
            self._failure = error
        return None

    def _prepared(self, batch: Batch) -> nn.Module:
        """The module as it is called: parts frozen or not, spread over processes, compiled."""
        for part in self.task.pretrained_parts():
            part.requires_grad_(self.step >= self.config.freeze_steps)
        module = self.task.module
        if world_size() > 1:
            module = DistributedDataParallel(module, [self._device] if self._device.type == "cuda" else None)
        if not self.config.compile:
            return module
        compiled: nn.Module = torch.compile(module)  # type: ignore[assignment]
        self._set_mode(compiled)

        def step() -> None:
            with _no_exchange(compiled):
                self._backward(compiled, batch)

        if not compiles(step, self.task.module, self._device):
            # Also what the task has compiled by itself.
            self._until_the_end.enter_context(torch.compiler.set_stance("force_eager"))
            self.config = replace(self.config, compile=False)
            self.record = {**self.record, "loop": {**self.record.get("loop", {}), "compile": False}}
            return module
        return compiled

    def _set_mode(self, module: nn.Module) -> None:
        module.train()
        if self.step < self.config.freeze_steps:
            for part in self.task.pretrained_parts():
                part.eval()  # BatchNorm's statistics stay too

    def _one_step(self, work: list[Batch]) -> dict[str, float]:
        assert self._module is not None
        self._restore_random()
        self._set_mode(self._module)
        set_rate(self.optimiser, self._schedule.factor(self.step))
        seen: dict[str, float] = {}
        for i, batch in enumerate(work, 1):
            with _no_exchange(self._module) if i < len(work) else nullcontext():
                parts = self._backward(self._module, batch)
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
        self._scaler.scale(total / self.accumulate).backward()
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

    def _validate_when_due(self, wish: StopRequest) -> None:
        due = self.step % self.config.validate_every == 0 or self.step == self.config.steps
        if not is_main() or not due or self._validated == self.step:
            return
        figures = self._attempt(self._measured, wish)
        if figures is None:
            return
        self.figures, self._validated = figures, self.step
        if figures:
            self._log(figures)
        if figures.get("score", -math.inf) > self.best:
            self.best = figures["score"]
            self._save(BEST)

    def _measured(self) -> dict[str, float]:
        self.average.eval()
        with torch.no_grad():
            return self.task.validate(self.average)

    def _save(self, name: str | None = None) -> None:
        """Write a checkpoint, by default the one that continues the run."""
        if not is_main():
            return
        if name is None:
            save_last(self.folder, self._state())
        else:
            save_checkpoint(self.folder / name, self._state())

    def _state(self) -> dict[str, Any]:
        """The schedule has no state of its own, and sample i is a function of the seed and i."""
        return {
            "step": self.step,
            "epoch": self.step * self._samples_per_step / max(1, self.task.samples_per_epoch),
            "seconds": self.seconds,
            "best": self.best,
            "figures": self.figures,
            "validated": self._validated,
            "module": self.task.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            **(self._random or self._random_now()),
            "record": self.record,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.task.module.load_state_dict(state["module"])
            self.average.load_state_dict(state["average"])
            restore_optimiser(self.optimiser, state["optimiser"])
            if self._scaler.is_enabled() and state.get("scaler"):
                self._scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(
                f"{self.folder / LAST}: does not fit this configuration ({str(error)[:300]}); "
                "train in another folder"
            ) from error
        self._random = {key: state.get(key) for key in ("random", "cuda_random")}
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
        self.figures = dict(state.get("figures", {}))
        self._validated = state.get("validated", self.step)
        if changes := changed_settings(state["record"], self.record):
            _LOG.warning("this run continues with other settings than before: %s", "; ".join(changes))
        _LOG.info("continuing at step %d of %d", self.step, self.config.steps)

    def _random_now(self) -> dict[str, Any]:
        on_cuda = self._device.type == "cuda"
        return {
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self._device) if on_cuda else None,
        }

    def _restore_random(self) -> None:
        """Go on drawing where the run was saved: last of all before a step, whatever was drawn since."""
        state, self._random = self._random, {}
        if not state:
            return
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self._device)


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
