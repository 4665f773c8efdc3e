"""A whole run of either trainer, from a configuration to checkpoints and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from facepipe.training.detection.config import DetectorConfig
from facepipe.training.detection.prepare import draw_samples
from facepipe.training.detection.prepare import prepare as prepare_detector
from facepipe.training.engine.config import to_plain
from facepipe.training.engine.distributed import is_main, process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.runs import TrainingOutcome, check_folder, only_run_in, outcome_of
from facepipe.training.engine.signals import sigterm_interrupts
from facepipe.training.engine.task import Progress, Task
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.prepare import prepare as prepare_encoder

_LOG = logging.getLogger("facepipe.training")


def train(
    config: DetectorConfig | EncoderConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> TrainingOutcome:
    """Train a detector or an encoder in `folder`; under torchrun in several processes.

    Args:
        config: Its type chooses the trainer.
        folder: For checkpoints, log and pictures; made where missing.
        resume: Continue the run that is in it.
        on_log: Called with the figures of every logged step and validation, in the first process.
        on_step: Called after every step.

    Raises:
        UsageError: The folder holds a run and `resume` is not asked for, or the other way round; another run
            trains in it; no data; or settings that contradict each other.
        DataError, PhotoError, WeightsError, DeviceError: Something it needs is missing or damaged.
        NonFiniteLossError: Names the photos or crops of the batch.
        KeyboardInterrupt: Ctrl-C or SIGTERM before the first step, or a second Ctrl-C; otherwise they end the
            run well.
    """
    check_folder(folder, resume)
    with sigterm_interrupts(), process_group(config.device) as device, only_run_in(folder):
        torch.manual_seed(config.loop.seed)
        task: Task[Any]
        if isinstance(config, DetectorConfig):
            config, task = prepare_detector(config, device)
        else:
            config, task = prepare_encoder(config, device, resume)
        _LOG.info("training on %s with %d process(es)", device, world_size())
        record = to_plain(config)
        loop: TrainingLoop[Any]
        loop = TrainingLoop(task, config.optimiser, config.loop, folder, record, on_log, on_step)
        loop.run(resume)
        samples = None
        if isinstance(config, DetectorConfig) and loop.step == config.loop.steps:
            samples = folder / "samples.jpg"
            if is_main():
                draw_samples(loop.average, config, samples)
        return outcome_of(loop, folder, samples)
