"""FaceNet (Schroff et al., arXiv:1503.03832): one of five trunks and a head that gives one vector a face."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.core.errors import MissingExtraError
from facepipe.retinaface.backbones import MobileNetV1Stages
from facepipe.retinaface.layers import conv_bn

DENSE_WIDTHS = (48, 96, 192)
DENSE_BLOCKS = (1, 2, 2)
"""Of the dense residual trunk, unless a weight's parameters or a recipe say otherwise."""


_LEAK = 0.25
"""Slope of the LeakyReLU between the two convolutions of a separable block, which runtimes fuse."""


class FaceNetOutput(NamedTuple):
    """What the network says of a batch of faces."""

    vectors: Tensor
    """(batch, dimensions), not yet of unit length."""
    taps: tuple[Tensor, ...]
    """Maps of the trunk, fine to coarse, the head's last: what a distillation hint compares."""


class ResidualBlock(nn.Module):
    """Two dense 3x3 convolutions beside an identity; (batch, width, h, w) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv_bn_relu(width, width)
        self.second = conv_bn(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """relu(x + second(first(x)))."""
        return functional.relu(x + self.second(self.first(x)), inplace=True)


class DenseResidual(nn.Module):
    """A small residual trunk of dense 3x3 convolutions, which CPUs run near their peak.

    Args:
        widths: Channels of the three stages, at strides 4, 8 and 16.
        blocks: Residual blocks of each.
    """

    def __init__(self, widths: tuple[int, int, int], blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.widths = widths
        w1, w2, w3 = widths
        self.stem = nn.Sequential(_conv_bn_relu(3, w1 // 2, stride=2), _conv_bn_relu(w1 // 2, w1, stride=2))
        self.stage1 = nn.Sequential(*[ResidualBlock(w1) for _ in range(blocks[0])])
        self.stage2 = nn.Sequential(
            _conv_bn_relu(w1, w2, stride=2), *[ResidualBlock(w2) for _ in range(blocks[1])]
        )
        self.stage3 = nn.Sequential(
            _conv_bn_relu(w2, w3, stride=2), *[ResidualBlock(w3) for _ in range(blocks[2])]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 4, 8, 16: sides 28, 14, 7 for 112-pixel faces."""
        c1 = self.stage1(self.stem(images))
        c2 = self.stage2(c1)
        return c1, c2, self.stage3(c2)


