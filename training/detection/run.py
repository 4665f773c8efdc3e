"""A whole run of the detector's trainer, from a configuration to checkpoints and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from facepipe.core.errors import UsageError
from facepipe.detector import DetectorOptions
from facepipe.evaluation.labels import LabelledPhoto, read_labels, unlabelled_photos
from facepipe.images.reading import write_image
from facepipe.reports.pictures import write_picture
from facepipe.training.detection.config import DataConfig, DetectorConfig
from facepipe.training.detection.crops import CropBatches, CropSampler, WeightedPhotos
from facepipe.training.detection.data import DecodedPhotos, PhotoFiles
from facepipe.training.detection.initialize import Detector, initial_detector, load_teacher
from facepipe.training.detection.pictures import detection_sheet, preview
from facepipe.training.detection.small_faces import BranchTask, TrainedBranch
from facepipe.training.detection.task import DetectorTask, DetectorTaskConfig, TrainedDetector
from facepipe.training.detection.validation import Validator, evenly, network_detector
from facepipe.training.engine.config import to_plain
from facepipe.training.engine.distributed import is_main, main_first, process_group, world_size
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.runs import TrainingOutcome, check_folder, only_run_in, outcome_of
from facepipe.training.engine.signals import sigterm_interrupts
from facepipe.training.engine.task import Progress

_LOG = logging.getLogger("facepipe.training")
_SAMPLE_PHOTOS = 12
_SAMPLE_FACES = 100
"""A photo; a network that has learned nothing yet finds thousands."""


def train_detector(
    config: DetectorConfig,
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> TrainingOutcome:
    """Train a detector in `folder`; under torchrun in several processes.

    Args:
        config: See `DetectorConfig`.
        folder: For checkpoints, log and pictures; made where missing.
        resume: Continue the run that is in it.
        on_log: Called with the figures of every logged step and validation, in the first process.
        on_step: Called after every step.

    Raises:
        UsageError: The folder holds a run and `resume` is not asked for, or the other way round; another run
            trains in it; no data.
        DataError, PhotoError, WeightsError, DeviceError: Something it needs is missing or damaged.
        NonFiniteLossError: Names the photos of the batch.
        KeyboardInterrupt: Ctrl-C or SIGTERM before the first step, or a second Ctrl-C; otherwise they end the
            run well.
    """
    check_folder(folder, resume)
    with sigterm_interrupts(), process_group(config.device) as device, only_run_in(folder):
        torch.manual_seed(config.loop.seed)
        start = initial_detector(config.network)
        # The checkpoint must say what the numbers mean, wherever that was read from.
        config = replace(config, network=replace(config.network, input=start.input, anchors=start.anchors))
        task = build_task(config, start, device)
        _LOG.info("training on %s with %d process(es)", device, world_size())
        loop = TrainingLoop(task, config.optimiser, config.loop, folder, to_plain(config), on_log, on_step)
        loop.run(resume)
        return _outcome(loop, config, folder)


def build_task(config: DetectorConfig, start: Detector, device: torch.device) -> DetectorTask | BranchTask:
    """What the training loop runs: data, teacher and validation opened around a network.

    Raises:
        UsageError: No data, or a teacher that does not fit.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    with main_first():
        data = open_data(config.data, config.cache)
    if config.detail and config.detail.alone:
        return BranchTask(
            start.network,
            start.input,
            config.detail,
            CropBatches(CropSampler(data, config.augment, config.loop.seed), config.loop.batch_size),
            workers=config.loop.workers,
            photos=sum(len(d.photos.photos) for d in data),
            compiled=config.loop.compile,
            device=device,
        )
    validator = None
    if config.validation and is_main():
        validator = Validator(config.validation, config.network.architecture, start.input, start.anchors)
    return DetectorTask(
        start.network,
        start.input,
        start.anchors,
        data,
        DetectorTaskConfig(config.augment, config.match, config.loss),
        batch_size=config.loop.batch_size,
        seed=config.loop.seed,
        workers=config.loop.workers,
        teacher=load_teacher(config.teacher) if config.teacher else None,
        detail=config.detail,
        validator=validator,
        frozen=config.network.frozen,
        compiled=config.loop.compile,
        device=device,
    )


def open_data(data: Sequence[DataConfig], cache: Path | None) -> list[WeightedPhotos]:
    """The data sets of a configuration, decoded into `cache` where there is one.

    Raises:
        UsageError: None is named.
        DataError, PhotoError: One is missing or damaged.
    """
    if not data:
        raise UsageError("no data to train on: name a folder with labels (data.0.folder)")
    opened = []
    for item in data:
        photos = read_labels(item.folder, item.labels) if item.labelled else unlabelled_photos(item.folder)
        source = DecodedPhotos(photos, cache) if cache else PhotoFiles(photos)
        opened.append(WeightedPhotos(source, item.weight, item.labelled))
    return opened


def write_preview(config: DetectorConfig, picture: Path, *, count: int = 24) -> None:
    """Write a contact sheet of the first crops of a run, with what the labels say: see `preview`.

    Raises:
        UsageError, DataError, PhotoError: The data can't be read.
        OutputError: The picture can't be written.
    """
    data = open_data(config.data, config.cache)
    write_picture(picture, preview(data, config.augment, seed=config.loop.seed, count=count))


def _outcome(loop: TrainingLoop[Any], config: DetectorConfig, folder: Path) -> TrainingOutcome:
    samples = folder / "samples.jpg" if loop.step == config.loop.steps else None
    if samples and is_main():
        _draw_samples(loop.average, config, samples)
    return outcome_of(loop, folder, samples)


def _draw_samples(module: torch.nn.Module, config: DetectorConfig, picture: Path) -> None:
    assert isinstance(module, TrainedDetector | TrainedBranch)
    assert config.network.input is not None
    assert config.network.anchors is not None
    detector = network_detector(
        module.network.eval(),
        config.network.architecture,
        config.network.input,
        config.network.anchors,
        DetectorOptions(top_k=_SAMPLE_FACES),
    )
    write_image(picture, detection_sheet(detector, evenly(_sample_photos(config), _SAMPLE_PHOTOS)))


def _sample_photos(config: DetectorConfig) -> list[LabelledPhoto]:
    """Of the validation set, or else of the first training set."""
    if config.validation:
        return read_labels(config.validation.photos)
    first = config.data[0]
    return read_labels(first.folder, first.labels) if first.labelled else unlabelled_photos(first.folder)
