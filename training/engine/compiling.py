"""A trial of torch.compile before a run depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import nn

from facepipe.core.errors import FacepipeError, one_line

_LOG = logging.getLogger("facepipe.training")
_ROUNDS = 3


def compiles(step: Callable[[], object], module: nn.Module, device: torch.device) -> bool:
    """Try a step of compiled functions, forward and backward; log a warning where it fails.

    Functions are compiled when they are first called, and their gradients when those are, so that only a
    step of the real network shows it. Gradients, statistics and random state are as before afterwards.

    Args:
        step: Computes losses and gradients.
        module: What is trained.
        device: Of the module.

    Raises:
        FacepipeError: The step fails for a reason of its own.
    """
    with _undone(module, device):
        try:
            step()
        except FacepipeError:
            raise
        except Exception as error:  # whatever compilers and their drivers raise
            _warn(error)
            return False
    return True


def is_faster_compiled(step: Callable[[], object], module: nn.Module, device: torch.device) -> bool:
    """Time a step of functions that are compiled by now, in turns with the same uncompiled.

    The shortest of three each are compared; where compiling does not pay, as with a teacher and AVX2 alone,
    a line of the log says so. Gradients, statistics and random state are as before afterwards.
    """
    seconds: dict[str, list[float]] = {"force_eager": [], "default": []}
    with _undone(module, device):
        for _ in range(_ROUNDS):
            for stance, times in seconds.items():
                with torch.compiler.set_stance(stance):  # type: ignore[arg-type]
                    began = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - began)
    uncompiled, compiled = min(seconds["force_eager"]), min(seconds["default"])
    if compiled < uncompiled:
        return True
    _LOG.info(
        "torch.compile does not pay here, so it is not used: a step takes %.2f s with it and %.2f s without",
        compiled,
        uncompiled,
    )
    return False


@contextmanager
def _undone(module: nn.Module, device: torch.device) -> Generator[None]:
    """Take back what steps change: gradients, statistics and random state."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _warn(error: Exception) -> None:
    reason = one_line(error)
    _LOG.warning(
        "torch.compile does not work here, so training is slower (install a C++ compiler, or say "
        "loop.compile=false): %s",
        reason,
    )
