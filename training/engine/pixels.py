"""Memory-mapped pictures, and a network's preprocessing on its device."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.core.files import atomic_file, atomic_write_bytes, make_private_folder
from facepipe.weights.cards import InputSpec

Line = TypeVar("Line", bound=Sequence[Any])

IMAGENET_INPUT = InputSpec("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and standard deviation of ImageNet's pixels, times 255, as torchvision states them."""


class PictureFile:
    """Random access to RGB pictures of any sizes in one memory-mapped file.

    It is pickled for worker processes as its path, not as its pixels.

    Args:
        path: One picture's bytes after the other.
        sizes_hw: Height and width of each picture.
    """

    def __init__(self, path: Path, sizes_hw: Sequence[tuple[int, int]]) -> None:
        self._path, self._sizes = path, list(sizes_hw)
        self._offsets = np.concatenate([[0], np.cumsum([3 * h * w for h, w in self._sizes])])
        self._pixels = np.memmap(path, np.uint8, "r")

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureFile, (self._path, self._sizes)

    def __getitem__(self, index: int) -> UInt8Array:
        """RGB uint8 (h, w, 3); not to be changed."""
        h, w = self._sizes[index]
        return self._pixels[self._offsets[index] : self._offsets[index + 1]].reshape(h, w, 3)


def cached_pictures(
    path: Path,
    pictures: Callable[[], Iterable[tuple[UInt8Array, Line]]],
    size_hw: Callable[[Line], tuple[int, int]],
) -> tuple[PictureFile, list[Line]]:
    """Open pictures that are decoded once into the file `path`, with a line of plain data on each.

    Args:
        path: The JSON file of the lines stands beside it.
        pictures: Makes them, where the files are missing or cut short.
        size_hw: Height and width, from a picture's line.

    Raises:
        DataError: The files can't be written.
    """
    contents = path.with_suffix(".json")
    if not _is_whole(path, contents, size_hw):
        _write_pictures(path, contents, pictures())
    lines = json.loads(contents.read_bytes())
    return PictureFile(path, [size_hw(line) for line in lines]), lines


def _is_whole(path: Path, contents: Path, size_hw: Callable[[Line], tuple[int, int]]) -> bool:
    if not (path.is_file() and contents.is_file()):
        return False
    try:
        lines = json.loads(contents.read_bytes())
    except ValueError:  # cut short
        return False
    return path.stat().st_size == sum(3 * math.prod(size_hw(line)) for line in lines)


def _write_pictures(path: Path, contents: Path, pictures: Iterable[tuple[UInt8Array, Line]]) -> None:
    lines: list[Line] = []
    try:
        make_private_folder(path.parent)
        with atomic_file(path) as file:
            for pixels, line in pictures:
                file.write(pixels.tobytes())
                lines.append(line)
        atomic_write_bytes(contents, json.dumps(lines).encode())
    except OSError as error:
        raise DataError(
            f"{path.parent}: can't write the cache of decoded pictures: {error}; "
            "free some space or name another folder"
        ) from error


class Normalisation:
    """Preprocessing of a card: uint8 RGB (batch, h, w, 3) to float32 (batch, 3, h, w), channels last."""

    def __init__(self, spec: InputSpec, device: torch.device) -> None:
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
        self._bgr = spec.channels == "bgr"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch; see the class."""
        images = pixels.to(self._device, non_blocking=True)
        images = images.flip(-1) if self._bgr else images
        # Whole rows at a time, in place: a last axis of 3 is too short for vector units.
        rows, width = images.float().flatten(-2), images.shape[-2]
        rows.sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        return rows.view(images.shape).permute(0, 3, 1, 2)
