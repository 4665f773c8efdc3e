"""Tiny data and networks for the encoder's trainer: parts of one photo, and a teacher of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from training_helpers import export_maps, remove_batch_norm

from facepipe.align import MARGINS, cut
from facepipe.core.faces import UInt8Array
from facepipe.facenet import network
from facepipe.facenet.heads import DepthwiseHead
from facepipe.facenet.layers import Backbone, conv_bn_relu
from facepipe.facenet.network import FaceNet
from facepipe.images.corruption import CorruptionConfig, corrupt
from facepipe.images.reading import write_image
from facepipe.training.engine.config import read_configuration
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.recognition.augment import JitterConfig, jitter_matrix
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.crops import FaceCrops
from facepipe.training.recognition.initialize import Encoder
from facepipe.training.recognition.losses import LossConfig
from facepipe.training.recognition.sources import CropSource
from facepipe.training.recognition.task import RecognitionTask
from facepipe.weights.cards import EmbeddingSpec, InputSpec

FACE = (slice(60, 200), slice(155, 295))
"""The astronaut's face with some margin: 140 pixels, of which the inner 112 are the network's frame."""
SIDE_PX = 32
SPEC = InputSpec("rgb", (124, 116, 104), (58, 57, 57), SIDE_PX)
MARGIN = MARGINS["arcface_112"]
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


class TinyBackbone(Backbone):
    """Maps at strides 4, 8 and 16."""

    widths = (8, 12, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 4, stride=2)
        steps = zip((4, *self.widths), self.widths, strict=False)
        self.stages = nn.ModuleList(conv_bn_relu(inputs, outputs, stride=2) for inputs, outputs in steps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps[1:])


def build_tiny(dimensions: int) -> FaceNet:
    """For faces of 32 px; maps of 8, 4 and 2 px."""
    return FaceNet(TinyBackbone(), DepthwiseHead(TinyBackbone.widths[-1], SIDE_PX // 16, dimensions))


def tiny_network(dimensions: int = 16, seed: int = 0) -> FaceNet:
    """A tiny network with parameters of this seed."""
    torch.manual_seed(seed)
    return build_tiny(dimensions)


def tiny_encoder(encoder: FaceNet, size_px: int = SIDE_PX) -> Encoder:
    """A network with preprocessing and embedding, as a task takes it."""
    spec = replace(SPEC, size_px=size_px)
    return Encoder("facenet_mobilenet", encoder, spec, EmbeddingSpec(16, "arcface_112", flip_average=True))


def make_mobilenet_tiny() -> None:
    """In this process `facenet_mobilenet` becomes a tiny network, so that whole runs take seconds."""
    network.facenet_mobilenet = build_tiny


def write_teacher(path: Path, dimensions: int = 16, seed: int = 1) -> Path:
    """An ONNX file for one face of 32 px, with random weights; its maps are called `TAPS`."""
    return export_teacher(tiny_network(dimensions, seed), path, SIDE_PX, TAPS)


def export_teacher(teacher: FaceNet, path: Path, side_px: int, taps: Sequence[str]) -> Path:
    """An ONNX file of a network for one face, with names for its maps."""
    return export_maps(teacher, path, side_px, ("vector", *taps))


def tiny_config(*overrides: str) -> EncoderConfig:
    """A run of 4 steps of 8 faces, without any loss."""
    return read_configuration(
        EncoderConfig,
        None,
        [
            INPUT,
            "network.architecture=facenet_mobilenet",
            "network.dimensions=16",
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
    plain = tiny_network()
    remove_batch_norm(plain)
    sources = [CropSource(folder / "people", labelled=True), CropSource(folder / "people")]
    config = EncoderConfig(
        loss=LossConfig(cosine=0, hints_first=0, hints_last=0, softmax=1),
        loop=LoopConfig(batch_size=batch_size, seed=7, workers=0),
    )
    return RecognitionTask(tiny_encoder(plain), FaceCrops(sources, folder / "cache"), config)
