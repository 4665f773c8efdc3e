"""A whole run of either trainer, from a configuration to checkpoints and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from facepipe.core.counting import counted
from facepipe.core.errors import UsageError
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.detection.prepare import DetectorTraining, write_pictures
from facepipe.training.detection.prepare import check_inputs as check_detector_inputs
from facepipe.training.detection.prepare import prepare as prepare_detector
from facepipe.training.engine.checkpoints import LAST, holds_run, load_last
from facepipe.training.engine.config import Phase, to_plain
from facepipe.training.engine.distributed import is_main, process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.phases import begin_phases, is_finished, phase_folder, with_initial
from facepipe.training.engine.plan import TimeEstimate, TrainingPlan, precision_warning
from facepipe.training.engine.runs import TrainingOutcome, check_folder, only_run_in, outcome_of
from facepipe.training.engine.signals import sigterm_interrupts
from facepipe.training.engine.task import Progress, Task
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.prepare import check_inputs as check_encoder_inputs
from facepipe.training.recognition.prepare import prepare as prepare_encoder

_LOG = logging.getLogger("facepipe.training")


def train(
    config: DetectorConfig | EncoderConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = _LOG.info,
) -> TrainingOutcome:
    """Train a detector or an encoder in `folder`; under torchrun in several processes.

    Args:
        config: Its type chooses the trainer.
        folder: For checkpoints, log and pictures; made where missing.
        resume: Continue the run that is in it.
        on_log: Called with the figures of every logged step and validation, in the first process.
        on_step: Called after every step.
        say: Called, in the first process, with what is going to be done and how long that will take.

    Raises:
        UsageError: The folder holds a run and `resume` is not asked for, or the other way round; another run
            trains in it; no data; or settings that contradict each other.
        DataError, PhotoError, WeightsError, DeviceError: Something it needs is missing or damaged.
        NonFiniteLossError: Names the photos or crops of the batch.
        KeyboardInterrupt: Ctrl-C or SIGTERM before the first step, or a second Ctrl-C; otherwise they end the
            run well.
    """
    check_folder(folder, resume)
    if config.loop.patience and config.validation is None:
        raise UsageError("loop.patience waits for a better score: name photos to validate on")
    with sigterm_interrupts(), process_group(config.device) as device, only_run_in(folder):
        torch.manual_seed(config.loop.seed)
        task: Task[Any]
        if isinstance(config, DetectorConfig):
            config, task = prepare_detector(config, device)
        else:
            config, task = prepare_encoder(config, device, resume)
        samples_per_step = config.loop.batch_size * config.optimiser.accumulate * world_size()
        length = config.loop.with_known_length(task.samples_per_epoch, samples_per_step)
        config = replace(config, loop=length)
        estimate = TimeEstimate(say if is_main() else lambda _: None)

        def after_step(progress: Progress) -> None:
            estimate.add(progress)
            on_step(progress)

        record = to_plain(config)
        loop: TrainingLoop[Any]
        loop = TrainingLoop(task, config.optimiser, config.loop, folder, record, on_log, after_step)
        if is_main():
            _announce(config, task, device, folder, samples_per_step, say)
        loop.run(resume)
        if isinstance(task, DetectorTraining) and task.unreadable and is_main():
            say(f"{counted(len(task.unreadable), 'photo')} passed over that could not be read")
        samples = None
        if isinstance(config, DetectorConfig) and loop.step == loop.config.steps:
            samples = folder / "samples.jpg"
            if is_main() and isinstance(task, DetectorTraining):
                write_pictures(task, loop.average, config, folder)
        return outcome_of(loop, folder, samples)


def train_phases(
    phases: Sequence[Phase[Any]],
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = _LOG.info,
) -> TrainingOutcome:
    """Run the phases of a recipe one after the other, each from the last weights of the one before.

    Each is an ordinary run in a folder of its own, `folder/1_NAME` and so on. Phases that have ended are
    passed over, and one that was stopped or killed continues where it was.

    Args:
        phases: Of `read_phases` or `phases_of_run`.
        folder: Of all.
        resume: Continue the run that is in it.
        on_log, on_step, say: See `train`.

    Returns:
        The outcome of the last phase, or of the one that was stopped.

    Raises:
        FacepipeError, KeyboardInterrupt: As `train`.
    """
    with process_group(phases[0].config.device):
        _check_inputs(phases, folder)
        if not resume:
            begin_phases(folder, phases)
        before: Path | None = None
        for number, phase in enumerate(phases, 1):
            place = phase_folder(folder, number, phase.name)
            if number < len(phases) and is_finished(place):
                before = place
                continue
            config: DetectorConfig | EncoderConfig = phase.config
            if before is not None:
                config = with_initial(config, before / LAST)
            if is_main():
                say(f"phase {phase.name}, {number} of {len(phases)}: {place}")
            outcome = train(config, place, resume=holds_run(place), on_log=on_log, on_step=on_step, say=say)
            if outcome.step < outcome.steps:
                break
            before = place
        return outcome


def _check_inputs(phases: Sequence[Phase[Any]], folder: Path) -> None:
    """Check that no phase that is left ends, after the hours of those before it, for want of a file."""
    for number, phase in enumerate(phases, 1):
        if is_finished(phase_folder(folder, number, phase.name)):
            continue
        if isinstance(phase.config, DetectorConfig):
            check_detector_inputs(phase.config)
        else:
            check_encoder_inputs(phase.config)


def _announce(
    config: DetectorConfig | EncoderConfig,
    task: Task[Any],
    device: torch.device,
    folder: Path,
    samples_per_step: int,
    say: Callable[[str], None],
) -> None:
    """Say what is going to be done, and warn of a precision that is slow here."""
    plan = TrainingPlan(
        photos=task.samples_per_epoch,
        parameters=sum(parameter.numel() for parameter in task.module.parameters()),
        first_step=int(load_last(folder).state["step"]) if holds_run(folder) else 0,
        steps=config.loop.steps,
        samples_per_step=samples_per_step,
        device=device,
        processes=world_size(),
        precision=config.loop.precision,
    )
    if plan.first_step < plan.steps:
        say(str(plan))
    if warning := precision_warning(config.loop.precision, device):
        _LOG.warning("%s", warning)
