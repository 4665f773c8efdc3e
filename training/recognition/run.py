"""A whole run of the encoder's trainer, from a configuration to checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from facepipe.core.errors import UsageError
from facepipe.core.home import facepipe_home
from facepipe.training.engine.config import to_plain
from facepipe.training.engine.distributed import is_main, main_first, process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.runs import TrainingOutcome, check_folder, only_run_in, outcome_of
from facepipe.training.engine.signals import sigterm_interrupts
from facepipe.training.engine.task import Progress
from facepipe.training.recognition.config import EncoderConfig, FaceDataConfig
from facepipe.training.recognition.crops import FaceCrops, read_same_person
from facepipe.training.recognition.initialize import Encoder, initial_encoder, resolve_config
from facepipe.training.recognition.sources import CropSource, DetectionSource, FaceSource, PhotoSource
from facepipe.training.recognition.task import RecognitionTask, RecognitionTaskConfig, check_objectives
from facepipe.training.recognition.validation import PairValidator

_LOG = logging.getLogger("facepipe.training")


def train_encoder(
    config: EncoderConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> TrainingOutcome:
    """Train an encoder in `folder`; under torchrun in several processes.

    Args:
        config: See `EncoderConfig`.
        folder: For checkpoints, log and curves; made where missing.
        resume: Continue the run that is in it.
        on_log: Called with the figures of every logged step and validation, in the first process.
        on_step: Called after every step.

    Raises:
        UsageError: The folder holds a run and `resume` is not asked for, or the other way round; another run
            trains in it; no data; or settings that contradict each other.
        DataError, PhotoError, WeightsError, DeviceError: Something it needs is missing or damaged.
        NonFiniteLossError: Names the crops of the batch.
        KeyboardInterrupt: Ctrl-C or SIGTERM before the first step, or a second Ctrl-C; otherwise they end the
            run well.
    """
    check_folder(folder, resume)
    with sigterm_interrupts(), process_group(config.device) as device, only_run_in(folder):
        torch.manual_seed(config.loop.seed)
        start = initial_encoder(config.network)
        config = replace(config, network=resolve_config(config.network, start))
        with main_first():
            task = build_task(config, start, device)
        if config.network.initial != "random" and not resume:
            task.fit_to_network()
        _LOG.info("training on %s with %d process(es)", device, world_size())
        loop = TrainingLoop(task, config.optimiser, config.loop, folder, to_plain(config), on_log, on_step)
        loop.run(resume)
        return outcome_of(loop, folder)


def build_task(config: EncoderConfig, start: Encoder, device: torch.device) -> RecognitionTask:
    """What the training loop runs: faces, teacher and validation opened around a network.

    Raises:
        UsageError: No data, or settings that contradict each other.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    check_objectives(config.loss, config.batch, config.teacher)
    side = start.input.size_px
    if side is None:
        raise UsageError("network.input.size_px: an encoder needs faces of one size")
    crop_px = round(side / 0.8)  # so that the frame inside the margin is as large as the input
    crops = open_faces(config, crop_px)
    validator = None
    if config.validation and is_main():
        validator = PairValidator(
            config.validation,
            config.network.architecture,
            start.input,
            start.embedding,
            crop_px=crop_px,
            detector=config.detector,
            cache=_cache(config),
        )
    return RecognitionTask(
        start.network,
        start.input,
        crops,
        RecognitionTaskConfig(
            config.batch, config.jitter, config.corruption, config.loss, config.held_out_share
        ),
        batch_size=config.loop.batch_size,
        seed=config.loop.seed,
        workers=config.loop.workers,
        teacher=config.teacher,
        alignment=start.embedding.alignment,
        cache=_cache(config),
        validator=validator,
        device=device,
    )


def open_faces(config: EncoderConfig, crop_px: int) -> FaceCrops:
    """All faces of a configuration, decoded into its cache.

    Args:
        config: See `EncoderConfig`.
        crop_px: Side of the crops that are made of whole photos.

    Raises:
        UsageError: No data is named.
        DataError, PhotoError: Some are missing or damaged.
    """
    if not config.data:
        raise UsageError("no faces to train on: name a folder with a sub-folder per person (data.0.path)")
    same_person = read_same_person(config.same_person) if config.same_person else []
    sources = [_source(item, crop_px, config.detector) for item in config.data]
    return FaceCrops(sources, _cache(config), same_person)


def _source(item: FaceDataConfig, crop_px: int, detector: str) -> FaceSource:
    if item.kind == "photos":
        return PhotoSource(item.path, item.labelled, crop_px, detector)
    if item.kind == "detection":
        return DetectionSource(item.path, crop_px, item.min_face_px, item.labels)
    return CropSource(item.path, item.labelled)


def _cache(config: EncoderConfig) -> Path:
    return config.cache or facepipe_home() / "cache"
