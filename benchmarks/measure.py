"""What all benchmarks share: taking turns, what a network costs, what this machine can do, and tables."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

_PEAK_SIDE = 2048
_COPY_BYTES = 1 << 28
_INSTRUCTIONS = ("amx_bf16", "avx512f", "avx2", "asimd")
"""Kinds of vector units as Linux names them, the strongest first: networks run at other ratios on each."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network is, whatever runs it.

    Attributes:
        parameters: All that are learned.
        macs: Multiply-adds of convolutions and linear layers, for one input.
    """

    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Peak:
    """What this machine does at its best, with all threads.

    Attributes:
        flops: Floating point operations a second of a product of two matrices of 2048 x 2048 float32.
        bytes_per_s: Read and written by a copy of 256 MB.
    """

    flops: float
    bytes_per_s: float


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way. They take turns, so that a busy machine slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()  # not timed: it finds caches and memory as the others left them
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def cost(network: nn.Module, inputs: Tensor) -> Cost:
    """Of one forward pass with inputs of one photo or face."""
    macs = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # Every output value is a sum over one row of the weights.
        macs += output.numel() * weight[0].numel()

    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        network.eval()(inputs)
    for hook in hooks:
        hook.remove()
    return Cost(sum(parameter.numel() for parameter in network.parameters()), macs)


def peak(rounds: int = 5) -> Peak:
    """Measured now."""
    first, second = torch.rand(2, _PEAK_SIDE, _PEAK_SIDE)
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    taken = in_turns({"product": lambda: first @ second, "copy": lambda: target.copy_(source)}, rounds)
    return Peak(2 * _PEAK_SIDE**3 / taken["product"], 2 * _COPY_BYTES / taken["copy"])


def kind_of_machine() -> str:
    """Machine and strongest vector unit, "x86_64 avx512f": ratios are comparable on one kind only."""
    try:
        told = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:  # not Linux
        told = set()
    units = next((unit for unit in _INSTRUCTIONS if unit in told), "unknown")
    return f"{platform.machine()} {units}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, as the docs have it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