class MobileNetV1Trunk(nn.Module):
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


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., arXiv:1801.04381) with ReLU: wider, depthwise 3x3, narrow again.

    (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride); added to x where both are alike.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv_bn_relu(inputs, wide, size=1)
        self.depthwise = _conv_bn_relu(wide, wide, stride=stride, groups=wide)
        self.project = conv_bn(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x + project(depthwise(expand(x))), or without x."""
        narrow: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + narrow if self.adds else narrow


class MobileFaceNetTrunk(nn.Module):
    """MobileFaceNet (Chen et al., arXiv:1804.07573) with ReLU, a pointwise layer more in its stem; 112 px.

    Its maps are the stem's and every block's.
    """

    rows = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
    """Expansion, channels, blocks, stride of the first."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.stem = nn.Sequential(
            _conv_bn_relu(3, width, stride=2),
            _conv_bn_relu(width, width, groups=width),
            _conv_bn_relu(width, width, size=1),
        )
        self.blocks = nn.ModuleList()
        for expansion, outputs, blocks, stride in self.rows:
            for number in range(blocks):
                step = stride if number == 0 else 1
                self.blocks.append(InvertedResidual(width, outputs, step, expansion))
                width = outputs
        self.widths = (64, *(outputs for _, outputs, blocks, _ in self.rows for _ in range(blocks)))

    def forward(self, images: Tensor, given: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Maps at strides 2 (one), 4 (five), 8 (seven) and 16 (three).

        Args:
            images: Preprocessed aligned faces (batch, 3, 112, 112).
            given: See `FaceNet.forward`.
        """
        return _chained(self.stem(images), self.blocks, given)


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
        """See the class."""
        y: Tensor = self.pointwise(self.depthwise(self.activation(x)))
        return y


class MobileNetV1Trunk112(nn.Module):
    """MobileNetV1 of width 1.0 for 112-pixel faces, with PReLU and a stride of 16 in place of 32.

    Its stem is dense and works at a stride of 2, which costs less than MobileNetV1's first blocks would at
    a stride of 1. Its maps are the stem's and every block's, before their activation.
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

    def forward(self, images: Tensor, given: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Maps of sides 56 (two), 28 (two), 14 (six) and 7 (two).

        Args:
            images: Preprocessed aligned faces (batch, 3, 112, 112).
            given: See `FaceNet.forward`.
        """
        return _chained(self.stem(images), self.blocks, given)


class InceptionResNetV1Trunk(nn.Module):
    """Inception-ResNet-v1 of the facenet-pytorch package without its head.

    Its convolutions are not padded: a 160-pixel face gives maps of 17, 8 and 3.

    Raises:
        MissingExtraError: facenet-pytorch is not installed.
    """

    widths = (256, 896, 1792)

    def __init__(self) -> None:
        super().__init__()
        try:
            from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
        except ImportError as error:
            raise MissingExtraError("Inception-ResNet-v1", "train") from error
        model = InceptionResnetV1()
        del model.avgpool_1a, model.dropout, model.last_linear, model.last_bn
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 8, 16, 32."""
        m = self.model
        stem = m.maxpool_3a(m.conv2d_2b(m.conv2d_2a(m.conv2d_1a(images))))
        c1 = m.repeat_1(m.conv2d_4b(m.conv2d_4a(m.conv2d_3b(stem))))
        c2 = m.repeat_2(m.mixed_6a(c1))
        return c1, c2, m.block8(m.repeat_3(m.mixed_7a(c2)))


class PooledHead(nn.Module):
    """Average pooling, dropout, linear without bias, BatchNorm: the head of the published FaceNets."""

    def __init__(self, width: int, dimensions: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, dimensions, bias=False)
        self.bn = nn.BatchNorm1d(dimensions, eps=1e-3)  # the published weights' epsilon

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch, dimensions)."""
        vectors: Tensor = self.bn(self.linear(self.dropout(features.mean(dim=(2, 3)))))
        return vectors


class DepthwiseHead(nn.Module):
    """1x1 convolution, a depthwise one over the whole map, linear without bias, BatchNorm.

    The depthwise weights let every place of an aligned face count differently (Chen et al., MobileFaceNets,
    arXiv:1804.07573), which average pooling can't.

    Args:
        width: Channels of the map.
        side: Its height and width.
        dimensions: Length of a vector.
        expanded: Channels in between.
    """

    def __init__(self, width: int, side: int, dimensions: int, expanded: int = 512) -> None:
        super().__init__()
        self.expand = _conv_bn_relu(width, expanded, size=1)
        self.spatial = nn.Sequential(
            nn.Conv2d(expanded, expanded, side, groups=expanded, bias=False), nn.BatchNorm2d(expanded)
        )
        self.linear = nn.Linear(expanded, dimensions, bias=False)
        self.bn = nn.BatchNorm1d(dimensions)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width, side, side) to (batch, dimensions)."""
        vectors: Tensor = self.bn(self.linear(self.spatial(self.expand(features)).flatten(1)))
        return vectors


class WholeMapHead(nn.Module):
    """PReLU, a 1x1 convolution to fewer channels, linear over all places of the map, BatchNorm.

    Args:
        width: Channels of the map.
        side: Its height and width.
        dimensions: Length of a vector.
        reduced: Channels that every place keeps.
    """

    def __init__(self, width: int, side: int, dimensions: int, reduced: int = 160) -> None:
        super().__init__()
        self.activation = nn.PReLU(width)
        self.reduce = conv_bn(width, reduced, 1)
        self.linear = nn.Linear(reduced * side * side, dimensions, bias=False)
        self.bn = nn.BatchNorm1d(dimensions)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width, side, side) to (batch, dimensions)."""
        vectors: Tensor = self.bn(self.linear(self.reduce(self.activation(features)).flatten(1)))
        return vectors


class FaceNet(nn.Module):
    """The encoder's network: a trunk, and a head on its last map."""

    def __init__(
        self,
        trunk: DenseResidual
        | MobileNetV1Trunk
        | MobileNetV1Trunk112
        | MobileFaceNetTrunk
        | InceptionResNetV1Trunk,
        head: DepthwiseHead | PooledHead | WholeMapHead,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor, given: Sequence[Tensor] = ()) -> FaceNetOutput:
        """Preprocessed aligned faces (batch, 3, side, side) to vectors and taps.

        Args:
            images: See above.
            given: Maps of the shapes of all taps, which the head and the blocks of a trunk that has them take
                in place of the map before them, so that each learns alone; empty: they take that map.
        """
        taps = self.trunk(images, given) if given else self.trunk(images)
        return FaceNetOutput(self.head(given[-1] if given else taps[-1]), taps)


