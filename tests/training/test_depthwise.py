"""Depthwise convolutions with a stride that train faster on CPUs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facepipe.retinaface.network import retinaface_mobilenet025
from facepipe.training.engine.depthwise import StridedDepthwise, replace_strided_depthwise


@pytest.mark.parametrize("side", [14, 15])
def test_a_strided_depthwise_convolution_trains_as_torchs(side: int) -> None:
    ours = StridedDepthwise(6, 6, 3, 2, 1, groups=6, bias=False)
    theirs = nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 6, side, side)
    outputs = [layer.train()(images) for layer in (ours, theirs)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    gradients = [
        torch.autograd.grad(output.square().sum(), layer.weight)[0]
        for output, layer in zip(outputs, (ours, theirs), strict=True)
    ]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)
    assert torch.equal(ours.eval()(images), theirs(images))


def test_it_replaces_those_of_a_network_and_nothing_else() -> None:
    network = retinaface_mobilenet025()
    parameters, stored = dict(network.named_parameters()), network.state_dict()
    kinds = {name: type(module) for name, module in network.named_modules()}
    for _ in range(2):  # a second time changes nothing
        replace_strided_depthwise(network)
        changed = [name for name, module in network.named_modules() if type(module) is not kinds[name]]
        assert changed == [
            f"backbone.{block}.0.0" for block in ("stage1.2", "stage1.4", "stage2.0", "stage3.0")
        ]
    assert all(isinstance(network.get_submodule(name), StridedDepthwise) for name in changed)
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert list(network.state_dict()) == list(stored)
    wrong = [
        nn.Conv2d(4, 8, 3, 2, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, 2, groups=4, dilation=2, bias=False),
    ]
    others = nn.Sequential(*wrong, nn.Conv2d(4, 4, 3, 2, groups=4), nn.Conv2d(4, 4, 3, 2, bias=False))
    replace_strided_depthwise(others)
    assert all(type(layer) is nn.Conv2d for layer in others)
