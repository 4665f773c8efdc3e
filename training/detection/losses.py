"""RetinaFace's multi-task loss, and what a teacher adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from facepipe.errors import UsageError
from facepipe.retinaface.network import RetinaFaceOutput
from training.detection.targets import BACKGROUND, FACE, Targets
from training.distributed import sum_over_ranks, world_size

_LEAST_BELIEF = 0.1
"""Below this a teacher's box and landmarks are noise."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights of the loss parts (class : box : landmark as 1 : 2 : 1) and the mining ratio.

    Attributes:
        classes, boxes, landmarks: Weights of the labels' parts.
        negatives_per_positive: Hard negatives that train, per positive anchor of a crop.
        distil_classes, distil_boxes, distil_landmarks: Weights of the teacher's soft outputs.
        hints_first, hints_last: Weight of the feature hints at the first and the last step, linear between.
    """

    classes: float = 1.0
    boxes: float = 2.0
    landmarks: float = 1.0
    negatives_per_positive: int = 7
    distil_classes: float = 1.0
    distil_boxes: float = 2.0
    distil_landmarks: float = 1.0
    hints_first: float = 1.0
    hints_last: float = 0.05

    def __post_init__(self) -> None:
        parts = (self.classes, self.boxes, self.landmarks, self.hints_first, self.hints_last)
        soft = (self.distil_classes, self.distil_boxes, self.distil_landmarks)
        if min(*parts, *soft) < 0 or self.negatives_per_positive < 1:
            raise UsageError("loss: expected weights from 0 and negatives_per_positive from 1")


def label_losses(output: RetinaFaceOutput, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """Weighted parts against the labels, each normalised by the positive anchors that have it.

    Smooth L1 bends at 1; its terms are summed over the values of an anchor.
    """
    positive = targets.labels == FACE
    entropy = functional.cross_entropy(
        output.classes.float().flatten(0, 1), targets.labels.clamp(min=0).flatten(), reduction="none"
    ).view_as(targets.labels)
    trained = positive | _hard_negatives(entropy.detach(), targets.labels, config.negatives_per_positive)
    known = positive & targets.landmarks.isfinite().all(dim=-1)
    count = _total(positive)
    boxes = _smooth_l1(output.boxes[positive], targets.boxes[positive]).sum()
    points = _smooth_l1(output.landmarks[known], targets.landmarks[known]).sum()
    return {
        "class": config.classes * entropy[trained].sum() / count,
        "box": config.boxes * boxes / count,
        "landmark": config.landmarks * points / _total(known),
    }


def teacher_losses(
    output: RetinaFaceOutput, teacher: RetinaFaceOutput, targets: Targets, config: LossConfig
) -> dict[str, Tensor]:
    """Weighted parts against a teacher's soft outputs at every anchor where it agrees with the labels.

    Boxes and landmarks count as much as the teacher believes in a face there.
    """
    log_student = functional.log_softmax(output.classes.float(), dim=-1)
    log_teacher = functional.log_softmax(teacher.classes.float(), dim=-1)
    belief = log_teacher[..., FACE].exp()
    contradicts = ((targets.labels == FACE) & (belief < 0.5)) | (
        (targets.labels == BACKGROUND) & (belief > 0.5)
    )
    weight = belief.masked_fill(contradicts, 0.0)
    total = _total(weight)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).masked_fill(contradicts, 0.0)
    chosen = weight > _LEAST_BELIEF
    boxes = _smooth_l1(output.boxes[chosen], teacher.boxes[chosen])
    points = _smooth_l1(output.landmarks[chosen], teacher.landmarks[chosen])
    return {
        "soft_class": config.distil_classes * divergence.sum() / total,
        "soft_box": config.distil_boxes * (boxes * weight[chosen]).sum() / total,
        "soft_landmark": config.distil_landmarks * (points * weight[chosen]).sum() / total,
    }


def hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of maps (batch, c, h, w) of the squared error as a share of the teacher's variance."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack(
        [functional.mse_loss(s.float(), t.float()) / t.float().var().clamp(min=1e-6) for s, t in pairs]
    ).mean()


def _hard_negatives(entropy: Tensor, labels: Tensor, ratio: int) -> Tensor:
    """The background anchors of each crop with the largest loss, `ratio` for each of its positives."""
    candidates = entropy.masked_fill(labels != BACKGROUND, -1.0)
    wanted = ((labels == FACE).sum(dim=1) * ratio).clamp(min=min(ratio, labels.shape[1]), max=labels.shape[1])
    ranked = candidates.sort(dim=1, descending=True).values
    threshold = ranked.gather(1, (wanted - 1)[:, None])
    return (candidates >= threshold) & (candidates >= 0)


def _smooth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """(n, values) against (n, values) to (n,)."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), reduction="none").sum(dim=-1)


def _total(weights: Tensor) -> Tensor:
    """The sum to normalise by, at least 1, over all processes.

    Processes average their gradients, so that each one's share is what it would be in one large batch.
    """
    return sum_over_ranks(weights.sum(dtype=torch.float32)).clamp(min=1) / world_size()
