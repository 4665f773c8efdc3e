"""MobileNetV1 (Howard et al., arXiv:1704.04861): as published, and for 112-pixel faces."""

from __future__ import annotations

from torch import Tensor, nn

from facepipe.facenet.layers import Backbone, ChainedBackbone
from facepipe.retinaface.backbones import MobileNetV1Stages
from facepipe.retinaface.layers import conv_bn

_LEAK = 0.25
"""Slope of the LeakyReLU between the two convolutions of a separable block, which runtimes fuse."""


class MobileNetV1(Backbone):
    """MobileNetV1 of width 1.0 with ReLU6, as in the published 128-d FaceNet."""

    widths = (128, 256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.stages = MobileNetV1Stages(stem=32, slope=0.0)
        _replace_activations(self.stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 4, 8, 16, 32."""
        c1 = self.stages.stage1[:4](images)
        c2 = self.stages.stage1[4:](c1)
        c3 = self.stages.stage2(c2)
        return c1, c2, c3, self.stages.stage3(c3)


class SeparableBlock(nn.Module):
    """MobileNetV1's block (Howard et al., arXiv:1704.04861): depthwise 3x3, then pointwise 1x1.

    (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride). It begins with a PReLU and ends with
    BatchNorm, so that its map can be compared before the activation, where no information is lost yet.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.PReLU(inputs)
        self.depthwise = conv_bn(inputs, inputs, 3, stride, groups=inputs, slope=_LEAK)
        self.pointwise = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """pointwise(depthwise(activation(x)))."""
        y: Tensor = self.pointwise(self.depthwise(self.activation(x)))
        return y


class MobileNetV1Stride16(ChainedBackbone):
    """MobileNetV1 of width 1.0 for 112-pixel faces, with PReLU and a stride of 16 in place of 32.

    Its stem is dense and works at a stride of 2, which costs less than MobileNetV1's first blocks would at
    a stride of 1. Its maps, before activations, have sides of 56 (two), 28 (two), 14 (six) and 7 px (two).
    """

    rows = ((128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    """Channels and stride of each block."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.stem = nn.Sequential(
            conv_bn(3, 32, stride=2, slope=_LEAK), conv_bn(32, 64, slope=_LEAK), conv_bn(64, width, 1)
        )
        self.blocks = nn.ModuleList()
        for outputs, stride in self.rows:
            self.blocks.append(SeparableBlock(width, outputs, stride))
            width = outputs
        self.widths = (128, *(outputs for outputs, _ in self.rows))


def _replace_activations(network: nn.Module) -> None:
    """ReLU6 in place of ReLU: detector and encoder share MobileNetV1 but for this."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.ReLU6(inplace=True))
