"""From the encoder's configuration to faces, teacher and task."""

from __future__ import annotations

from dataclasses import replace

import torch

from facepipe.core.errors import UsageError
from facepipe.training.engine.distributed import is_main, main_first
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.training.recognition.config import EncoderConfig, FaceDataConfig
from facepipe.training.recognition.crops import FaceCrops, read_same_person
from facepipe.training.recognition.initialize import Encoder, initial_encoder, resolve_config
from facepipe.training.recognition.objectives import check_objectives
from facepipe.training.recognition.sources import CropSource, DetectionSource, FaceSource, PhotoSource
from facepipe.training.recognition.task import RecognitionTask
from facepipe.training.recognition.teacher import find_teacher
from facepipe.training.recognition.validation import PairValidator


def prepare(
    config: EncoderConfig, device: torch.device, resume: bool = False
) -> tuple[EncoderConfig, RecognitionTask]:
    """Build the task of a run, and complete its configuration from the first weights.

    Args:
        config: See `EncoderConfig`.
        device: Of the network.
        resume: Whether a checkpoint will replace what is fitted to trained weights.

    Raises:
        UsageError: No data, or settings that contradict each other.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    start = initial_encoder(config.network)
    config = replace(config, network=resolve_config(config.network, start))
    with main_first():
        task = build_task(config, start, device)
    if config.network.initial != "random" and not resume:
        task.fit_to_network()
    return config, task


def check_inputs(config: EncoderConfig) -> None:
    """Check that a later phase will find its teachers.

    Raises:
        UsageError: Losses and teacher do not fit together.
        WeightsError: A teacher is missing or damaged.
    """
    check_objectives(config)
    if config.teacher.weights:
        find_teacher(config.teacher, IMAGENET_INPUT)
        if config.second_teacher.share:
            find_teacher(config.second_teacher.teacher, IMAGENET_INPUT)


def build_task(config: EncoderConfig, start: Encoder, device: torch.device) -> RecognitionTask:
    """Open faces, teacher and validation for a network.

    Raises:
        UsageError: No data, or settings that contradict each other.
        DataError, PhotoError, WeightsError: Something it needs is missing or damaged.
    """
    check_objectives(config)
    crop_px = round(start.size_px / 0.8)  # so that the frame inside the margin is as large as the input
    crops = open_faces(config, crop_px)
    validator = None
    if config.validation and is_main():
        validator = PairValidator(
            config.validation,
            config.network.architecture,
            start.input,
            start.embedding,
            crop_px=crop_px,
            cache=config.cache_folder,
        )
    return RecognitionTask(start, crops, config, validator=validator, device=device)


def open_faces(config: EncoderConfig, crop_px: int) -> FaceCrops:
    """Open all faces of a configuration, decoded into its cache.

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
    sources = [_source(item, crop_px) for item in config.data]
    return FaceCrops(sources, config.cache_folder, same_person)


def _source(item: FaceDataConfig, crop_px: int) -> FaceSource:
    if item.kind == "photos":
        return PhotoSource(item.path, item.labelled, crop_px)
    if item.kind == "detection":
        return DetectionSource(item.path, crop_px, item.min_face_px)
    return CropSource(item.path, item.labelled)
