"""Losses of the encoder: distillation from a teacher, triplet loss, margin softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from facepipe.core.errors import UsageError
from facepipe.training.distillation.map_errors import map_errors
from facepipe.training.recognition.crops import NOBODY

Mining = Literal["semi_hard", "batch_hard"]
Margin = Literal["cosface", "arcface", "none"]


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights of the parts; 0 leaves one out.

    Attributes:
        cosine: 1 - cosine to the teacher's vector.
        hints_first, hints_last: Feature hints, at the start and at the end of the run, linear between.
        teacher_forcing: Feed each block of the student (facenet_mobilefacenet or facenet_mobilenetv1)
            with the teacher's map in place of the one before it: blocks learn apart, none waits for those
            before it (Li et al., arXiv:1911.13053). Those of large maps learn from a part of the batch.
            The teacher's maps are all of the student's, of its widths; the student sees undamaged faces.
        relation: Similarities within the batch, against the teacher's.
        triplet: Triplet loss between the people of a batch.
        mining: Which triplets: "semi_hard" (FaceNet, Schroff et al., arXiv:1503.03832) or "batch_hard"
            (Hermans et al., arXiv:1703.07737).
        softmax: Cross-entropy over the labelled people.
        margin: "cosface" (Wang et al., arXiv:1801.09414) or "arcface" (Deng et al., arXiv:1801.07698): a
            direction for each person; or "none": a linear layer on the vectors before they get unit length.
    """

    cosine: float = 3.0
    hints_first: float = 1.0
    hints_last: float = 0.05
    teacher_forcing: bool = False
    relation: float = 0.0
    triplet: float = 0.0
    mining: Mining = "semi_hard"
    softmax: float = 0.0
    margin: Margin = "cosface"

    def __post_init__(self) -> None:
        for name in ("cosine", "hints_first", "hints_last", "relation", "triplet", "softmax"):
            if getattr(self, name) < 0:
                raise UsageError(f"loss.{name}: expected 0 or more, got {getattr(self, name)}")

    @property
    def needs_teacher(self) -> bool:
        """Whether any part compares with a teacher."""
        return max(self.cosine, self.hints_first, self.hints_last, self.relation) > 0

    @property
    def needs_hints(self) -> bool:
        """Whether inner maps are compared at any time."""
        return max(self.hints_first, self.hints_last) > 0

    @property
    def needs_people(self) -> bool:
        """Whether any part compares people."""
        return max(self.triplet, self.softmax) > 0


