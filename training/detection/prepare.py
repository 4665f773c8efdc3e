"""From the detector's configuration to data, teacher and task; pictures of its crops and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from facepipe.core.errors import UsageError
from facepipe.detector import DetectorOptions
from facepipe.evaluation.labels import LabelledPhoto, read_labels, unlabelled_photos
from facepipe.images.reading import write_image
from facepipe.reports.pictures import write_picture
from facepipe.training.detection.config import DataConfig, DetectorConfig
from facepipe.training.detection.crops import CropBatches, CropSampler, WeightedPhotos
from facepipe.training.detection.data import DecodedPhotos, PhotoFiles
from facepipe.training.detection.focus import FocusTask, TrainedFocus
from facepipe.training.detection.initialize import Detector, initial_detector, load_teacher
from facepipe.training.detection.pictures import detection_sheet, preview
from facepipe.training.detection.small_faces import BranchTask, TrainedBranch
from facepipe.training.detection.task import DetectorTask, TrainedDetector
from facepipe.training.detection.validation import Validator, evenly, network_detector
from facepipe.training.engine.distributed import is_main, main_first

_SAMPLE_PHOTOS = 12
_SAMPLE_FACES = 100
"""A photo; a network that has learned nothing yet finds thousands."""


DetectorTraining = DetectorTask | BranchTask | FocusTask


def prepare(config: DetectorConfig, device: torch.device) -> tuple[DetectorConfig, DetectorTraining]:
    """Build the task of a run, and complete its configuration from the first weights.

    Raises:
        UsageError: No data, or a teacher that does not fit.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    start = initial_detector(config.network)
    # A checkpoint must hold the preprocessing and anchors, wherever they were read from.
    config = replace(config, network=replace(config.network, input=start.input, anchors=start.anchors))
    return config, build_task(config, start, device)


def build_task(config: DetectorConfig, start: Detector, device: torch.device) -> DetectorTraining:
    """Open data, teacher and validation for a network.

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
    if config.focus:
        return FocusTask(
            start.network,
            start.input,
            start.anchors,
            CropBatches(CropSampler(data, config.augment, config.loop.seed), config.loop.batch_size),
            size_px=config.augment.size_px,
            workers=config.loop.workers,
            photos=sum(len(d.photos.photos) for d in data),
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
        config,
        teacher=load_teacher(config.teacher) if config.teacher else None,
        validator=validator,
        device=device,
    )


def open_data(data: Sequence[DataConfig], cache: Path | None) -> list[WeightedPhotos]:
    """Open the data sets of a configuration, decoded into `cache` where there is one.

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
    """Write a contact sheet of the first crops of a run with their labels: see `preview`.

    Raises:
        UsageError, DataError, PhotoError: The data can't be read.
        OutputError: The picture can't be written.
    """
    data = open_data(config.data, config.cache)
    write_picture(picture, preview(data, config.augment, seed=config.loop.seed, count=count))


def draw_samples(module: torch.nn.Module, config: DetectorConfig, picture: Path) -> None:
    """Write a page of detections of a trained network on a few photos.

    Raises:
        OutputError: The picture can't be written.
    """
    assert isinstance(module, TrainedDetector | TrainedBranch | TrainedFocus)
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
        return read_labels(config.validation.photos, config.validation.labels)
    first = config.data[0]
    return read_labels(first.folder, first.labels) if first.labelled else unlabelled_photos(first.folder)
