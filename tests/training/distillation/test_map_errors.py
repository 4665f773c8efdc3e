"""Errors of inner maps against a teacher's: their size, and how their gradients lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from facepipe.training.distillation.map_errors import map_errors


def test_errors_are_shares_of_the_teachers_variance() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 3, 5, 4)
    expected = ((ours - theirs) ** 2).mean() / theirs.var()
    errors = map_errors([ours, theirs, ours], [theirs, theirs, ours + 1])
    assert errors.tolist() == pytest.approx([expected.item(), 0.0, 1 / ours.var().item()], rel=1e-5)


@pytest.mark.parametrize(("precision", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_gradients_are_those_of_torchs_own_operations(precision: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 3, 5, 4, dtype=precision)
    ours.requires_grad_()
    factor = torch.tensor([3.0, 0.5])
    (map_errors([ours, ours], [theirs, theirs + 1]) * factor).sum().backward()
    assert ours.grad is not None
    exact = ours.detach().float().requires_grad_()
    for share, their in zip(factor, [theirs.float(), (theirs + 1).float()], strict=True):
        (share * functional.mse_loss(exact, their) / their.var()).backward()
    assert exact.grad is not None
    assert (ours.grad - exact.grad).norm() <= within * exact.grad.norm()


def test_a_flat_map_is_not_divided_by_zero() -> None:
    flat = torch.ones(1, 2, 2, 2)
    assert map_errors([flat + 1e-3], [flat]).item() == pytest.approx(1.0, rel=1e-3)


def test_maps_are_compared_pair_by_pair() -> None:
    with pytest.raises(ValueError, match="shorter"):
        map_errors([torch.zeros(1, 2, 2, 2)] * 2, [torch.zeros(1, 2, 2, 2)])


def test_maps_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        map_errors([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 2, 4, 3)])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_teacher", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_their_channels_last(precision: torch.dtype, of_teacher: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 3, 5, 4, dtype=precision)
    ours = ours.contiguous(memory_format=torch.channels_last).requires_grad_()
    map_errors([ours], [theirs.contiguous(memory_format=of_teacher)]).sum().backward()
    assert ours.grad is not None
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)
