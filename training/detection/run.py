"""A whole run of the detector's trainer, from a configuration to checkpoints and pictures; their export."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from facepipe.convert import write_pair
from facepipe.detector import DetectorOptions
from facepipe.errors import UsageError
from facepipe.images import write_image
from facepipe.retinaface.network import RetinaFace
from training.checkpoints import load_checkpoint
from training.configuration import from_plain, read_configuration, to_plain
from training.curves import draw_curves
from training.detection.configuration import DataConfig, DetectorConfig, NetworkConfig
from training.detection.crops import WeightedPhotos
from training.detection.data import DecodedPhotos, PhotoFiles
from training.detection.labels import LabelledPhoto, read_labels, unlabelled_photos
from training.detection.pictures import detection_sheet, preview
from training.detection.start import detector_of_checkpoints, initial_detector, load_teacher
from training.detection.task import DetectorTask, DetectorTaskConfig, TrainedDetector
from training.detection.validation import Validator, evenly, network_detector
from training.distributed import is_main, main_first, process_group, world_size
from training.logs import read_log
from training.loop import Progress, TrainingLoop
from weights.card import AnchorSpec, InputSpec, WeightCard, WeightFile
from weights.registry import Weight

_LOG = logging.getLogger("facepipe.training")
_SAMPLE_PHOTOS = 12
_SAMPLE_FACES = 100
"""A photo; a network that has learned nothing yet finds thousands."""


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a run left behind.

    Attributes:
        step, steps: Finished, and of the whole run; fewer after Ctrl-C.
        last: Continues the run.
        best: The checkpoint with the best validation score; None without validation.
        score: That score.
        figures: The latest validation's.
        curves: A picture of losses and figures over the steps.
        samples: A page of detections, once the run is finished.
    """

    step: int
    steps: int
    last: Path
    best: Path | None
    score: float | None
    figures: dict[str, float]
    curves: Path
    samples: Path | None


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
        UsageError: The folder holds a run and `resume` is not asked for, or the other way round; no data.
        DataError, PhotoError, WeightsError, DeviceError: Something it needs is missing or damaged.
        NonFiniteLossError: Names the photos of the batch.
    """
    _check_folder(folder, resume)
    with process_group(config.device) as device:
        torch.manual_seed(config.loop.seed)
        start = initial_detector(config.network)
        # The checkpoint must say what the numbers mean, wherever that was read from.
        config = replace(config, network=replace(config.network, input=start.input, anchors=start.anchors))
        task = _task(config, start.network, start.input, start.anchors, device)
        _LOG.info("training on %s with %d process(es)", device, world_size())
        loop = TrainingLoop(task, config.optimiser, config.loop, folder, to_plain(config), on_log, on_step)
        loop.run(resume)
        return _outcome(loop, config, folder)


def configuration_of_run(folder: Path, overrides: Sequence[str] = ()) -> DetectorConfig:
    """The configuration that a run was started with, from its last checkpoint, for resuming it.

    Raises:
        UsageError: There is no run, or an override is wrong.
        DataError: Its checkpoint is damaged.
    """
    if not (folder / "last.pt").is_file():
        raise UsageError(f"{folder}: holds no run to continue (last.pt)")
    record = load_checkpoint(folder / "last.pt")["record"]
    return read_configuration(DetectorConfig, record, overrides)


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
    write_image(picture, preview(data, config.augment, seed=config.loop.seed, count=count))


def export_checkpoint(
    checkpoints: Sequence[Path],
    name: str,
    folder: Path,
    *,
    half_storage: bool = False,
    measured: Mapping[str, Any] | None = None,
    licence: str = "",
    limits: str = "",
    replace_existing: bool = False,
) -> Weight:
    """Turn a checkpoint's averaged weights into a weight: safetensors, ONNX and card, which agree.

    Args:
        checkpoints: One, or several of one run, whose mean is taken.
        name: Of the weight.
        folder: Where to.
        half_storage: See `facepipe.convert.write_pair`.
        measured: For the card; None: the checkpoint's own validation.
        licence, limits: For the card.
        replace_existing: Whether a weight of this name there may be replaced.

    Raises:
        DataError, WeightsError: A checkpoint is damaged, or the name is taken.
    """
    if not checkpoints:
        raise UsageError("no checkpoint to export")
    found = detector_of_checkpoints(list(checkpoints))
    state = load_checkpoint(checkpoints[-1])
    config = from_plain(NetworkConfig, state["record"]["network"], "network")
    card = WeightCard(
        name=name,
        kind="detector",
        architecture=config.architecture,
        input=found.input,
        parameters=WeightFile(f"{name}.safetensors", None),
        anchors=found.anchors,
        licence=licence,
        training=_training_record(state, len(checkpoints)),
        measured=measured if measured is not None else _validation_record(state, len(checkpoints)),
        limits=limits,
    )
    return write_pair(
        found.network, card, folder, half_storage=half_storage, replace_existing=replace_existing
    )


def _training_record(state: dict[str, Any], checkpoints: int) -> dict[str, Any]:
    hours = round(state["seconds"] / 3600, 2)
    return {
        "steps": state["step"],
        "epochs": round(state.get("epoch", 0.0), 2),
        "hours": hours,
        "checkpoints_averaged": checkpoints,
        "recipe": _without_folders(state["record"]),
    }


def _validation_record(state: dict[str, Any], checkpoints: int) -> dict[str, Any]:
    """The latest figures with their setting; a mean of checkpoints has not been measured."""
    figures, setting = state.get("figures"), state["record"].get("validation")
    if not figures or checkpoints > 1:
        return {}
    rounded = {key: round(value, 4) for key, value in figures.items()}
    return {"validation": {**rounded, "setting": _without_folders(setting)}}


def _without_folders(value: Any) -> Any:
    """Where files lay on this computer is nobody's business; what they are called is."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value


