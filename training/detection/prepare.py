"""From the detector's configuration to data, teacher and task; pictures of its crops and detections."""

from __future__ import annotations

import zlib
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
from facepipe.training.detection.crops import WeightedPhotos
from facepipe.training.detection.data import DecodedPhotos, PhotoFiles
from facepipe.training.detection.focus import FocusTask, TrainedFocus
from facepipe.training.detection.initialize import Detector, initial_detector, load_teacher
from facepipe.training.detection.pictures import detection_sheet, preview, write_precision_recall
from facepipe.training.detection.small_faces import BranchTask, TrainedBranch
from facepipe.training.detection.task import DetectorTask, TrainedDetector, require_teacher
from facepipe.training.detection.validation import Validator, evenly, network_detector
from facepipe.training.engine.distributed import is_main, main_first
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.weights.cards import AnchorSpec
from facepipe.weights.registry import load_card

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


def check_inputs(config: DetectorConfig) -> None:
    """Check that a later phase will find its teacher and what it validates on.

    Raises:
        UsageError: The losses compare with a teacher, and none is named.
        DataError, WeightsError: Something is missing or damaged.
    """
    if not config.focus and (config.detail is None or not config.detail.alone):
        require_teacher(config.loss, config.teacher is not None)
    if config.teacher:
        load_card(config.teacher.weights)
    if config.validation and config.validation.photos:
        Validator(config.validation, config.network.architecture, IMAGENET_INPUT, AnchorSpec())


def build_task(config: DetectorConfig, start: Detector, device: torch.device) -> DetectorTraining:
    """Open data, teacher and validation for a network.

    Raises:
        UsageError: No data, or a teacher that does not fit.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    with main_first():
        data, held_out = open_data(config)
    if config.detail and config.detail.alone:
        return BranchTask(
            start.network, start.input, config.detail, data, config.augment, config.loop, device
        )
    if config.focus:
        return FocusTask(start.network, start.input, start.anchors, data, config.augment, config.loop, device)
    validator = None
    if config.validation and is_main():
        validator = Validator(
            config.validation, config.network.architecture, start.input, start.anchors, held_out
        )
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


def open_data(config: DetectorConfig) -> tuple[list[WeightedPhotos], list[LabelledPhoto]]:
    """Open the data sets of a configuration, decoded into its cache where there is one.

    Returns:
        The data to train on, and the photos that are held out of it to validate on.

    Raises:
        UsageError: No data set is named, or one has too few photos to hold some out.
        DataError, PhotoError: One is missing or damaged.
    """
    if not config.data:
        raise UsageError("no data to train on: name a folder with labels (data.0.folder)")
    share = config.validation.held_out_share if config.validation and not config.validation.photos else 0.0
    opened, all_held_out = [], []
    for item in config.data:
        photos = _photos_of(item)
        if share and item.labelled:
            photos, held_out = _without_held_out(photos, share, item.folder)
            all_held_out += held_out
        source = DecodedPhotos(photos, config.cache) if config.cache else PhotoFiles(photos)
        opened.append(WeightedPhotos(source, item.weight, item.labelled))
    if share and not all_held_out:
        raise UsageError("no labelled data to hold photos out of: name photos to validate on (--validate)")
    return opened, all_held_out


def _photos_of(data: DataConfig) -> list[LabelledPhoto]:
    return read_labels(data.folder, data.labels) if data.labelled else unlabelled_photos(data.folder)


def _without_held_out(
    photos: Sequence[LabelledPhoto], share: float, folder: Path
) -> tuple[list[LabelledPhoto], list[LabelledPhoto]]:
    """Divide photos, in their order, into those to train on and at least one to validate on."""
    if len(photos) < 2:
        raise UsageError(
            f"{folder}: too few photos to hold some out ({len(photos)}): name others to validate on "
            "(--validate)"
        )
    order = sorted(range(len(photos)), key=lambda row: (_hash_of_name(photos[row].path), row))
    chosen = set(order[: min(len(photos) - 1, max(1, round(share * len(photos))))])
    trained = [photo for row, photo in enumerate(photos) if row not in chosen]
    return trained, [photo for row, photo in enumerate(photos) if row in chosen]


def _hash_of_name(path: Path) -> int:
    """CRC-32 of the file and its folder, so that a data set that was moved is divided as before."""
    return zlib.crc32("/".join(path.parts[-2:]).encode())


def write_preview(config: DetectorConfig, picture: Path, *, count: int = 24) -> None:
    """Write a contact sheet of the first crops of a run with their labels: see `preview`.

    Raises:
        UsageError, DataError, PhotoError: The data can't be read.
        OutputError: The picture can't be written.
    """
    data, _ = open_data(config)
    write_picture(picture, preview(data, config.augment, seed=config.loop.seed, count=count))


def write_pictures(
    task: DetectorTraining, module: torch.nn.Module, config: DetectorConfig, folder: Path
) -> None:
    """Write what a trained network finds and misses on a few photos, and its precision-recall curves.

    Args:
        task: Of the run; its latest validation was that of `module`.
        module: Trained.
        config: Complete.
        folder: For `samples.jpg` and, where the run validates, `precision_recall.png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: A picture can't be written.
    """
    validator = task.validator if isinstance(task, DetectorTask) else None
    if validator and validator.curves:
        write_precision_recall(validator.curves, folder / "precision_recall.png")
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
    photos = evenly(validator.photos if validator else _photos_of(config.data[0]), _SAMPLE_PHOTOS)
    labelled = validator is not None or config.data[0].labelled
    write_image(folder / "samples.jpg", detection_sheet(detector, photos, labelled=labelled))
