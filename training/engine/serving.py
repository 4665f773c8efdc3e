"""A network in training behind the interface of `facepipe.runtime`, for validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from facepipe.core.faces import FloatArray
from facepipe.runtime.architectures import serving_module


class InMemoryNetwork:
    """See `facepipe.runtime.engines.Network`."""

    def __init__(self, network: nn.Module) -> None:
        self._module = serving_module(network)
        self._device = next(network.parameters()).device

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        """Preprocessed images to the serving form's outputs, or the first of them."""
        with torch.inference_mode():
            images = torch.from_numpy(batch).to(self._device).contiguous(memory_format=torch.channels_last)
            found = self._module(images)
        many = found if isinstance(found, tuple) else (found,)
        return [output.float().cpu().numpy() for output in many[:outputs]]