def _check_folder(folder: Path, resume: bool) -> None:
    if (folder / "last.pt").is_file() != resume:
        cure = "holds no run to continue" if resume else "holds a run; continue it with --resume"
        raise UsageError(f"{folder}: {cure}, or choose another folder")


def _task(
    config: DetectorConfig,
    network: RetinaFace,
    input_spec: InputSpec,
    anchors: AnchorSpec,
    device: torch.device,
) -> DetectorTask:
    with main_first():
        data = open_data(config.data, config.cache)
    validator = None
    if config.validation and is_main():
        validator = Validator(config.validation, config.network.architecture, input_spec, anchors)
    return DetectorTask(
        network,
        input_spec,
        anchors,
        data,
        DetectorTaskConfig(config.augment, config.match, config.loss),
        batch_size=config.loop.batch_size,
        seed=config.loop.seed,
        workers=config.loop.workers,
        teacher=load_teacher(config.teacher) if config.teacher else None,
        validator=validator,
        compile_teacher=config.loop.compile,
        device=device,
    )


def _outcome(loop: TrainingLoop[Any], config: DetectorConfig, folder: Path) -> TrainingOutcome:
    finished = loop.step == config.loop.steps
    curves = folder / "curves.png"
    if is_main():
        write_image(curves, draw_curves(read_log(folder / "log.csv")))
    samples = folder / "samples.jpg" if finished else None
    if samples and is_main():
        _draw_samples(loop.average, config, samples)
    validated = math.isfinite(loop.best)
    return TrainingOutcome(
        step=loop.step,
        steps=config.loop.steps,
        last=folder / "last.pt",
        best=folder / "best.pt" if validated else None,
        score=loop.best if validated else None,
        figures=loop.figures,
        curves=curves,
        samples=samples,
    )


def _draw_samples(module: torch.nn.Module, config: DetectorConfig, picture: Path) -> None:
    assert isinstance(module, TrainedDetector)
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
