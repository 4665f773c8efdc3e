"""FaceNet (Schroff et al., arXiv:1503.03832): a backbone, and a head that gives one embedding per face."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.facenet.heads import DepthwiseHead, PooledHead, WholeMapHead
from facepipe.facenet.inception_resnet_v1 import InceptionResNetV1
from facepipe.facenet.layers import Backbone
from facepipe.facenet.mobilefacenet import MobileFaceNet
from facepipe.facenet.mobilenetv1 import MobileNetV1, MobileNetV1Stride16


class FaceNetOutput(NamedTuple):
    """Embeddings and feature maps of a batch of faces."""

    vectors: Tensor
    """(batch, dimensions), not yet of unit length."""
    taps: tuple[Tensor, ...]
    """The backbone's maps, fine to coarse, of which the head takes the last; distillation compares them."""


class FaceNet(nn.Module):
    """The encoder's network: a backbone, and a head on its last map.

    Args:
        backbone: Gives the feature maps.
        head: Makes an embedding of the last of them.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DepthwiseHead | PooledHead | WholeMapHead,
    ) -> None:
        super().__init__()
        self.trunk = backbone  # as its parameters are called in weight files
        self.head = head

    def forward(self, images: Tensor) -> FaceNetOutput:
        """Preprocessed aligned faces (batch, 3, side, side) to vectors and taps."""
        taps = self.trunk(images)
        return FaceNetOutput(self.head(taps[-1]), taps)


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
    """The network as it is exported: faces in, embeddings of unit length out."""

    def __init__(self, network: FaceNet) -> None:
        super().__init__()
        self.network = _with_split_prelu(network)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, side, side) to (batch, dimensions) of unit length."""
        return functional.normalize(self.network(images).vectors)


def facenet_mobilenet(dimensions: int) -> FaceNet:
    """FaceNet with MobileNetV1: 3.34 M parameters for 128 dimensions."""
    backbone = MobileNetV1()
    return FaceNet(backbone, PooledHead(backbone.widths[-1], dimensions))


def facenet_mobilefacenet(dimensions: int) -> FaceNet:
    """FaceNet with MobileFaceNet: 1.00 M parameters for 128 dimensions of 112-pixel faces."""
    backbone = MobileFaceNet()
    return FaceNet(backbone, DepthwiseHead(backbone.widths[-1], side=7, dimensions=dimensions))


def facenet_mobilenetv1(dimensions: int) -> FaceNet:
    """FaceNet with MobileNetV1 for 112-pixel faces: 5.10 M parameters for 128 dimensions."""
    backbone = MobileNetV1Stride16()
    return FaceNet(backbone, WholeMapHead(backbone.widths[-1], side=7, dimensions=dimensions))


def facenet_inception_resnet_v1(dimensions: int) -> FaceNet:
    """FaceNet with Inception-ResNet-v1: 22.79 M parameters for 128 dimensions."""
    backbone = InceptionResNetV1()
    return FaceNet(backbone, PooledHead(backbone.widths[-1], dimensions))


def _with_split_prelu(network: FaceNet) -> FaceNet:
    """Return the network itself if it has no PReLU, else a copy with `SplitPReLU` in their place."""
    if not any(isinstance(module, nn.PReLU) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.PReLU):
                setattr(module, name, SplitPReLU(child.weight))
    return network
