"""Networks before training: the student with its initial weights, preprocessing and anchors; the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from facepipe.core.errors import WeightsError
from facepipe.retinaface.backbones import ResNetStages
from facepipe.retinaface.layer_matching import backbone_parameters, renamed_by_layers
from facepipe.retinaface.network import RetinaFace
from facepipe.retinaface.published import our_name
from facepipe.runtime.architectures import build_network, layout_difference, load_network, load_parameters
from facepipe.training.detection.config import Architecture, NetworkConfig, TeacherConfig
from facepipe.training.detection.task import Teacher
from facepipe.training.engine.checkpoints import Checkpoint, averaged_network, load_checkpoint
from facepipe.training.engine.config import from_plain
from facepipe.training.engine.pixels import IMAGENET_INPUT
from facepipe.weights.cards import AnchorSpec, InputSpec
from facepipe.weights.legacy import read_legacy_checkpoint
from facepipe.weights.registry import load_card

_PUBLISHED_SUFFIXES = (".pth", ".tar", ".ckpt", ".pretrained")
_PLAIN: Architecture = "retinaface_mobilenet025"
_DETAIL: Architecture = "retinaface_mobilenet025_detail"
_FOCUS: Architecture = "retinaface_mobilenet025_focus"
_STARTS: dict[Architecture, tuple[Architecture, ...]] = {
    _DETAIL: (_PLAIN, _FOCUS),
    _FOCUS: (_PLAIN, _DETAIL),
}
"""Architectures that may start from others, of which they have all layers or but some."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A network with its preprocessing and anchors."""

    architecture: str
    network: RetinaFace
    input: InputSpec
    anchors: AnchorSpec


def initial_detector(config: NetworkConfig) -> Detector:
    """Build the network as training begins; random parts come from torch's generator.

    Raises:
        WeightsError: `config.initial` can't be found or read, or is of another architecture.
        DataError: A checkpoint is damaged.
    """
    if config.initial in ("random", "imagenet"):
        network = _network(config.architecture)
        if config.initial == "imagenet":
            _load_torchvision_backbone(network)
        known = Detector(config.architecture, network, IMAGENET_INPUT, AnchorSpec())
    elif config.initial.endswith(_PUBLISHED_SUFFIXES):
        network = _network(config.architecture)
        load_published(network, Path(config.initial))
        known = Detector(config.architecture, network, IMAGENET_INPUT, AnchorSpec())
    elif config.initial.endswith(".pt"):
        known = detector_of_checkpoints([load_checkpoint(Path(config.initial))], config.initial)
    else:
        known = _detector_of_card(config.initial)
    network = known.network
    if known.architecture in _STARTS.get(config.architecture, ()):
        network = _with_shared_layers(network, config.architecture)
    elif known.architecture != config.architecture:
        raise WeightsError(f"{config.initial}: is not a {config.architecture}")
    input_spec, anchors = config.input or known.input, config.anchors or known.anchors
    return Detector(config.architecture, network, input_spec, anchors)


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher, its preprocessing and anchors.

    Raises:
        WeightsError: It can't be found or read.
    """
    known = _detector_of_card(config.weights)
    return Teacher(known.network, known.input, known.anchors)


def detector_of_checkpoints(states: Sequence[Checkpoint], source: str) -> Detector:
    """Load the mean of the averaged weights of one or more checkpoints of one run.

    Args:
        states: The checkpoints.
        source: Named in errors.

    Raises:
        DataError: They are of different networks.
        WeightsError: They are of another trainer.
    """
    plain = states[-1]["record"].get("network")
    if plain is None:
        raise WeightsError(f"{source}: was not written by the detector's trainer")
    config = from_plain(NetworkConfig, plain, "network")
    network = _network(config.architecture)
    shipped = averaged_network(states)
    load_parameters(network, shipped, source)
    input_spec, anchors = config.input or IMAGENET_INPUT, config.anchors or AnchorSpec()
    return Detector(config.architecture, network, input_spec, anchors)


def load_published(network: RetinaFace, path: Path) -> None:
    """Copy a published checkpoint into a network: a whole RetinaFace, or an ImageNet backbone.

    Raises:
        WeightsError: Unreadable, or of another layout.
    """
    published, source = read_legacy_checkpoint(path), str(path)
    backbone = backbone_parameters(network.backbone, published, source)
    if backbone is not None:
        load_parameters(network.backbone, backbone, source)
        return
    whole = renamed_by_layers(published, network.state_dict(), source)
    load_parameters(network, whole or {our_name(name): v for name, v in published.items()}, source)


def _load_torchvision_backbone(network: RetinaFace) -> None:
    from torchvision.models import get_model_weights

    if not isinstance(network.backbone, ResNetStages):
        raise WeightsError(
            "network.initial = imagenet: torchvision has no MobileNetV1; facepipe weights fetch "
            "imagenet_mobilenet025 downloads that of width 0.25: give the file as network.initial, or go "
            "without: --set network.initial=random"
        )
    name = f"resnet{network.backbone.depth}"
    try:
        parameters = get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # no network
        raise WeightsError(
            f"torchvision's weights of {name} can't be downloaded ({error}); name a file of them "
            f"({name}-*.pth), or go without: --set network.initial=random"
        ) from error
    shipped = {name: value for name, value in parameters.items() if not name.startswith("fc.")}
    load_parameters(network.backbone.trunk, shipped, f"torchvision's {name}")


def _detector_of_card(name_or_path: str) -> Detector:
    weight = load_card(name_or_path)
    card = weight.card
    if card.anchors is None:
        raise WeightsError(f"{card.name} is an {card.kind}, not a detector")
    return Detector(card.architecture, cast(RetinaFace, load_network(weight)), card.input, card.anchors)


def _network(architecture: Architecture) -> RetinaFace:
    return cast(RetinaFace, build_network(architecture))


def _with_shared_layers(network: RetinaFace, architecture: Architecture) -> RetinaFace:
    """Return a network of another architecture with the parameters that both have; the others are random."""
    other, known = _network(architecture), network.state_dict()
    unfit = layout_difference(other, known).misshapen
    other.load_state_dict({name: p for name, p in known.items() if name not in unfit}, strict=False)
    return other
