"""Alignment jitter for training: faces rotated, scaled, shifted and mirrored a little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray


@dataclass(frozen=True, slots=True)
class JitterConfig:
    """Standard deviations of the alignment jitter; draws are cut off at twice their size.

    Attributes:
        flip_share: Share of faces that are mirrored.
        rotation_rad: Angle.
        scale: Relative change of size.
        shift: As a share of the side, in both directions.
        variants: How many draws there are for each face, used in turn from epoch to epoch; a teacher with the
            shared view then computes each once only, unless its maps are compared. 0: a new draw every time.
    """

    flip_share: float = 0.5
    rotation_rad: float = 0.05
    scale: float = 0.03
    shift: float = 0.025
    variants: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flip_share <= 1:
            raise UsageError(f"jitter.flip_share: expected 0..1, got {self.flip_share}")
        if min(self.rotation_rad, self.scale, self.shift) < 0:
            raise UsageError("jitter: expected rotation_rad, scale and shift from 0")
        if self.variants < 0:
            raise UsageError(f"jitter.variants: expected 0 or more, got {self.variants}")


def jitter_matrix(size_px: int, config: JitterConfig, rng: np.random.Generator) -> FloatArray:
    """Draw a similarity (3, 3) about the middle of the network's input, perhaps mirrored."""
    mirrored = rng.random() < config.flip_share
    draws = np.clip(rng.normal(size=4), -2, 2)
    angle, scale = draws[0] * config.rotation_rad, 1 + draws[1] * config.scale
    shift = draws[2:] * config.shift * size_px
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    middle = (size_px - 1) / 2
    linear = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle + shift - linear @ (middle, middle)
    return matrix.astype(np.float32)
