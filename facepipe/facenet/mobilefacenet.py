"""MobileFaceNet (Chen et al., arXiv:1804.07573)."""

from __future__ import annotations

from torch import Tensor, nn

from facepipe.facenet.layers import ChainedBackbone, conv_bn_relu
from facepipe.retinaface.layers import conv_bn


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., arXiv:1801.04381) with ReLU: wider, depthwise 3x3, narrow again.

    (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride); added to x where both are alike.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = conv_bn_relu(inputs, wide, size=1)
        self.depthwise = conv_bn_relu(wide, wide, stride=stride, groups=wide)
        self.project = conv_bn(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x + project(depthwise(expand(x))), or without x."""
        narrow: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + narrow if self.adds else narrow


class MobileFaceNet(ChainedBackbone):
    """MobileFaceNet (Chen et al., arXiv:1804.07573) with ReLU, a pointwise layer more in its stem; 112 px.

    Its maps are at strides 2 (one), 4 (five), 8 (seven) and 16 (three).
    """

    rows = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
    """Expansion, channels, blocks, stride of the first."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.stem = nn.Sequential(
            conv_bn_relu(3, width, stride=2),
            conv_bn_relu(width, width, groups=width),
            conv_bn_relu(width, width, size=1),
        )
        self.blocks = nn.ModuleList()
        for expansion, outputs, blocks, stride in self.rows:
            for number in range(blocks):
                step = stride if number == 0 else 1
                self.blocks.append(InvertedResidual(width, outputs, step, expansion))
                width = outputs
        self.widths = (64, *(outputs for _, outputs, blocks, _ in self.rows for _ in range(blocks)))
