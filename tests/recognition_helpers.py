"""Tiny data and networks for the encoder's trainer: parts of one photo, and a teacher of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from training_helpers import export_maps, remove_batch_norm

from facepipe.align import cut
from facepipe.core.faces import UInt8Array
from facepipe.facenet.network import FaceNet, facenet_dense
from facepipe.images.corruption import CorruptionConfig, corrupt
from facepipe.images.reading import write_image
from facepipe.training.engine.config import read_configuration
from facepipe.training.recognition.augment import JitterConfig, jitter_matrix
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import FaceCrops
from facepipe.training.recognition.losses import LossConfig
from facepipe.training.recognition.sources import CropSource
from facepipe.training.recognition.task import RecognitionTask, RecognitionTaskConfig
from facepipe.weights.cards import InputSpec

FACE = (slice(60, 200), slice(155, 295))
"""The astronaut's face with some margin: 140 pixels, of which the inner 112 are the network's frame."""
SIDE_PX = 32
INPUT = f'network.input={{channels="rgb", mean=[124, 116, 104], std=[58, 57, 57], size_px={SIDE_PX}}}'
TAPS = ("tap0", "tap1", "tap2")


def write_people(folder: Path, astronaut: UInt8Array, people: int = 3, photos: int = 4) -> Path:
    """`folder/personN/M.png`, 40 px: every person is another part of the photo, every photo a variant."""
    rng = np.random.default_rng(5)
    for person in range(people):
        (folder / f"person{person}").mkdir(parents=True)
        top, left = (60, 155) if person == 0 else rng.integers(0, 370, 2)
        part = astronaut[top : top + 140, left : left + 140]
        for photo in range(photos):
            jittered = cut(part, 40, 0.0, jitter_matrix(40, JitterConfig(flip_share=0), rng))
            worse = corrupt(jittered, CorruptionConfig(light_share=1, low_resolution_share=0), rng)
            write_image(folder / f"person{person}" / f"{photo}.png", worse)
    return folder


def tiny_network(dimensions: int = 16, seed: int = 0) -> FaceNet:
    """For faces of 32 px; maps of 8, 4 and 2 px."""
    torch.manual_seed(seed)
    return facenet_dense(dimensions, (8, 12, 16), (1, 1, 1), SIDE_PX // 16)


def write_teacher(path: Path, dimensions: int = 16, seed: int = 1) -> Path:
    """An ONNX file for one face of 32 px, with random weights; its maps are called `TAPS`."""
    return export_teacher(tiny_network(dimensions, seed), path, SIDE_PX, TAPS)


def export_teacher(network: FaceNet, path: Path, side_px: int, taps: Sequence[str]) -> Path:
    """An ONNX file of a network for one face, with names for its maps."""
    return export_maps(network, path, side_px, ("vector", *taps))


def tiny_config(*overrides: str) -> EncoderConfig:
    """A run of 4 steps of 8 faces, without any loss."""
    return read_configuration(
        EncoderConfig,
        None,
        [
            INPUT,
            "network.dimensions=16",
            "network.widths=[8, 12, 16]",
            "network.blocks=[1, 1, 1]",
            "device=cpu",
            "loss.cosine=0",
            "loss.hints_first=0",
            "loss.hints_last=0",
            "optimiser.reference_batch=8",
            "loop.steps=4",
            "loop.batch_size=8",
            "loop.workers=0",
            "loop.warmup_steps=1",
            "loop.log_every=1",
            "loop.checkpoint_every=2",
            *overrides,
        ],
    )


def plain_task(folder: Path, batch_size: int) -> RecognitionTask:
    """A margin head over people, and unlabelled faces, for a network that sees each face alone."""
    network = tiny_network()
    remove_batch_norm(network)
    sources = [CropSource(folder / "people", labelled=True), CropSource(folder / "people")]
    return RecognitionTask(
        network,
        InputSpec("rgb", (124, 116, 104), (58, 57, 57), SIDE_PX),
        FaceCrops(sources, folder / "cache"),
        RecognitionTaskConfig(loss=LossConfig(cosine=0, hints_first=0, hints_last=0, softmax=1)),
        batch_size=batch_size,
        seed=7,
        workers=0,
    )
