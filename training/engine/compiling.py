"""A trial of torch.compile before a run depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from facepipe.core.errors import FacepipeError, one_line

_LOG = logging.getLogger("facepipe.training")


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
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            step()
        except FacepipeError:
            raise
        except Exception as error:  # whatever compilers and their drivers raise
            _warn(error)
            return False
        finally:
            module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
    return True


def _warn(error: Exception) -> None:
    reason = one_line(error)
    _LOG.warning(
        "torch.compile does not work here, so training is slower (install a C++ compiler, or say "
        "loop.compile=false): %s",
        reason,
    )
