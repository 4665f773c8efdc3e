"""Parameters of published checkpoints by the order and shapes of their layers, whatever their names are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from facepipe.core.errors import WeightsError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_COUNTER = "num_batches_tracked"
_Layers = dict[str, dict[str, "Tensor"]]
"""Tensors by their own names ("weight"), by the names of their layers ("fpn.merges.0.0")."""
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def renamed_by_layers(
    published: Mapping[str, Tensor], ours: Mapping[str, Tensor], source: str
) -> dict[str, Tensor] | None:
    """Give the parameters of a checkpoint the names of a network's, where all layers have the same shapes.

    A state dict has its layers in the order in which the network defines them: backbone, FPN, SSH, each from
    its first layer to its last. Heads may come in any order of their kinds, which their outputs tell apart.
    The names of convolutions of one shape have to rise in that order ("ssh1" before "ssh2"): those of a
    sorted or differently built checkpoint do not, and which layer is which can't be known then.

    Args:
        published: Of a checkpoint, in its order.
        ours: Of the network.
        source: Named in errors.

    Returns:
        The parameters; None: other layers than the network's.

    Raises:
        WeightsError: The shapes are those of the network's layers and the names contradict their order.
    """
    theirs, known = _layers(published), _layers(ours)
    their_names, our_names = _ordered(theirs), _ordered(known)
    if [_shapes(theirs[name]) for name in their_names] != [_shapes(known[name]) for name in our_names]:
        return None
    _require_rising_names(their_names, theirs, source)
    return {
        f"{our_name}.{kind}": tensor
        for their_name, our_name in zip(their_names, our_names, strict=True)
        for kind, tensor in theirs[their_name].items()
    }


def backbone_parameters(
    backbone: nn.Module, classifier: Mapping[str, Tensor], source: str
) -> dict[str, Tensor] | None:
    """Return a backbone's parameters out of a checkpoint of the classifier that it was trained as.

    Args:
        backbone: Of a RetinaFace.
        classifier: With the backbone's layers in their order, and linear layers behind them or none.
        source: Named in errors.

    Returns:
        The parameters; None: other layers than the backbone's.

    Raises:
        WeightsError: See `renamed_by_layers`.
    """
    linear = {name.rpartition(".")[0] for name, tensor in classifier.items() if tensor.ndim == 2}
    kept = {name: tensor for name, tensor in classifier.items() if name.rpartition(".")[0] not in linear}
    return renamed_by_layers(kept, backbone.state_dict(), source)


def _layers(parameters: Mapping[str, Tensor]) -> _Layers:
    layers: _Layers = {}
    for name, tensor in parameters.items():
        layer, _, kind = name.rpartition(".")
        if kind != _COUNTER:
            layers.setdefault(layer, {})[kind] = tensor
    return layers


def _shapes(layer: Mapping[str, Tensor]) -> _Shapes:
    return tuple(sorted((kind, tuple(tensor.shape)) for kind, tensor in layer.items()))


def _ordered(layers: _Layers) -> list[str]:
    """Names of layers, heads last and by their outputs: they alone are convolutions with biases."""
    heads = [name for name, layer in layers.items() if "bias" in layer and layer["weight"].ndim == 4]
    others = [name for name in layers if name not in heads]
    return others + sorted(heads, key=lambda name: layers[name]["weight"].shape[0])


def _require_rising_names(names: Sequence[str], layers: _Layers, source: str) -> None:
    """Require rising names of convolutions of one shape, in each part of the network.

    A BatchNorm is that of the convolution before it.
    """
    shared = len(_common_parts(names))
    before: dict[tuple[str, _Shapes], str] = {}
    for name in (name for name in names if layers[name]["weight"].ndim == 4):
        own = name.split(".", shared)[-1]
        alike = (re.split(r"[.\d]", own)[0], _shapes(layers[name]))
        if alike in before and _rank(before[alike]) >= _rank(own):
            raise WeightsError(
                f"{source}: its layers {one_line(before[alike], 80)} and {one_line(own, 80)} have one shape, "
                "and their names are not in the order of a RetinaFace's layers, so that which is which is "
                "not known; save the state dict of its network as it is: torch.save(model.state_dict(), path)"
            )
        before[alike] = own


def _common_parts(names: Sequence[str]) -> list[str]:
    columns = zip(*(name.split(".") for name in names), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _rank(name: str) -> list[str | int]:
    """Sort key with numbers as numbers: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]
