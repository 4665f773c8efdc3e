"""What the tests of networks share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from facepipe.core.faces import FloatArray

if TYPE_CHECKING:
    from torch import nn

_MEAN = np.array((104, 117, 123), np.float32)


def preprocessed(photo: Path, channels: str) -> FloatArray:
    """As the published detectors take it: (1, 3, h, w), mean taken off, zeros up to multiples of 32."""
    pixels = np.asarray(Image.open(photo).convert("RGB"), np.float32)
    pixels = (pixels if channels == "rgb" else pixels[..., ::-1]) - _MEAN
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % 32), (0, -width % 32), (0, 0)))
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])


def randomised(network: nn.Module) -> nn.Module:
    """The network with values at which every layer matters and nothing overflows."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim < 2 and value.is_floating_point():
            value.normal_(0, 0.1, generator=generator).add_(float(name.endswith("weight")))
        elif value.is_floating_point():
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return network.eval()
