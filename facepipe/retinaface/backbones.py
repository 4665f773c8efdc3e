"""Backbones of RetinaFace in torch: images to C3, C4 and C5, the maps at strides 8, 16 and 32."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from facepipe.retinaface.layers import conv_bn, depthwise_separable


class MobileNetV1Stages(nn.Module):
    """MobileNetV1 (Howard et al., arXiv:1704.04861) without its classifier.

    Args:
        stem: Channels of the first convolution; all widths are multiples. 32 in the paper, 8 at width 0.25.
        slope: Of the LeakyReLUs; 0: plain ReLU.

    Attributes:
        widths: Channels of C3, C4 and C5.
    """

    def __init__(self, stem: int, slope: float) -> None:
        super().__init__()
        w = stem
        self.widths = (8 * w, 16 * w, 32 * w)
        self.stage1 = nn.Sequential(
            conv_bn(3, w, 3, 2, slope=slope),  # stride 2
            depthwise_separable(w, 2 * w, 1, slope),
            depthwise_separable(2 * w, 4 * w, 2, slope),  # stride 4
            depthwise_separable(4 * w, 4 * w, 1, slope),
            depthwise_separable(4 * w, 8 * w, 2, slope),  # stride 8
            depthwise_separable(8 * w, 8 * w, 1, slope),
        )
        self.stage2 = nn.Sequential(
            depthwise_separable(8 * w, 16 * w, 2, slope),  # stride 16
            *(depthwise_separable(16 * w, 16 * w, 1, slope) for _ in range(5)),
        )
        self.stage3 = nn.Sequential(
            depthwise_separable(16 * w, 32 * w, 2, slope),  # stride 32
            depthwise_separable(32 * w, 32 * w, 1, slope),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, h, w) to C3, C4, C5."""
        c3 = self.stage1(images)  # (batch, 8 stem, h/8, w/8)
        c4 = self.stage2(c3)  # (batch, 16 stem, h/16, w/16)
        c5 = self.stage3(c4)  # (batch, 32 stem, h/32, w/32)
        return c3, c4, c5


class ResNetStages(nn.Module):
    """torchvision's ResNet (He et al., arXiv:1512.03385) without its classifier.

    Args:
        depth: Layers by which it is called.

    Attributes:
        depth: See above.
        widths: Channels of C3, C4 and C5.
    """

    def __init__(self, depth: Literal[18, 34, 50]) -> None:
        super().__init__()
        from torchvision.models import get_model

        self.depth = depth
        self.widths = (512, 1024, 2048) if depth >= 50 else (128, 256, 512)
        self.trunk = get_model(f"resnet{depth}", weights=None)
        del self.trunk.fc, self.trunk.avgpool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, h, w) to C3, C4, C5."""
        t = self.trunk
        c2 = t.layer1(t.maxpool(t.relu(t.bn1(t.conv1(images)))))  # (batch, widths[0]/2, h/4, w/4)
        c3 = t.layer2(c2)  # (batch, widths[0], h/8, w/8)
        c4 = t.layer3(c3)  # (batch, widths[1], h/16, w/16)
        c5 = t.layer4(c4)  # (batch, widths[2], h/32, w/32)
        return c3, c4, c5
