"""RetinaFace (Deng et al., arXiv:1905.00641): backbone, FPN, SSH context modules and 1x1 heads, in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ANCHORS_PER_CELL = 2
_HEADS = [4, 2, 10]
"""Values of an anchor's box, classes and landmarks."""


class RetinaFaceOutput(NamedTuple):
    """Raw outputs at every anchor, in the order of `facepipe.retinaface.anchors`."""

    boxes: Tensor
    """(batch, anchors, 4) box regression."""
    classes: Tensor
    """(batch, anchors, 2) logits of background and face."""
    landmarks: Tensor
    """(batch, anchors, 10) landmark regression."""


class RetinaFaceFeatures(NamedTuple):
    """Inner maps: what distillation hints compare."""

    backbone: list[Tensor]
    """Of every block."""
    fpn: tuple[Tensor, ...]
    """At strides 8, 16, 32."""
    ssh: tuple[Tensor, ...]
    """At strides 8, 16, 32."""
    detail: list[Tensor]
    """Of every block of the detail branch, before its ReLU; none without one."""


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with stride and without bias.

    On CPUs it trains as one without stride, of which places are left out: that has a gradient in a fifth of
    the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.Conv2d`."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        everywhere = functional.conv2d(x, self.weight, None, 1, self.padding, 1, self.groups)
        return everywhere[..., :: self.stride[0], :: self.stride[1]]


def conv_bn(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, slope: float | None = None
) -> nn.Sequential:
    """Convolution and BatchNorm, then LeakyReLU of that slope (0 is a ReLU); slope None: no activation."""
    convolution = StridedDepthwise if groups > 1 and stride > 1 else nn.Conv2d
    layers: list[nn.Module] = [
        convolution(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(*layers)


def depthwise_separable(inputs: int, outputs: int, stride: int, slope: float) -> nn.Sequential:
    """MobileNetV1's block: depthwise 3x3, then pointwise 1x1."""
    return nn.Sequential(
        conv_bn(inputs, inputs, 3, stride, groups=inputs, slope=slope),
        conv_bn(inputs, outputs, 1, slope=slope),
    )


def pointwise_depthwise(inputs: int, outputs: int) -> nn.Sequential:
    """YuNet's block up to its ReLU: pointwise 1x1, then depthwise 3x3 with BatchNorm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), *conv_bn(outputs, outputs, 3, groups=outputs))


def separated(inputs: int, outputs: int, *, slope: float | None = None) -> nn.Sequential:
    """A wide 3x3 convolution in an eighth of the operations: depthwise, then pointwise, linear between."""
    return nn.Sequential(*conv_bn(inputs, inputs, groups=inputs), *conv_bn(inputs, outputs, 1, slope=slope))


class MobileNetV1Stages(nn.Module):
    """MobileNetV1 up to strides 8, 16, 32 (Howard et al., arXiv:1704.04861), widths for a stem of `stem`.

    `forward` maps (batch, 3, h, w) to the maps of all blocks; those at `ends` are the last of each stride, of
    8, 16 and 32 times `stem` channels.
    """

    ends = (5, 11, 13)

    def __init__(self, stem: int, slope: float) -> None:
        super().__init__()
        w = stem
        self.widths = (8 * w, 16 * w, 32 * w)
        self.stage1 = nn.Sequential(
            conv_bn(3, w, 3, 2, slope=slope),
            *_blocks([(w, 2 * w, 1), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1), (4 * w, 8 * w, 2)], slope),
            *_blocks([(8 * w, 8 * w, 1)], slope),
        )
        self.stage2 = nn.Sequential(*_blocks([(8 * w, 16 * w, 2), *[(16 * w, 16 * w, 1)] * 5], slope))
        self.stage3 = nn.Sequential(*_blocks([(16 * w, 32 * w, 2), (32 * w, 32 * w, 1)], slope))

    def forward(self, images: Tensor, given: Sequence[Tensor] = ()) -> list[Tensor]:
        """The map of every block, the first at stride 2; see `RetinaFace.features` for `given`."""
        maps: list[Tensor] = []
        for number, block in enumerate(chain(self.stage1, self.stage2, self.stage3)):
            before = given or maps
            maps.append(block(before[number - 1] if number else images))
        return maps


def _blocks(rows: list[tuple[int, int, int]], slope: float) -> list[nn.Sequential]:
    return [depthwise_separable(inputs, outputs, stride, slope) for inputs, outputs, stride in rows]


class ResNet50Stages(nn.Module):
    """torchvision's ResNet-50 without its classifier; see `MobileNetV1Stages`, a stage being a block."""

    ends = (1, 2, 3)

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        self.widths = (512, 1024, 2048)
        trunk = resnet50(weights=None)
        del trunk.fc, trunk.avgpool
        self.trunk = trunk

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8, 16 and 32."""
        t = self.trunk
        c0 = t.layer1(t.maxpool(t.relu(t.bn1(t.conv1(images)))))
        c1 = t.layer2(c0)
        c2 = t.layer3(c1)
        return [c0, c1, c2, t.layer4(c2)]


class SmallFaceBranch(nn.Module):
    """YuNet (Wu et al., Machine Intelligence Research 20, 2023) up to its finest map before its heads.

    MobileNetV1-0.25 has 32 channels at a stride of 4, too few to tell faces of some ten pixels; this has 64.
    Its coarser maps are small and cheap, and tell the finest what is around a few pixels.

    `ends` are its last maps of strides 8 and 16, all of `width` channels.
    """

    width = 64
    ends = (15, 13)
    _halved = (2, 6, 8, 10)
    _finer: ClassVar[Mapping[int, int]] = {13: 9, 14: 7}

    def __init__(self) -> None:
        super().__init__()
        w = self.width
        rows = [(16, 16), (16, 16), (16, w), *[(w, w)] * 12]
        self.blocks = nn.ModuleList([conv_bn(3, 16, 3, 2), *(pointwise_depthwise(*row) for row in rows)])

    def forward(self, images: Tensor, given: Sequence[Tensor] = ()) -> list[Tensor]:
        """The map of every block before its ReLU, the last of stride 8; `given` as in `RetinaFace.features`.

        Strides are 2, 2, 4, 4, 4, 4, 8, 8, 16, 16, 32, 32, and back: 32, 16, 8, 8.
        """
        maps: list[Tensor] = []
        active: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            maps.append(block(self._entering(number, active) if number else images))
            active.append(functional.relu(given[number] if given else maps[-1]))
        return maps

    def _entering(self, number: int, active: list[Tensor]) -> Tensor:
        """What a block sees: the map before it, in half the size, or enlarged and added to a finer one."""
        before = active[number - 1]
        if number in self._halved:
            return functional.max_pool2d(before, 2)
        if number in self._finer:
            finer = active[self._finer[number]]
            return finer + functional.interpolate(before, size=finer.shape[-2:], mode="nearest")
        return before


Convolution = Callable[..., nn.Sequential]
"""Makes a 3x3 convolution with BatchNorm of (inputs, outputs, slope=...): `conv_bn` or `separated`."""


class FeaturePyramid(nn.Module):
    """FPN (Lin et al., arXiv:1612.03144): 1x1 laterals, nearest upsampling, addition, 3x3 merge."""

    def __init__(
        self, inputs: tuple[int, int, int], width: int, slope: float, finest: Convolution = conv_bn
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn(n, width, 1, slope=slope) for n in inputs)
        self.merges = nn.ModuleList(
            convolution(width, width, slope=slope) for convolution in (finest, conv_bn)
        )

    def forward(
        self, c1: Tensor, c2: Tensor, c3: Tensor, detail: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Three maps of equal width from three of the backbone, and what is added to the first two."""
        p1, p2, p3 = (lateral(c) for lateral, c in zip(self.laterals, (c1, c2, c3), strict=True))
        if detail:
            p1, p2 = p1 + detail[0], p2 + detail[1]
        p2 = self.merges[1](p2 + functional.interpolate(p3, size=p2.shape[-2:], mode="nearest"))
        p1 = self.merges[0](p1 + functional.interpolate(p2, size=p1.shape[-2:], mode="nearest"))
        return p1, p2, p3


class ContextModule(nn.Module):
    """SSH's context module (Najibi et al., arXiv:1708.03979): 3x3, 5x5 and 7x7 fields from stacked 3x3s."""

    def __init__(self, width: int, slope: float, convolution: Convolution = conv_bn) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.field3 = convolution(width, half)
        self.reduce = convolution(width, quarter, slope=slope)
        self.field5 = conv_bn(quarter, quarter)
        self.widen = conv_bn(quarter, quarter, slope=slope)
        self.field7 = conv_bn(quarter, quarter)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to the same shape."""
        reduced = self.reduce(x)
        fields = [self.field3(x), self.field5(reduced), self.field7(self.widen(reduced))]
        return functional.relu(torch.cat(fields, dim=1))


class RetinaFace(nn.Module):
    """The detector's network.

    Args:
        backbone: Maps images to maps of which those at its `ends` have strides 8, 16, 32 and its `widths`.
        width: Channels of the FPN: 64 beside MobileNetV1-0.25, 256 beside ResNet-50.
        slope: Of the LeakyReLUs in FPN and SSH; 0: plain ReLU.
        detail: Fine maps for faces of few pixels, added to the FPN's at strides of 8 and 16. They count for
            nothing at first: the network says what it says without them.
        finest: Of the wide convolutions at a stride of 8, near half of all operations with MobileNetV1-0.25.
    """

    def __init__(
        self,
        backbone: MobileNetV1Stages | ResNet50Stages,
        width: int,
        slope: float,
        detail: SmallFaceBranch | None = None,
        finest: Convolution = conv_bn,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramid(backbone.widths, width, slope, finest)
        self.detail = detail
        if detail is not None:
            self.detail_laterals = nn.ModuleList(_silent_lateral(detail.width, width) for _ in detail.ends)
        self.contexts = nn.ModuleList(
            ContextModule(width, slope, convolution) for convolution in (finest, conv_bn, conv_bn)
        )
        self.box_heads = nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * 4, 1) for _ in range(3))
        self.class_heads = nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * 2, 1) for _ in range(3))
        self.landmark_heads = nn.ModuleList(nn.Conv2d(width, ANCHORS_PER_CELL * 10, 1) for _ in range(3))

    def forward(self, images: Tensor) -> RetinaFaceOutput:
        """Preprocessed images (batch, 3, h, w), h and w multiples of 32, to raw outputs."""
        return self.heads(self.features(images))

    def features(self, images: Tensor, given: RetinaFaceFeatures | None = None) -> RetinaFaceFeatures:
        """The maps of backbone, FPN and SSH.

        Args:
            images: See `forward`.
            given: Maps of the same shapes, which MobileNetV1's blocks, FPN and SSH take in place of the maps
                before them, so that each learns alone; None: they take those. The detail branch takes none.
        """
        maps = self.backbone(images, given.backbone) if given else self.backbone(images)
        sources = given.backbone if given else maps
        detail: list[Tensor] = []
        added: list[Tensor] = []
        if self.detail is not None:
            detail = self.detail(images)
            last = (functional.relu(detail[end]) for end in self.detail.ends)
            added = [lateral(m) for lateral, m in zip(self.detail_laterals, last, strict=True)]
        fpn: tuple[Tensor, ...] = self.fpn(*(sources[end] for end in self.backbone.ends), added)
        before = given.fpn if given else fpn
        ssh = tuple(m(p) for m, p in zip(self.contexts, before, strict=True))
        return RetinaFaceFeatures(maps, fpn, ssh, detail)

    def stride8_modules(self) -> list[nn.Module]:
        """All that what is said at the finest stride depends on; SSH and heads of the others are left."""
        branch = [] if self.detail is None else [self.detail, self.detail_laterals]
        heads = [self.box_heads[0], self.class_heads[0], self.landmark_heads[0]]
        return [self.backbone, *branch, self.fpn, self.contexts[0], *heads]

    def heads(self, features: RetinaFaceFeatures) -> RetinaFaceOutput:
        """The 1x1 heads over the SSH maps; those of a stride are one convolution."""
        heads = zip(self.box_heads, self.class_heads, self.landmark_heads, strict=True)
        rows = [_per_anchor(of_stride, m) for of_stride, m in zip(heads, features.ssh, strict=True)]
        return RetinaFaceOutput(*torch.split(torch.cat(rows, dim=1), _HEADS, dim=-1))


def add_class_bias(network: RetinaFace, logit: float) -> None:
    """Add to what the strides of 16 and 32 say of faces: those of all sizes are ranked by one score."""
    with torch.no_grad():
        for head in network.class_heads[1:]:
            head.get_parameter("bias")[1::2] += logit


def _silent_lateral(inputs: int, outputs: int) -> nn.Sequential:
    """BatchNorm and a 1x1 convolution of zeros."""
    convolution = nn.Conv2d(inputs, outputs, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.BatchNorm2d(inputs), convolution)


def _per_anchor(heads: Sequence[nn.Module], m: Tensor) -> Tensor:
    """What a stride's three heads say of each anchor, side by side: (batch, anchors, 16)."""
    channels = torch.arange(ANCHORS_PER_CELL * sum(_HEADS), device=m.device)
    of_heads = torch.split(channels, [ANCHORS_PER_CELL * n for n in _HEADS])
    by_anchor = torch.cat([of_head.view(ANCHORS_PER_CELL, -1) for of_head in of_heads], dim=1).flatten()
    weight, bias = (
        torch.cat([head.get_parameter(name) for head in heads])[by_anchor] for name in ("weight", "bias")
    )
    return functional.conv2d(m, weight, bias).permute(0, 2, 3, 1).reshape(m.shape[0], -1, sum(_HEADS))


class RetinaFaceServing(nn.Module):
    """What is exported for serving: boxes, face probability, landmarks."""

    def __init__(self, network: RetinaFace) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (batch, 3, h, w) to (batch, anchors, 4), (batch, anchors, 2) probabilities, (.., 10)."""
        boxes, classes, landmarks = self.network(images)
        return boxes, functional.softmax(classes, dim=-1), landmarks


def retinaface_mobilenet025() -> RetinaFace:
    """RetinaFace with MobileNetV1-0.25: 0.427 M parameters, input RGB or BGR as its card says."""
    return RetinaFace(MobileNetV1Stages(stem=8, slope=0.1), width=64, slope=0.1)


def retinaface_mobilenet025_detail() -> RetinaFace:
    """The same with a `SmallFaceBranch` and `separated` finest parts: 0.441 M parameters.

    A fifth more operations than `retinaface_mobilenet025`.
    """
    stages = MobileNetV1Stages(stem=8, slope=0.1)
    return RetinaFace(stages, width=64, slope=0.1, detail=SmallFaceBranch(), finest=separated)


def retinaface_mobilenet025_relu() -> RetinaFace:
    """The same parameters with plain ReLUs, as some published checkpoints of this layout were trained."""
    return RetinaFace(MobileNetV1Stages(stem=8, slope=0.0), width=64, slope=0.0)


def retinaface_resnet50() -> RetinaFace:
    """RetinaFace with ResNet-50: 27.29 M parameters."""
    return RetinaFace(ResNet50Stages(), width=256, slope=0.0)
