"""Convolutions with BatchNorm that RetinaFace's parts are made of, in torch."""

from __future__ import annotations

from torch import nn


def conv_bn(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, slope: float | None = None
) -> nn.Sequential:
    """Convolution and BatchNorm, then LeakyReLU of that slope, or ReLU for 0; slope None: no activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def depthwise_separable(inputs: int, outputs: int, stride: int, slope: float) -> nn.Sequential:
    """MobileNetV1's block: depthwise 3x3, then pointwise 1x1."""
    return nn.Sequential(
        conv_bn(inputs, inputs, 3, stride, groups=inputs, slope=slope),
        conv_bn(inputs, outputs, 1, slope=slope),
    )


def separable_conv_bn(
    inputs: int, outputs: int, slope: float | None = None, *, size: int = 3, stride: int = 1
) -> nn.Sequential:
    """Wide convolution in a fraction of the operations: depthwise, then pointwise, linear between."""
    depthwise = conv_bn(inputs, inputs, size, stride, groups=inputs)
    return nn.Sequential(*depthwise, *conv_bn(inputs, outputs, 1, slope=slope))


def pointwise_depthwise(inputs: int, outputs: int) -> nn.Sequential:
    """YuNet's block up to its ReLU: pointwise 1x1, then depthwise 3x3 with BatchNorm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), *conv_bn(outputs, outputs, 3, groups=outputs))
