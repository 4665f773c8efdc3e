"""A second teacher, whose vectors are averaged with those of the first one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from facepipe.core.errors import UsageError
from facepipe.training.recognition.teacher import Teacher, TeacherConfig, TeacherOutput
from facepipe.weights.cards import InputSpec


@dataclass(frozen=True, slots=True)
class SecondTeacherConfig:
    """A second encoder to learn from, with vectors of the same length.

    Attributes:
        weights: Name or card of an encoder's weight, or an ONNX file (.onnx); needed with a share.
        share: Of its vectors in the mean of both; 0: no second teacher.
        input: Its preprocessing; None: that of its card, or else the student's.
        source: Where its file comes from, for errors where it is not there.
    """

    weights: str | None = None
    share: float = 0.0
    input: InputSpec | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(f"second_teacher.share: expected 0 or more and below 1, got {self.share}")

    @property
    def teacher(self) -> TeacherConfig:
        """The same as a teacher's configuration."""
        return TeacherConfig(self.weights, input=self.input, source=self.source)


class MeanOfTeachers:
    """Two teachers as one, whose vectors are means of the first one's and the rotated ones of the second.

    The rotation brings the second one's vectors of `faces` as near to the first one's as one can (orthogonal
    Procrustes problem, Schönemann 1966). Maps are the first one's.

    Args:
        first, second: Both take faces of one size.
        share: Of the second.
        faces: Batches of RGB uint8 faces (n, side, side, 3).

    Raises:
        UsageError: Sizes or lengths of vectors differ.
    """

    def __init__(self, first: Teacher, second: Teacher, share: float, faces: Iterable[Tensor]) -> None:
        if first.size_px != second.size_px:
            raise UsageError(
                f"second_teacher takes faces of {second.size_px} px, the first of {first.size_px}"
            )
        self.size_px = first.size_px
        self._first, self._second, self._share = first, second, share
        both = [(first(batch).vectors, second(batch).vectors) for batch in faces]
        ours, theirs = (torch.cat(vectors) for vectors in zip(*both, strict=True))
        if ours.shape != theirs.shape:
            raise UsageError(
                f"second_teacher has vectors of {theirs.shape[1]} dimensions, the first of {ours.shape[1]}"
            )
        self._rotation = nearest_rotation(theirs, ours)

    def __call__(self, pixels: Tensor) -> TeacherOutput:
        """RGB uint8 faces (batch, side, side, 3) to unit vectors, and maps of the first teacher."""
        first = self._first(pixels)
        second = self._second(pixels).vectors
        with torch.autocast(second.device.type, enabled=False):  # a training step's would round the product
            turned = second @ self._rotation
        return first._replace(vectors=functional.normalize(first.vectors.lerp(turned, self._share)))


def nearest_rotation(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return the orthogonal matrix (d, d) by which `theirs` (n, d) come nearest to `ours` (n, d)."""
    u, _, v = torch.linalg.svd(theirs.T @ ours)
    rotation: Tensor = u @ v
    return rotation
