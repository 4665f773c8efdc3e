"""What a run is going to do and how long that takes: said before the first step, and after a few of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from facepipe.core.counting import counted
from facepipe.training.engine.optimizer import Precision, autocast
from facepipe.training.engine.task import Progress

_FIRST, _LAST = 2, 10
"""Steps of this process between which the time is measured: the first ones compile and fill queues."""
_LONG_S = 60.0
"""Seconds after which it is said sooner."""
_SLOW = 1.5
"""How many times as long another precision may take before it is named."""
_REPEATS = 5
_GB = 1e9


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The extent of a run.

    Attributes:
        photos: That it trains on; crops or photos of people for an encoder.
        parameters: Of all that is trained.
        first_step: Steps that were done before.
        steps: Of the whole run.
        samples_per_step: Of all processes.
        device: Where it runs.
        processes: That train together.
        precision: Of the network's calculations.
    """

    photos: int
    parameters: int
    first_step: int
    steps: int
    samples_per_step: int
    device: torch.device
    processes: int
    precision: Precision

    def __str__(self) -> str:
        threads = f" ({counted(torch.get_num_threads(), 'thread')})" if self.device.type == "cpu" else ""
        times = self.steps * self.samples_per_step / max(1, self.photos)
        begin = f"from step {self.first_step} " if self.first_step else ""
        return (
            f"{counted(self.photos, 'photo')}, each used {times:.1f} times: {begin}to step {self.steps} with "
            f"{counted(self.samples_per_step, 'sample')} each; {self.parameters / 1e6:.2f} M parameters in "
            f"{self.precision}; {counted(self.processes, 'process')} on {self.device}{threads}"
        )


class TimeEstimate:
    """Tells once, after the first steps, how long the others will take.

    Args:
        say: Shows a line to people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._steps, self._began_at, self._is_said = 0, 0.0, False

    def add(self, progress: Progress) -> None:
        """Count a step that has ended now."""
        self._steps += 1
        if self._is_said or self._steps < _FIRST:
            return
        if self._steps == _FIRST:
            self._began_at = time.monotonic()
            return
        spent_s = time.monotonic() - self._began_at
        if self._steps == _LAST or spent_s > _LONG_S:
            self._is_said = True
            step_s = spent_s / (self._steps - _FIRST)
            left = progress.steps - progress.step
            others = f"{_duration(left * step_s)} for the other {counted(left, 'step')}"
            self._say(f"{step_s:.2f} s a step: {others}, without validation{_memory()}")


def slowdown(precision: Precision, device: torch.device) -> float:
    """Return how many times as long a convolution takes in a precision as in float32, measured now."""
    if precision == "float32" or device.type != "cpu":
        return 1.0
    return _seconds(precision, device) / _seconds("float32", device)


def precision_warning(precision: Precision, device: torch.device) -> str | None:
    """Return what is to be said of a precision that this processor has no units for; None: nothing."""
    times = slowdown(precision, device)
    if times < _SLOW:
        return None
    return (
        f"{precision} takes {times:.1f} times as long as float32 on this processor; "
        "--set loop.precision=float32 is faster"
    )


def _seconds(precision: Precision, device: torch.device) -> float:
    """The shortest of some runs; no random number is drawn."""
    pixels = torch.ones(4, 32, 40, 40, device=device)
    weight = torch.ones(32, 32, 3, 3, device=device, requires_grad=True)
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        with autocast(precision, device):
            maps = functional.conv2d(pixels, weight, padding=1)
        torch.autograd.grad(maps.float().sum(), weight)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _memory() -> str:
    """What this process has taken at most, in words; nothing where the system does not count it."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return f"; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GB:.1f} GB of memory"
