"""What training starts from: a network with its first weights, its preprocessing and its embedding."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import nn

from facepipe.core.errors import UsageError, WeightsError
from facepipe.facenet.network import (
    DENSE_BLOCKS,
    DENSE_WIDTHS,
    DenseResidual,
    FaceNet,
    ResidualBlock,
    facenet_dense,
)
from facepipe.runtime.architectures import build_network, load_network, load_parameters
from facepipe.training.engine.checkpoints import averaged_network, load_checkpoint
from facepipe.training.engine.config import from_plain
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.training.recognition.config import NetworkConfig
from facepipe.weights.cards import EmbeddingSpec, InputSpec
from facepipe.weights.registry import load_card

_LOG = logging.getLogger("facepipe.training")

_SIDE_PX = {
    "facenet_dense": 112,
    "facenet_mobilenet": 112,
    "facenet_mobilenetv1": 112,
    "facenet_mobilefacenet": 112,
    "facenet_inception_resnet_v1": 160,
}
_MOBILENETV1_INPUT = InputSpec("rgb", (127.5, 127.5, 127.5), (128.0, 128.0, 128.0))
_ONE_SIZE = ("facenet_mobilenetv1", "facenet_mobilefacenet")
"""Their heads have weights for every place of a 7x7 map."""
_STRIDE_PX = 16
"""Of the dense trunk's coarsest map."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network with all that its numbers need to mean something."""

    network: FaceNet
    input: InputSpec
    embedding: EmbeddingSpec


def initial_encoder(config: NetworkConfig) -> Encoder:
    """The network as training begins; random parts come from torch's generator.

    Raises:
        WeightsError: `initial` can't be found or read, or is of another architecture or size.
        DataError: A checkpoint is damaged.
        UsageError: The sizes contradict each other.
    """
    if config.initial == "random":
        return _random(config)
    if config.initial.endswith(".pt"):
        architecture, known = _of_checkpoints([Path(config.initial)])
    else:
        architecture, known = _of_card(config.initial)
    if architecture != config.architecture:
        raise WeightsError(f"{config.initial}: is a {architecture}, not a {config.architecture}")
    started = Encoder(
        _grown(known.network, config), config.input or known.input, _embedding(config, known.embedding)
    )
    if started.embedding.dimensions != known.embedding.dimensions:
        raise WeightsError(f"{config.initial}: its vectors have {known.embedding.dimensions} dimensions")
    if config.architecture == "facenet_dense" and started.input.size_px != known.input.size_px:
        raise WeightsError(f"{config.initial}: its head is made for faces of {known.input.size_px} px")
    return started


def encoder_of_checkpoints(paths: list[Path]) -> Encoder:
    """The averaged weights of one or more checkpoints of one run, as a network.

    Raises:
        DataError: Damaged, or of different networks.
        WeightsError: Of another trainer.
    """
    return _of_checkpoints(paths)[1]


def resolve_config(config: NetworkConfig, start: Encoder) -> NetworkConfig:
    """The configuration with nothing left open: a checkpoint must say what its numbers mean."""
    trunk = start.network.trunk
    dense = trunk if isinstance(trunk, DenseResidual) else None
    return replace(
        config,
        dimensions=start.embedding.dimensions,
        widths=dense.widths if dense else None,
        blocks=_blocks(start.network) if dense else None,
        input=start.input,
        alignment=start.embedding.alignment,  # type: ignore[arg-type]
        flip_average=start.embedding.flip_average,
    )


