"""Whether torch.compile works for a network, found out before the run depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from facepipe.core.errors import FacepipeError, one_line

_LOG = logging.getLogger("facepipe.training")


def compiles(step: Callable[[], object], module: nn.Module, device: torch.device) -> bool:
    """Whether a step of compiled functions runs, forward and backward; where it does not, a warning says why.

    Functions are compiled when they are first called, and their gradients when those are: nothing less than
    a step of the real network tells. No trace of it stays: no gradients, statistics or drawn random numbers.

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
