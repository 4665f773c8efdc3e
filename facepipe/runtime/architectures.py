"""Torch networks by the architecture names on cards. Needs the [train] extra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from facepipe.core.errors import MissingExtraError, WeightsError, one_line
from facepipe.weights.cards import WeightCard
from facepipe.weights.files import read_parameters
from facepipe.weights.registry import Weight

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTER_SUFFIX = ".num_batches_tracked"
"""BatchNorm's count of training batches: no part of what a weight computes, so weight files go without it."""


def build_network(architecture: str, dimensions: int | None = None) -> nn.Module:
    """Build the network of this name, with random weights, in training mode.

    Args:
        architecture: As on a card, such as "facenet_mobilenetv1".
        dimensions: Length of an encoder's vectors; None for a detector.

    Raises:
        WeightsError: The name is unknown, or an encoder's `dimensions` are missing.
        MissingExtraError: torch is not installed.
    """
    builders = _builders()
    if architecture in builders.detectors:
        return builders.detectors[architecture]()
    if architecture not in builders.encoders:
        known = ", ".join((*builders.detectors, *builders.encoders))
        raise WeightsError(f"unknown architecture {architecture!r}; known are {known}")
    if dimensions is None:
        raise WeightsError(f"{architecture} is an encoder: say how many dimensions its vectors have")
    return builders.encoders[architecture](dimensions)


def serving_module(network: nn.Module) -> nn.Module:
    """Wrap a network for serving, in evaluation mode: `RetinaFaceServing` or `FaceNetServing`."""
    from facepipe.facenet.network import FaceNet, FaceNetServing
    from facepipe.retinaface.network import RetinaFace
    from facepipe.retinaface.serving import RetinaFaceServing

    if isinstance(network, FaceNet):
        return FaceNetServing(network).eval()
    if isinstance(network, RetinaFace):
        return RetinaFaceServing(network).eval()
    raise TypeError(f"expected a FaceNet or a RetinaFace, got {type(network).__name__}")


def load_network(weight: Weight) -> nn.Module:
    """Load a weight's network with its verified parameters as float32, in evaluation mode, on the CPU.

    Raises:
        WeightsError: A file is missing or damaged, or holds other parameters than the architecture's.
        MissingExtraError: torch is not installed.
    """
    _builders()  # without torch, say so before files are read
    import torch

    parameters = {name: torch.from_numpy(array) for name, array in read_parameters(weight).items()}
    return network_of_card(weight.card, parameters, str(weight.parameters_path)).eval()


def network_of_card(card: WeightCard, parameters: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the network that a card describes, with these parameters.

    Raises:
        WeightsError: They are not those of the card's architecture; names `source`.
    """
    dimensions = card.embedding.dimensions if card.embedding else None
    network = build_network(card.architecture, dimensions)
    load_parameters(network, parameters, source)
    return network


def load_parameters(network: nn.Module, parameters: Mapping[str, Tensor], source: str) -> None:
    """Copy parameters into a network of the same names and shapes; BatchNorm's counters may be missing.

    Raises:
        WeightsError: A name is missing or unexpected, or a shape differs; names `source` and a few of them.
    """
    if problem := layout_difference(network, parameters).describe():
        raise WeightsError(f"{source}: other parameters than the architecture has: {problem}")
    network.load_state_dict(dict(parameters), strict=False)


class LayoutDifference(NamedTuple):
    """Names at which parameters differ from what a network has."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def describe(self) -> str:
        """In words, with a few names of each kind; empty where nothing differs."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of other shape", self.misshapen),
        )
        return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names)


def layout_difference(network: nn.Module, parameters: Mapping[str, Tensor]) -> LayoutDifference:
    """Compare names and shapes with a network's; BatchNorm's counters may be missing."""
    expected = network.state_dict()
    return LayoutDifference(
        tuple(name for name in expected if name not in parameters and not name.endswith(COUNTER_SUFFIX)),
        tuple(name for name in parameters if name not in expected),
        tuple(n for n, p in parameters.items() if n in expected and p.shape != expected[n].shape),
    )


def _some(names: tuple[str, ...]) -> str:
    return one_line(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


class _Builders(NamedTuple):
    detectors: dict[str, Callable[[], nn.Module]]
    encoders: dict[str, Callable[[int], nn.Module]]


def _builders() -> _Builders:
    try:
        from facepipe.facenet import network as facenet
        from facepipe.retinaface import network as retinaface
        from facepipe.retinaface import small_faces
    except ImportError as error:
        raise MissingExtraError("running networks on torch", "train") from error
    return _Builders(
        {
            "retinaface_mobilenet025": retinaface.retinaface_mobilenet025,
            "retinaface_mobilenet025_detail": small_faces.retinaface_mobilenet025_detail,
            "retinaface_mobilenet025_focus": small_faces.retinaface_mobilenet025_focus,
            "retinaface_mobilenet025_relu": retinaface.retinaface_mobilenet025_relu,
            "retinaface_mobilenet050": retinaface.retinaface_mobilenet050,
            "retinaface_mobilenet100": retinaface.retinaface_mobilenet100,
            "retinaface_resnet18": retinaface.retinaface_resnet18,
            "retinaface_resnet34": retinaface.retinaface_resnet34,
            "retinaface_resnet50": retinaface.retinaface_resnet50,
        },
        {
            "facenet_mobilenet": facenet.facenet_mobilenet,
            "facenet_mobilenetv1": facenet.facenet_mobilenetv1,
            "facenet_mobilefacenet": facenet.facenet_mobilefacenet,
            "facenet_inception_resnet_v1": facenet.facenet_inception_resnet_v1,
        },
    )
