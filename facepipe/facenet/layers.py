"""Layers and interfaces that FaceNet's backbones share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from facepipe.retinaface.layers import conv_bn


class Backbone(nn.Module):
    """Preprocessed faces (batch, 3, side, side) to feature maps, fine to coarse.

    Attributes:
        widths: Channels of each map.
    """

    widths: tuple[int, ...]


def conv_bn_relu(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(*conv_bn(inputs, outputs, size, stride, groups), nn.ReLU(inplace=True))


def chained(first: Tensor, blocks: Iterable[nn.Module], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first map and that of every block; see `FaceNet.forward` for `given`."""
    maps = [first]
    for number, block in enumerate(blocks):
        maps.append(block(given[number] if given else maps[-1]))
    return tuple(maps)