class SplitPReLU(nn.Module):
    """PReLU as the sum of two depthwise 1x1 convolutions, (1 - a) relu(x) + a x.

    The same function; ONNX Runtime fuses it with its neighbours and keeps its blocked layout, which a PReLU
    node makes it leave: the whole network runs in two thirds of the time.
    """

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        width = len(slopes)
        self.positive = nn.Conv2d(width, width, 1, groups=width, bias=False)
        self.linear = nn.Conv2d(width, width, 1, groups=width, bias=False)
        with torch.no_grad():
            self.positive.weight.copy_((1 - slopes).view(-1, 1, 1, 1))
            self.linear.weight.copy_(slopes.view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to the same shape."""
        return self.positive(functional.relu(x)) + self.linear(x)  # type: ignore[no-any-return]


class FaceNetServing(nn.Module):
    """What is exported for serving: faces in, unit vectors out."""

    def __init__(self, network: FaceNet) -> None:
        super().__init__()
        self.network = _with_split_prelu(network)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, side, side) to (batch, dimensions) of unit length."""
        return functional.normalize(self.network(images).vectors)


def facenet_dense(
    dimensions: int,
    widths: tuple[int, int, int] = DENSE_WIDTHS,
    blocks: tuple[int, int, int] = DENSE_BLOCKS,
    map_side: int = 7,
) -> FaceNet:
    """FaceNet with the dense residual trunk: 2.11 M parameters for 128 dimensions of 112-pixel faces.

    Args:
        dimensions: Length of a vector.
        widths, blocks: See `DenseResidual`.
        map_side: Of the coarsest map, a sixteenth of the input's side: the head has weights for each place.
    """
    head = DepthwiseHead(widths[-1], side=map_side, dimensions=dimensions)
    return FaceNet(DenseResidual(widths, blocks), head)


def facenet_dense_like(dimensions: int, parameters: Mapping[str, Tensor]) -> FaceNet:
    """FaceNet with the dense residual trunk, as wide and deep as parameters of such a network say it is."""

    def width(layer: str, default: int) -> int:
        weight = parameters.get(f"trunk.{layer}.weight")
        return default if weight is None else len(weight)

    def blocks(stage: int) -> int:
        starts = (name.split(".first.") for name in parameters if name.startswith(f"trunk.stage{stage}."))
        return len({block for block, *rest in starts if rest})

    spatial = parameters.get("head.spatial.0.weight")
    w1, w2, w3 = DENSE_WIDTHS
    return facenet_dense(
        dimensions,
        (width("stem.1.0", w1), width("stage2.0.0", w2), width("stage3.0.0", w3)),
        (blocks(1), blocks(2), blocks(3)),
        map_side=7 if spatial is None else spatial.shape[-1],
    )


def facenet_mobilenet(dimensions: int) -> FaceNet:
    """FaceNet with MobileNetV1: 3.34 M parameters for 128 dimensions."""
    trunk = MobileNetV1Trunk()
    return FaceNet(trunk, PooledHead(trunk.widths[-1], dimensions))


def facenet_mobilefacenet(dimensions: int) -> FaceNet:
    """FaceNet with MobileFaceNet: 1.00 M parameters for 128 dimensions of 112-pixel faces."""
    trunk = MobileFaceNetTrunk()
    return FaceNet(trunk, DepthwiseHead(trunk.widths[-1], side=7, dimensions=dimensions))


def facenet_mobilenetv1(dimensions: int) -> FaceNet:
    """FaceNet with MobileNetV1 for 112-pixel faces: 5.10 M parameters for 128 dimensions."""
    trunk = MobileNetV1Trunk112()
    return FaceNet(trunk, WholeMapHead(trunk.widths[-1], side=7, dimensions=dimensions))


def facenet_inception_resnet_v1(dimensions: int) -> FaceNet:
    """FaceNet with Inception-ResNet-v1: 22.79 M parameters for 128 dimensions."""
    trunk = InceptionResNetV1Trunk()
    return FaceNet(trunk, PooledHead(trunk.widths[-1], dimensions))


def _chained(first: Tensor, blocks: Iterable[nn.Module], given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first map and every block's; see `FaceNet.forward` for `given`."""
    maps = [first]
    for number, block in enumerate(blocks):
        maps.append(block(given[number] if given else maps[-1]))
    return tuple(maps)


def _with_split_prelu(network: FaceNet) -> FaceNet:
    """The network itself if it has no PReLU, else a copy with `SplitPReLU` in their place."""
    if not any(isinstance(module, nn.PReLU) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.PReLU):
                setattr(module, name, SplitPReLU(child.weight))
    return network


def _conv_bn_relu(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, size, stride, groups), nn.ReLU(inplace=True))


def _replace_activations(network: nn.Module) -> None:
    """ReLU6 in place of LeakyReLU: detector and encoder share MobileNetV1 but for this."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.ReLU6(inplace=True))
