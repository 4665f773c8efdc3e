"""The network with its first weights, preprocessing and embedding, as training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from facepipe.core.errors import UsageError, WeightsError
from facepipe.facenet.network import FaceNet
from facepipe.runtime.architectures import build_network, load_network, load_parameters
from facepipe.training.engine.checkpoints import Checkpoint, averaged_network, load_checkpoint
from facepipe.training.engine.config import from_plain
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.training.recognition.config import NetworkConfig
from facepipe.weights.cards import EmbeddingSpec, InputSpec
from facepipe.weights.registry import load_card

_SIDE_PX = {
    "facenet_mobilenet": 112,
    "facenet_mobilenetv1": 112,
    "facenet_mobilefacenet": 112,
    "facenet_inception_resnet_v1": 160,
}
_MOBILENETV1_INPUT = InputSpec("rgb", (127.5, 127.5, 127.5), (128.0, 128.0, 128.0))
_ONE_SIZE = ("facenet_mobilenetv1", "facenet_mobilefacenet")
"""Their heads have weights for every place of a 7x7 map."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network with its preprocessing and the form of its embedding."""

    architecture: str
    network: FaceNet
    input: InputSpec
    embedding: EmbeddingSpec

    @property
    def size_px(self) -> int:
        """Side of the faces that the network takes.

        Raises:
            UsageError: Its preprocessing gives none.
        """
        if self.input.size_px is None:
            raise UsageError("network.input.size_px: an encoder needs faces of one size")
        return self.input.size_px


def initial_encoder(config: NetworkConfig) -> Encoder:
    """Return the network as training begins; random parts come from torch's generator.

    Raises:
        WeightsError: `initial` can't be found or read, or is of another architecture or size.
        DataError: A checkpoint is damaged.
        UsageError: The sizes contradict each other.
    """
    if config.initial == "random":
        return _random(config)
    if config.initial.endswith(".pt"):
        known = encoder_of_checkpoints([load_checkpoint(Path(config.initial))], config.initial)
    else:
        known = _encoder_of_card(config.initial)
    if known.architecture != config.architecture:
        raise WeightsError(f"{config.initial}: is a {known.architecture}, not a {config.architecture}")
    embedding = _embedding(config, known.embedding)
    if embedding.dimensions != known.embedding.dimensions:
        raise WeightsError(f"{config.initial}: its vectors have {known.embedding.dimensions} dimensions")
    return replace(known, input=config.input or known.input, embedding=embedding)


def encoder_of_checkpoints(states: Sequence[Checkpoint], source: str) -> Encoder:
    """Make a network of the averaged weights of one or more checkpoints of one run.

    Args:
        states: The checkpoints.
        source: Named in errors.

    Raises:
        DataError: They are of different networks.
        WeightsError: They are of another trainer, or of an architecture that is not known.
    """
    plain = states[-1]["record"].get("network")
    if plain is None or not str(plain.get("architecture", "")).startswith("facenet_"):
        raise WeightsError(f"{source}: was not written by the encoder's trainer")
    if plain["architecture"] not in _SIDE_PX:
        known = ", ".join(_SIDE_PX)
        raise WeightsError(f"{source}: unknown architecture {plain['architecture']!r}; known are {known}")
    config = from_plain(NetworkConfig, plain, "network")
    shipped = averaged_network(states)
    linear = shipped.get("head.linear.weight")
    dimensions = 128 if linear is None else len(linear)
    network = cast(FaceNet, build_network(config.architecture, dimensions))
    load_parameters(network, shipped, source)
    embedding = _embedding(config, EmbeddingSpec(dimensions, "arcface_112", flip_average=True))
    return Encoder(config.architecture, network, config.input or _default_input(config), embedding)


def resolve_config(config: NetworkConfig, start: Encoder) -> NetworkConfig:
    """Fill in all settings that are None, so that checkpoints hold them."""
    return replace(
        config,
        dimensions=start.embedding.dimensions,
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
    network = cast(FaceNet, build_network(config.architecture, embedding.dimensions))
    return Encoder(config.architecture, network, spec, embedding)


def _default_input(config: NetworkConfig) -> InputSpec:
    known = _MOBILENETV1_INPUT if config.architecture == "facenet_mobilenetv1" else IMAGENET_INPUT
    return replace(known, size_px=_SIDE_PX[config.architecture])


def _embedding(config: NetworkConfig, known: EmbeddingSpec) -> EmbeddingSpec:
    """Without a threshold, which was measured with other weights."""
    return EmbeddingSpec(
        dimensions=config.dimensions or known.dimensions,
        alignment=config.alignment or known.alignment,
        flip_average=known.flip_average if config.flip_average is None else config.flip_average,
    )


def _encoder_of_card(name_or_path: str) -> Encoder:
    weight = load_card(name_or_path)
    card = weight.card
    if card.embedding is None:
        raise WeightsError(f"{card.name} is a {card.kind}, not an encoder")
    return Encoder(card.architecture, cast(FaceNet, load_network(weight)), card.input, card.embedding)
