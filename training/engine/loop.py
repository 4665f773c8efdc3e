"""The training loop of both trainers: steps, averaged weights, validation, checkpoints, resuming."""

from __future__ import annotations

import json
import logging
import math
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from facepipe.training.engine.compiling import compiles, is_faster_compiled
from facepipe.training.engine.depthwise import replace_strided_depthwise
from facepipe.training.engine.distributed import (
    any_rank,
    different_in_ranks,
    is_main,
    without_exchange,
    world_size,
)
from facepipe.training.engine.logs import LogWindow, RunLog
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import (
    OptimiserConfig,
    autocast,
    build_optimiser,
    restore_optimiser,
)
from facepipe.training.engine.signals import StopRequest, stop_request
from facepipe.training.engine.stream import Batches
from facepipe.training.engine.task import Progress, Task

_OF_A_HOST = ("compile", "workers", "tensorboard")
_LOG = logging.getLogger("facepipe.training")
Batch = TypeVar("Batch")
Result = TypeVar("Result")
Weights = list[Tensor] | tuple[Tensor, ...]


class NonFiniteLossError(FacepipeError):
    """A loss or a gradient became NaN or infinite."""


class TrainingLoop(Generic[Batch]):
    """Trains a task, with checkpoints and log in `folder`.

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
        self.optimiser = build_optimiser(task.module, optimiser, self._samples_per_step, config.precision)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "float16")
        self._averaged = AveragedModel(task.module, multi_avg_fn=self._average_weights, use_buffers=True)
        self._averaged.requires_grad_(False).n_averaged += 1  # weights at the start count as averaged once
        self.average: nn.Module = self._averaged.module
        self.step, self.seconds, self.best, self._validated = 0, 0.0, -math.inf, 0
        self._validations_since_best = 0
        self.figures: dict[str, float] = {}
        self._module: nn.Module | None = None
        self._compile_pays: bool | None = None  # None: not measured
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
        self._require_same_start()
        self._log_file = RunLog(self.folder, self.config.tensorboard and is_main(), self.step)
        if is_main():
            self._log_file.forget_after(self.step)
        with ExitStack() as self._until_the_end, stop_request() as stop:
            batches = self.task.batches(self.step * self.accumulate)
            with closing(batches):
                self._train(batches, stop)
        return self.best

    def _require_same_start(self) -> None:
        """Require that the processes of several hosts were given the same run.

        Fresh weights are those of the first process in any case; those that continue come from each host's
        own file.
        """
        values = {
            "settings": _checksum({key: self.record.get(key) for key in ("optimiser", "loop")}),
            "number of samples": self.task.samples_per_epoch,
            "steps done": self.step,
            "weights": _weights_checksum(self.task.module) if self.step else 0,
        }
        if different := different_in_ranks(values, self._device):
            raise DataError(
                f"{self.folder}: the processes of this run differ in their {', '.join(different)}; give "
                f"every host the same settings and data, and to continue a run the same {LAST}"
            )

    def _train(self, batches: Batches[Batch], stop: StopRequest) -> None:
        config, window = self.config, LogWindow()
        self._validate_when_due(stop)  # a run that was stopped may owe it
        self._end_where_nothing_improves()
        # Warm-up and decay go on where a resumed run was saved.
        schedule = LambdaLR(self.optimiser, config.rate_factor, last_epoch=self.step - 1)
        started = time.perf_counter()
        while (work := self._ready(batches, stop)) is not None:
            losses = self._one_step(work)
            self.step += 1
            spent = time.perf_counter() - started
            self.seconds += spent
            window.add(losses, spent)
            self._report(window)
            schedule.step()
            self._validate_when_due(stop)
            self._end_where_nothing_improves()
            if self.step % config.checkpoint_every == 0:
                self._save()
            if config.keep_every and self.step % config.keep_every == 0:
                self._save(f"step_{self.step:06d}.pt")
            started = time.perf_counter()
        self._end()

    def _end(self) -> None:
        """Save the run and raise its failure; without any step there is nothing to save."""
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

    def _ready(self, batches: Batches[Batch], stop: StopRequest) -> list[Batch] | None:
        """Return the batches of the next step; None: the run ends here."""

        def make_ready() -> list[Batch]:
            work = [next(batches) for _ in range(self.accumulate)]
            if self._module is None or self.step == self.config.freeze_steps:
                self._module = self._prepared(work[0])
            return work

        if self.step >= self.config.steps:
            return None
        work = self._attempt(make_ready, stop)
        return None if any_rank(work is None, self._device) else work

    def _attempt(self, work: Callable[[], Result], stop: StopRequest) -> Result | None:
        """Do something between two steps, where a run can be saved; None: it was interrupted or failed."""
        if self._failure is not None:
            return None
        try:
            with stop.interrupting():
                return work()
        except KeyboardInterrupt:
            if not stop.asked:
                raise
        except Exception as error:
            self._failure = error
        return None

    def _prepared(self, batch: Batch) -> nn.Module:
        """Return the module with parts frozen, in DistributedDataParallel and compiled, as configured."""
        for part in self.task.pretrained_parts():
            part.requires_grad_(self.step >= self.config.freeze_steps)
        module = self.task.module
        if world_size() > 1:
            module = DistributedDataParallel(module, [self._device] if self._device.type == "cuda" else None)
        if not self.config.compile:
            return module
        if self._compile_pays is False:
            return self._uncompiled(module)
        if is_main():
            _LOG.info("compiling the network, which takes a minute or more")
        compiled: nn.Module = torch.compile(module)  # type: ignore[assignment]
        self._set_mode(compiled)

        def step() -> None:
            with without_exchange(compiled):
                self._backward(compiled, batch)

        if not compiles(step, self.task.module, self._device):
            self.config = replace(self.config, compile=False)
            self.record = {**self.record, "loop": {**self.record.get("loop", {}), "compile": False}}
            return self._uncompiled(module)
        # Processes that train together wait for each other, so that their times say little.
        if self._compile_pays is None and self._device.type == "cpu" and world_size() == 1:
            self._compile_pays = is_faster_compiled(step, self.task.module, self._device)
        return self._uncompiled(module) if self._compile_pays is False else compiled

    def _uncompiled(self, module: nn.Module) -> nn.Module:
        """Return the module after switching off what the task has compiled by itself too."""
        self._until_the_end.enter_context(torch.compiler.set_stance("force_eager"))
        return module

    def _set_mode(self, module: nn.Module) -> None:
        module.train()
        if self.step < self.config.freeze_steps:
            for part in self.task.pretrained_parts():
                part.eval()  # BatchNorm's statistics stay too

    def _one_step(self, work: list[Batch]) -> dict[str, float]:
        assert self._module is not None
        self._restore_random()
        self._set_mode(self._module)
        seen: dict[str, float] = {}
        for i, batch in enumerate(work, 1):
            with without_exchange(self._module) if i < len(work) else nullcontext():
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
            self._averaged.update_parameters(self.task.module)

    def _average_weights(self, averaged: Weights, current: Weights, updates: Tensor | int) -> None:
        # A young average follows quickly, so that the first weights are soon forgotten.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averaged, current, updates)

    def _report(self, window: LogWindow) -> None:
        config = self.config
        self.on_step(Progress(self.step, config.steps, window.latest))
        if self.step % config.log_every == 0 or self.step == config.steps:
            speed = self._samples_per_step * window.steps / window.seconds
            rate = self.optimiser.param_groups[0]["lr"]
            self._log({"samples_per_s": speed, "learning_rate": rate, **window.means(self._device)})
            window.clear()

    def _log(self, figures: dict[str, float]) -> None:
        if is_main():
            self._log_file.write(self.step, self.seconds, figures)
            self.on_log({"step": self.step, "seconds": round(self.seconds, 1), **figures})

    def _validate_when_due(self, stop: StopRequest) -> None:
        if not is_main() or not self._is_validation_due() or self._validated == self.step:
            return
        figures = self._attempt(self._measured, stop)
        if figures is None:
            return
        self.figures, self._validated = figures, self.step
        if figures:
            self._log(figures)
        if "score" not in figures:  # a phase that has no measure of its own
            return
        self._validations_since_best += 1
        if figures["score"] > self.best:
            self.best, self._validations_since_best = figures["score"], 0
            self._save(BEST)

    def _is_validation_due(self) -> bool:
        return self.step % self.config.validate_every == 0 or self.step == self.config.steps

    def _end_where_nothing_improves(self) -> None:
        """Make the steps that are done the whole run, at the end of `LoopConfig.patience`."""
        patience = self.config.patience
        if not patience or self.step >= self.config.steps or not self._is_validation_due():
            return
        # Only the first process validates.
        if any_rank(is_main() and self._validations_since_best >= patience, self._device):
            _LOG.warning(
                "no better score in %d validations: the run ends at step %d; loop.patience=0 goes on",
                self._validations_since_best,
                self.step,
            )
            self.config = replace(self.config, steps=self.step)
            self.record = {**self.record, "loop": {**self.record.get("loop", {}), "steps": self.step}}

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
        """Return all that continues the run: learning rate and samples are functions of the step."""
        return {
            "step": self.step,
            "epoch": self.step * self._samples_per_step / max(1, self.task.samples_per_epoch),
            "seconds": self.seconds,
            "best": self.best,
            "figures": self.figures,
            "validated": self._validated,
            "validations_since_best": self._validations_since_best,
            "compile_pays": self._compile_pays,
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
        self._validations_since_best = state.get("validations_since_best", 0)
        # Measured anew, it might come out otherwise, and the run would differ in its last bits.
        self._compile_pays = state.get("compile_pays")
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
        """Restore the random state of a checkpoint, right before the first step: nothing may draw between."""
        state, self._random = self._random, {}
        if not state:
            return
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self._device)


def _checksum(settings: dict[str, Any]) -> int:
    """CRC-32 of settings, but for those that hosts may choose for themselves."""
    loop = {key: value for key, value in (settings["loop"] or {}).items() if key not in _OF_A_HOST}
    return zlib.crc32(json.dumps({**settings, "loop": loop}, sort_keys=True).encode())


def _weights_checksum(module: nn.Module) -> int:
    """CRC-32 of all parameters and buffers."""
    checksum = 0
    for value in module.state_dict().values():
        checksum = zlib.crc32(value.detach().cpu().numpy().tobytes(), checksum)
    return checksum