def _random(config: NetworkConfig) -> Encoder:
    spec = config.input or _default_input(config)
    embedding = _embedding(config, EmbeddingSpec(128, "arcface_112", flip_average=True))
    if config.architecture in _ONE_SIZE and spec.size_px != _SIDE_PX[config.architecture]:
        raise UsageError(
            f"network.input.size_px: {config.architecture} needs faces of 112 px, got {spec.size_px}"
        )
    if config.architecture != "facenet_dense":
        return Encoder(
            cast(FaceNet, build_network(config.architecture, embedding.dimensions)), spec, embedding
        )
    if spec.size_px is None or spec.size_px % _STRIDE_PX:
        raise UsageError(f"network.input.size_px: expected a multiple of {_STRIDE_PX}, got {spec.size_px}")
    network = facenet_dense(
        embedding.dimensions,
        config.widths or DENSE_WIDTHS,
        config.blocks or DENSE_BLOCKS,
        spec.size_px // _STRIDE_PX,
    )
    return Encoder(network, spec, embedding)


def _default_input(config: NetworkConfig) -> InputSpec:
    known = _MOBILENETV1_INPUT if config.architecture == "facenet_mobilenetv1" else IMAGENET_INPUT
    return replace(known, size_px=_SIDE_PX[config.architecture])


def _embedding(config: NetworkConfig, known: EmbeddingSpec) -> EmbeddingSpec:
    """What was measured with other weights, the threshold, is not carried over."""
    return EmbeddingSpec(
        dimensions=config.dimensions or known.dimensions,
        alignment=config.alignment or known.alignment,
        flip_average=known.flip_average if config.flip_average is None else config.flip_average,
    )


def _grown(network: FaceNet, config: NetworkConfig) -> FaceNet:
    """The network with more residual blocks, the new ones as the identity, where that is asked for."""
    trunk = network.trunk
    if not isinstance(trunk, DenseResidual):
        return network
    have, want = _blocks(network), config.blocks or _blocks(network)
    if config.widths not in (None, trunk.widths) or any(w < h for w, h in zip(want, have, strict=True)):
        raise WeightsError(
            f"{config.initial}: has widths {trunk.widths} and blocks {have}; a network grows by blocks only"
        )
    if want == have:
        return network
    side = cast(nn.Conv2d, network.head.spatial[0]).kernel_size[0]  # type: ignore[index]
    deeper = facenet_dense(network.head.linear.out_features, trunk.widths, want, side)
    missing, _ = deeper.load_state_dict(network.state_dict(), strict=False)
    for name, block in deeper.named_modules():
        if isinstance(block, ResidualBlock) and any(new.startswith(f"{name}.") for new in missing):
            nn.init.zeros_(cast(nn.BatchNorm2d, block.second[1]).weight)
    _LOG.info("grown from blocks %s to %s: the new ones begin as the identity", have, want)
    return deeper


def _blocks(network: FaceNet) -> tuple[int, int, int]:
    trunk = cast(DenseResidual, network.trunk)
    one, two, three = (
        sum(isinstance(block, ResidualBlock) for block in stage)
        for stage in (trunk.stage1, trunk.stage2, trunk.stage3)
    )
    return one, two, three


def _of_checkpoints(paths: list[Path]) -> tuple[str, Encoder]:
    states = [load_checkpoint(path) for path in paths]
    plain = states[-1]["record"].get("network")
    if plain is None or not str(plain.get("architecture", "")).startswith("facenet_"):
        raise WeightsError(f"{paths[-1]}: was not written by the encoder's trainer")
    config = from_plain(NetworkConfig, plain, "network")
    shipped = averaged_network(states)
    linear = shipped.get("head.linear.weight")
    dimensions = 128 if linear is None else len(linear)
    network = cast(FaceNet, build_network(config.architecture, dimensions, shipped))
    load_parameters(network, shipped, str(paths[-1]))
    spec = config.input or _default_input(config)
    known = EmbeddingSpec(dimensions, "arcface_112", flip_average=True)
    return config.architecture, Encoder(network, spec, _embedding(config, known))


def _of_card(name_or_path: str) -> tuple[str, Encoder]:
    weight = load_card(name_or_path)
    if weight.card.embedding is None:
        raise WeightsError(f"{weight.card.name} is a {weight.card.kind}, not an encoder")
    network = cast(FaceNet, load_network(weight))
    return weight.card.architecture, Encoder(network, weight.card.input, weight.card.embedding)
