"""Muon for matrices and dense convolutions, AdamW for all else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facepipe.core.errors import UsageError
from facepipe.training.engine.muon import Muon, hidden_matrices, orthogonalised
from facepipe.training.engine.optimizer import OptimiserConfig, build_optimiser

_MUON = OptimiserConfig(name="muon", learning_rate=0.01, momentum=0.95, weight_decay=0.1)


def _gradients(weight: torch.Tensor, steps: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(weight.shape, generator=generator) for _ in range(steps)]


def _trained(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the weights after some steps along given gradients."""
    moves = {name: _gradients(p) for name, p in module.named_parameters()}
    for step in range(5):
        for name, parameter in module.named_parameters():
            parameter.grad = moves[name][step]
        optimiser.step()
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 24, 3, bias=False),
        nn.Conv2d(24, 8, 1),
        nn.PReLU(8),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (33, 33)])
def test_singular_values_become_nearly_equal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalised(matrix)
    values = torch.linalg.svdvals(ours)
    # The least values of a square one may take more iterations.
    assert 0.6 < values[len(values) // 2] <= values[0] < 1.3
    assert torch.nn.functional.cosine_similarity(ours.flatten(), (u @ v).flatten(), dim=0) > 0.96
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has had Muon since 2.9")
def test_linear_layers_move_as_by_torchs() -> None:
    def linear() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(24, 40, bias=False)

    def of_ours(dtype: torch.dtype) -> torch.Tensor:
        layer = linear()
        group = {"params": [layer.weight], "weight_decay": 0.1, "momentum": 0.95, "matrix_rate": 0.2}
        return _trained(layer, Muon([group], 0.01, dtype))["weight"]

    layer = linear()
    torchs = torch.optim.Muon(layer.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    expected = _trained(layer, torchs)["weight"]
    way = (expected - linear().weight.detach()).norm()
    # Theirs is in bfloat16, whose sums differ a little with their order.
    assert (of_ours(torch.bfloat16) - expected).norm() < 0.03 * way
    assert (of_ours(torch.float32) - expected).norm() < 0.1 * way


def test_a_dense_convolution_moves_like_the_matrix_of_its_patches() -> None:
    convolution = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    linear = nn.Linear(36, 6, bias=False)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
    moves = _gradients(convolution.weight)
    for module in (convolution, linear):
        optimiser = build_optimiser(module, _MUON, 16)
        for move in moves:
            module.weight.grad = move.reshape(module.weight.shape)
            optimiser.step()
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight)


def test_all_other_weights_move_as_by_adamw() -> None:
    ours, theirs = _layers(), _layers()
    matrices = {id(p) for p in hidden_matrices(ours)}
    names = {name for name, p in ours.named_parameters() if id(p) in matrices}
    assert names == {"3.weight", "4.weight", "6.weight"}
    moved = _trained(ours, build_optimiser(ours, _MUON, 16))
    expected = _trained(
        theirs, build_optimiser(theirs, OptimiserConfig(learning_rate=0.01, weight_decay=0.1), 16)
    )
    for name in moved:
        assert torch.equal(moved[name], expected[name]) == (name not in names), name


def test_updates_are_as_large_as_asked_for() -> None:
    layer = nn.Linear(64, 64, bias=False)
    before = layer.weight.detach().clone()
    config = OptimiserConfig(name="muon", learning_rate=0.01, matrix_rate=0.5, weight_decay=0.0)
    optimiser = build_optimiser(layer, config, 16)
    layer.weight.grad = _gradients(layer.weight, 1)[0]
    optimiser.step()
    size = (layer.weight.detach() - before).square().mean().sqrt()
    assert float(size) == pytest.approx(0.005, rel=0.2)


def test_frozen_matrices_stay() -> None:
    layers = _layers()
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    optimiser = build_optimiser(layers, _MUON, 16)
    for name, parameter in layers.named_parameters():
        parameter.grad = None if name.startswith("3.") else torch.ones_like(parameter)
    optimiser.step()
    after = layers.state_dict()
    assert torch.equal(after["3.weight"], before["3.weight"])
    assert not torch.equal(after["4.weight"], before["4.weight"])


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="matrix_rate: expected a positive number"):
        OptimiserConfig(name="muon", matrix_rate=0)
