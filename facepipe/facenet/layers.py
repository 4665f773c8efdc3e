"""Layers and interfaces that FaceNet's backbones share."""

from __future__ import annotations

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


class ChainedBackbone(Backbone):
    """A stem and blocks in a row, whose outputs are the maps."""

    stem: nn.Sequential
    blocks: nn.ModuleList

    def parts(self) -> list[nn.Module]:
        """Return the stem and the blocks: what makes each of the maps out of the one before."""
        return [self.stem, *self.blocks]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the stem and of every block."""
        maps = [self.stem(images)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return tuple(maps)