def cosine_loss(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine; unit vectors (batch, dimensions)."""
    return 1 - (vectors * teacher).sum(dim=1).mean()


def hint_loss(taps: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over pairs of maps of `map_errors`."""
    return map_errors(taps, teacher).sum()


def relation_loss(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of the cosines between different faces, as a share of the teacher's variance."""
    apart = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    theirs = (teacher @ teacher.T)[apart]
    return functional.mse_loss((vectors @ vectors.T)[apart], theirs) / theirs.var()


def triplet_loss(vectors: Tensor, people: Tensor, mining: Mining, margin: float = 0.2) -> Tensor:
    """Mean triplet loss of a batch; 0 where there are no triplets.

    Args:
        vectors: Unit vectors (batch, dimensions).
        people: int64 (batch,); faces of `NOBODY` take no part, not as strangers either: they may be anyone.
        mining: See `LossConfig`.
        margin: Of squared distances (semi_hard), of distances (batch_hard), on the unit sphere.
    """
    known = people != NOBODY
    vectors, people = vectors[known], people[known]
    squared = (2 - 2 * vectors @ vectors.T).clamp(min=0)
    same = people[:, None] == people[None]
    pairs = same & ~torch.eye(len(people), dtype=torch.bool, device=people.device)
    if not pairs.any() or same.all():
        return vectors.sum() * 0
    if mining == "batch_hard":
        return _batch_hard(squared, same, pairs, margin)
    return _semi_hard(squared, same, pairs, margin)


def _batch_hard(squared: Tensor, same: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """For each face its farthest of the same person and its nearest of another."""
    distances = (squared + 1e-12).sqrt()  # the root's slope at 0 is infinite
    farthest = distances.masked_fill(~pairs, -math.inf).amax(dim=1)
    nearest = distances.masked_fill(same, math.inf).amin(dim=1)
    anchors = pairs.any(dim=1)
    return functional.relu(farthest - nearest + margin)[anchors].mean()


def _semi_hard(squared: Tensor, same: Tensor, pairs: Tensor, margin: float) -> Tensor:
    """For each pair of a person the nearest other person that is farther than the pair, else the farthest."""
    anchor, positive = pairs.nonzero(as_tuple=True)
    distance = squared[anchor, positive]
    others = squared[anchor]
    candidates = ~same[anchor]
    farther = candidates & (others > distance[:, None])
    nearest_farther = others.masked_fill(~farther, math.inf).amin(dim=1)
    farthest = others.masked_fill(~candidates, -math.inf).amax(dim=1)
    negative = torch.where(farther.any(dim=1), nearest_farther, farthest)
    return functional.relu(distance - negative + margin).mean()


class LinearHead(nn.Module):
    """A linear layer with one output a person, for plain cross-entropy; discarded after training.

    Args:
        dimensions: Length of an embedding.
        people: How many.
    """

    def __init__(self, dimensions: int, people: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dimensions, people)

    def forward(self, vectors: Tensor, people: Tensor) -> Tensor:
        """Cross-entropy (batch,) of vectors (batch, dimensions) of any length; 0 for faces of `NOBODY`."""
        with torch.autocast(vectors.device.type, enabled=False):
            logits = self.linear(vectors)
        return functional.cross_entropy(logits, people, ignore_index=NOBODY, reduction="none")


class MarginHead(nn.Module):
    """One direction a person, for cross-entropy with a margin; discarded after training.

    Args:
        dimensions: Length of an embedding.
        people: How many.
        kind: See `LossConfig.margin`; not "none".
        margin: Subtracted from the cosine (cosface), or added to the angle in radians (arcface).
        scale: The cosines are multiplied by this.
    """

    def __init__(
        self, dimensions: int, people: int, kind: Margin, margin: float = 0.35, scale: float = 30.0
    ) -> None:
        super().__init__()
        self.directions = nn.Parameter(functional.normalize(torch.randn(people, dimensions)))
        self._kind, self._margin, self._scale = kind, margin, scale

    def forward(self, vectors: Tensor, people: Tensor) -> Tensor:
        """Cross-entropy (batch,) of vectors (batch, dimensions) of any length; 0 for faces of `NOBODY`."""
        with torch.autocast(vectors.device.type, enabled=False):  # the scale would show the rounding
            cosines = functional.normalize(vectors) @ functional.normalize(self.directions).T
        target = people.clamp(min=0)[:, None]
        own = cosines.gather(1, target)
        logits = self._scale * cosines.scatter(1, target, self._with_margin(own))
        return functional.cross_entropy(logits, people, ignore_index=NOBODY, reduction="none")

    def _with_margin(self, own: Tensor) -> Tensor:
        if self._kind == "cosface":
            return own - self._margin
        # Past pi - margin the angle can't grow; there the cosine goes on falling, in a straight line.
        angle = own.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        beyond = own - self._margin * math.sin(self._margin)
        return torch.where(angle < math.pi - self._margin, (angle + self._margin).cos(), beyond)


def people_head(config: LossConfig, dimensions: int, people: int) -> LinearHead | MarginHead | None:
    """Return the head of the cross-entropy over so many people; None without `config.softmax`."""
    if not config.softmax:
        return None
    if config.margin == "none":
        return LinearHead(dimensions, people)
    return MarginHead(dimensions, people, config.margin)
