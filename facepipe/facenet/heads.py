"""FaceNet's heads: the last feature map to one embedding."""

from __future__ import annotations

from torch import Tensor, nn

from facepipe.facenet.layers import conv_bn_relu
from facepipe.retinaface.layers import conv_bn


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
        self.expand = conv_bn_relu(width, expanded, size=1)
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
