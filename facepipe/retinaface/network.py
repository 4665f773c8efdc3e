"""RetinaFace (Deng et al., arXiv:1905.00641) in torch: backbone, FPN, SSH context modules, 1x1 heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.retinaface.backbones import MobileNetV1Stages, ResNetStages
from facepipe.retinaface.layers import conv_bn

ANCHORS_PER_CELL = 2
BOX_VALUES, CLASS_VALUES, LANDMARK_VALUES = 4, 2, 10
"""Outputs of an anchor."""


class RetinaFaceOutput(NamedTuple):
    """Raw outputs at every anchor, in the order of `facepipe.retinaface.anchors`."""

    boxes: Tensor
    """(batch, anchors, 4) box regression."""
    classes: Tensor
    """(batch, anchors, 2) logits of background and face."""
    landmarks: Tensor
    """(batch, anchors, 10) landmark regression."""


class FeaturePyramid(nn.Module):
    """FPN (Lin et al., arXiv:1612.03144): 1x1 laterals, nearest upsampling, addition, 3x3 merges.

    Args:
        inputs: Channels of C3, C4 and C5.
        width: Channels of P3, P4 and P5.
        slope: Of the LeakyReLUs; 0: plain ReLU.
    """

    def __init__(self, inputs: tuple[int, int, int], width: int, slope: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn(n, width, 1, slope=slope) for n in inputs)
        self.merges = nn.ModuleList(conv_bn(width, width, slope=slope) for _ in range(2))

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 to P3, P4, P5 of the same heights and widths."""
        return self.top_down(*self.lateral_maps(c3, c4, c5))

    def lateral_maps(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 with the channels of the pyramid."""
        l3, l4, l5 = (lateral(c) for lateral, c in zip(self.laterals, (c3, c4, c5), strict=True))
        return l3, l4, l5

    def top_down(self, l3: Tensor, l4: Tensor, l5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lateral maps to P3, P4, P5: each coarser map is enlarged and added to the next finer one."""
        p5 = l5
        p4 = self.merges[1](l4 + enlarged(p5, l4))
        p3 = self.merges[0](l3 + enlarged(p4, l3))
        return p3, p4, p5


class SSH(nn.Module):
    """SSH's context module (Najibi et al., arXiv:1708.03979): 3x3, 5x5 and 7x7 fields from stacked 3x3s."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.field3 = conv_bn(width, half)
        self.reduce = conv_bn(width, quarter, slope=slope)
        self.field5 = conv_bn(quarter, quarter)
        self.widen = conv_bn(quarter, quarter, slope=slope)
        self.field7 = conv_bn(quarter, quarter)

    def forward(self, p: Tensor) -> Tensor:
        """(batch, width, h, w) to the same shape."""
        reduced = self.reduce(p)  # (batch, width/4, h, w)
        fields = [self.field3(p), self.field5(reduced), self.field7(self.widen(reduced))]
        return functional.relu(torch.cat(fields, dim=1))


class RetinaFace(nn.Module):
    """The detector's network.

    Args:
        backbone: Maps images to C3, C4, C5 of its `widths`.
        width: Channels of FPN and SSH: 64 with MobileNetV1-0.25, 256 with ResNet-50, 128 with others.
        slope: Of the LeakyReLUs in FPN and SSH; 0: plain ReLU.
    """

    def __init__(self, backbone: MobileNetV1Stages | ResNetStages, width: int, slope: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramid(backbone.widths, width, slope)
        self.contexts = nn.ModuleList(SSH(width, slope) for _ in range(3))
        self.box_heads = _heads(width, BOX_VALUES)
        self.class_heads = _heads(width, CLASS_VALUES)
        self.landmark_heads = _heads(width, LANDMARK_VALUES)

    def forward(self, images: Tensor) -> RetinaFaceOutput:
        """Preprocessed images (batch, 3, h, w), h and w multiples of 32, to raw outputs."""
        maps = self.context_maps(images)
        return RetinaFaceOutput(
            boxes=_at_anchors(self.box_heads, maps, BOX_VALUES),
            classes=_at_anchors(self.class_heads, maps, CLASS_VALUES),
            landmarks=_at_anchors(self.landmark_heads, maps, LANDMARK_VALUES),
        )

    def context_maps(self, images: Tensor) -> list[Tensor]:
        """SSH's three maps, the input of the heads: (batch, width, h, w) over 8, 16 and 32."""
        return self.in_context(self.pyramid(images, *self.backbone(images)))

    def in_context(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """P3, P4, P5 to SSH's three maps."""
        return [context(p) for context, p in zip(self.contexts, pyramid, strict=True)]

    def pyramid(self, images: Tensor, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P3, P4, P5. A variant overrides it to add maps of its own, computed from the images."""
        return self.fpn(c3, c4, c5)  # type: ignore[no-any-return]


def enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the coarse map in the height and width of the fine one, by nearest neighbours."""
    return functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


def _heads(width: int, values: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * values, 1) for _ in range(3))


def _at_anchors(heads: Iterable[nn.Module], maps: Sequence[Tensor], values: int) -> Tensor:
    """Return a head's outputs (batch, anchors, values) at the anchors of all strides."""
    outputs = [
        head(m) for head, m in zip(heads, maps, strict=True)
    ]  # (batch, anchors of a cell x values, h, w)
    return torch.cat([o.permute(0, 2, 3, 1).reshape(o.shape[0], -1, values) for o in outputs], dim=1)


def retinaface_mobilenet025() -> RetinaFace:
    """RetinaFace with MobileNetV1-0.25: 0.427 M parameters, input RGB or BGR as its card says."""
    return RetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=64, slope=0.1)


def retinaface_mobilenet025_relu() -> RetinaFace:
    """The same parameters with plain ReLUs, as some published checkpoints of this layout were trained."""
    return RetinaFace(MobileNetV1Stages(stem=8, slope=0.0), width=64, slope=0.0)


def retinaface_mobilenet050() -> RetinaFace:
    """RetinaFace with MobileNetV1-0.5: 1.66 M parameters."""
    return RetinaFace(MobileNetV1Stages(stem=16, slope=0.1), width=128, slope=0.0)


def retinaface_mobilenet100() -> RetinaFace:
    """RetinaFace with MobileNetV1: 4.16 M parameters."""
    return RetinaFace(MobileNetV1Stages(stem=32, slope=0.1), width=128, slope=0.0)


def retinaface_resnet18() -> RetinaFace:
    """RetinaFace with ResNet-18: 12.02 M parameters."""
    return RetinaFace(ResNetStages(18), width=128, slope=0.0)


def retinaface_resnet34() -> RetinaFace:
    """RetinaFace with ResNet-34: 22.12 M parameters."""
    return RetinaFace(ResNetStages(34), width=128, slope=0.0)


def retinaface_resnet50() -> RetinaFace:
    """RetinaFace with ResNet-50: 27.29 M parameters."""
    return RetinaFace(ResNetStages(50), width=256, slope=0.0)
