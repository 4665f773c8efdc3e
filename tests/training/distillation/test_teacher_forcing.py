"""Inner maps recorded by hooks, and a teacher's in their place, also in compiled networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from facepipe.training.distillation.teacher_forcing import InnerMaps


class Branches(nn.Module):
    """Two maps from one convolution each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class Network(nn.Module):
    """A block, branches, and a head on the branches' sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1, inplace=True))
        self.branches, self.head = Branches(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.branches(self.block(x))
        output: Tensor = self.head(one + other)
        return output


class Trained(nn.Module):
    """A network with its inner maps, as tasks have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = Network()
        self._maps = InnerMaps([self.network.block, self.network.branches])

    def forward(self, x: Tensor, teacher_maps: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        with self._maps.recording(teacher_maps) as maps:
            output = self.network(x)
        return output, maps


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def teacher_maps() -> list[Tensor]:
    return list(torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(2)))


def test_maps_are_those_that_the_network_computes(images: Tensor) -> None:
    module = Trained().eval()
    output, maps = module(images)
    network = module.network
    block = network.block(images)
    for ours, expected in zip(maps, (block, *network.branches(block)), strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(output, network(images))


def test_each_part_takes_the_teachers_map_before_it(images: Tensor, teacher_maps: list[Tensor]) -> None:
    module = Trained().eval()
    output, maps = module(images, teacher_maps)
    network, (block, one, other) = module.network, teacher_maps
    assert torch.equal(maps[0], network.block(images))
    assert torch.equal(maps[1], network.branches.first(block))
    assert torch.equal(output, network.head(one + other))
    assert torch.equal(module(images)[0], network(images))  # it is over when it is over

    maps[1].square().sum().backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {"branches.first.weight", "branches.first.bias"}


def test_a_copy_records_its_own_maps(images: Tensor) -> None:
    module = Trained()
    other = copy.deepcopy(module)
    with module._maps.recording() as maps:
        assert len(other(images)[1]) == 3
    assert maps == []


def test_a_failed_pass_leaves_nothing_behind(images: Tensor, teacher_maps: list[Tensor]) -> None:
    module = Trained().eval()
    before = module.network(images)
    with pytest.raises(RuntimeError, match="channels"):
        module(images[:, :2], teacher_maps)
    assert torch.equal(module.network(images), before)
    assert len(module(images)[1]) == 3


@pytest.mark.parametrize("forced", [False, True])
def test_compiled_it_has_the_same_gradients(images: Tensor, teacher_maps: list[Tensor], forced: bool) -> None:
    """Traced whole, without the compiler for the machine, which takes minutes."""
    plain = Trained()
    compiled: Any = torch.compile(copy.deepcopy(plain), backend="aot_eager", fullgraph=True)
    for module in (plain, compiled):
        output, maps = module(images, teacher_maps if forced else ())
        torch.stack([m.square().mean() for m in (output, *maps)]).sum().backward()
    pairs = zip(plain.parameters(), compiled.parameters(), strict=True)
    for ours, theirs in pairs:
        assert ours.grad is not None
        torch.testing.assert_close(theirs.grad, ours.grad)
