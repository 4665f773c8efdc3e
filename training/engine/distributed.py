"""Training in several processes that torchrun started: rank, sums over processes, devices."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from facepipe.core.errors import DataError, DeviceError
from facepipe.core.processors import asked_threads, granted_processors

_PATIENCE = timedelta(hours=3)
"""The others wait while the first process decodes photos or validates."""


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the processes of `torchrun`, or stay alone without it; yields the device of this process.

    Inside of another such block the processes stay together, and wait for each other at the end.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" (one each under torchrun) or "cuda:N".

    Raises:
        DeviceError: The device is not available here.
    """
    chosen = _device(device)
    if dist.is_initialized():
        yield chosen
        dist.barrier()
        return
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        # torch counts the machine's processors, not those granted; torchrun's processes have a share each.
        torch.set_num_threads(asked_threads() or min(torch.get_num_threads(), granted_processors()))
        yield chosen
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield chosen
        dist.barrier()  # the first process may still validate and save: none leaves before it
    finally:
        gc.collect()  # modules spread over processes hold the group, in cycles
        dist.destroy_process_group()


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this process validates, writes and reports."""
    return rank() == 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a number over all processes; no gradient passes."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process; collective, so every process must call it."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def different_in_ranks(values: Mapping[str, float], device: torch.device) -> list[str]:
    """Return the names of values that are not the same in all processes; collective, as `any_rank`.

    Args:
        values: The same names in every process; whole numbers below 2**53.
        device: Of this process.
    """
    if world_size() == 1:
        return []
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    low, high = own.clone(), own.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    return [name for name, differs in zip(values, (low != high).tolist(), strict=True) if differs]


def without_exchange(module: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which gradients only add up and processes do not exchange them."""
    inner = getattr(module, "_orig_mod", module)  # of a compiled one
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process before the others, which then find its files.

    Raises:
        DataError: In the others: it failed in the first, which says why.
    """
    device = torch.device("cuda" if world_size() > 1 and dist.get_backend() == "nccl" else "cpu")
    if not is_main():
        if any_rank(False, device):
            raise DataError("the first process of this run failed, and says why")
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        any_rank(failed, device)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if index >= count:
        raise DeviceError(f"device {name} is not available: torch sees {count} CUDA devices; use cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
