"""RetinaFace's multi-task loss (MultiBox), distillation from a teacher's outputs, and hints from its maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from facepipe.core.errors import UsageError
from facepipe.retinaface.network import RetinaFaceOutput
from facepipe.training.detection.targets import BACKGROUND, FACE, Targets
from facepipe.training.distillation.map_errors import map_errors
from facepipe.training.engine.distributed import sum_over_ranks, world_size

_MIN_PROBABILITY = 0.1
"""Boxes and landmarks of a teacher that is less sure of a face are noise."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights of the loss parts (class : box : landmark as 1 : 2 : 1) and the mining ratio.

    Attributes:
        classes, boxes, landmarks: Weights of the labels' parts.
        box_error: Of the labels' boxes: "smooth_l1" of the regressions, or "diou", 1 - IoU and the squared
            distance of the centres (Zheng et al., arXiv:1911.08287).
        negatives_per_positive: Hard negatives that train, per positive anchor of a crop.
        distil_classes, distil_boxes, distil_landmarks: Weights of the teacher's soft outputs.
        hints_first, hints_last: Weight of the feature hints at the first and the last step, linear between.
        hints_from: Maps that are compared with the teacher's: "pyramid", those of FPN and SSH, or "all",
            those of the backbone's blocks too, for a teacher of the same layers.
        teacher_forcing: With "all", feed each of MobileNetV1's blocks, FPN, SSH and the heads with the
            teacher's map in place of the one before it: see `facepipe.training.distillation.teacher_forcing`.
    """

    classes: float = 1.0
    boxes: float = 2.0
    landmarks: float = 1.0
    box_error: Literal["smooth_l1", "diou"] = "smooth_l1"
    negatives_per_positive: int = 7
    distil_classes: float = 1.0
    distil_boxes: float = 2.0
    distil_landmarks: float = 1.0
    hints_first: float = 1.0
    hints_last: float = 0.05
    hints_from: Literal["pyramid", "all"] = "pyramid"
    teacher_forcing: bool = False

    def __post_init__(self) -> None:
        parts = (self.classes, self.boxes, self.landmarks, self.hints_first, self.hints_last)
        soft = (self.distil_classes, self.distil_boxes, self.distil_landmarks)
        if min(*parts, *soft) < 0 or self.negatives_per_positive < 1:
            raise UsageError("loss: expected weights from 0 and negatives_per_positive from 1")
        if self.teacher_forcing and self.hints_from != "all":
            raise UsageError("loss.teacher_forcing feeds every map: set loss.hints_from=all")


def multibox_loss(
    output: RetinaFaceOutput,
    targets: Targets,
    config: LossConfig,
    variances: tuple[float, float],
) -> dict[str, Tensor]:
    """Compute the parts of the MultiBox loss against the labels, weighted.

    Classification is cross-entropy over positives and hard negatives (OHEM). Boxes and landmarks are
    regressed at positives: smooth L1, which bends at 1, summed over the values of an anchor, or DIoU. Each
    part is divided by the number of positives that have it; classes by one more for each crop that has
    background only, since its hard negatives are those of one positive. `variances` are the anchors'.
    """
    positive = targets.labels == FACE
    background, face = output.classes.float().unbind(dim=-1)
    entropy = functional.softplus(torch.where(positive, background - face, face - background))
    trained = positive | _hard_negatives(entropy.detach(), targets.labels, config.negatives_per_positive)
    known = positive & targets.landmarks.isfinite().all(dim=-1)
    count = _total(positive)
    negative_crops = ~positive.any(dim=1) & (targets.labels == BACKGROUND).any(dim=1)
    found, true = output.boxes[positive], targets.boxes[positive]
    boxes = _smooth_l1(found, true) if config.box_error == "smooth_l1" else diou_loss(found, true, variances)
    points = _smooth_l1(output.landmarks[known], targets.landmarks[known]).sum()
    return {
        "class": config.classes * entropy[trained].sum() / _total(positive.sum(dim=1) + negative_crops),
        "box": config.boxes * boxes.sum() / count,
        "landmark": config.landmarks * points / _total(known),
    }


def distillation_loss(
    output: RetinaFaceOutput, teacher: RetinaFaceOutput, targets: Targets, config: LossConfig
) -> dict[str, Tensor]:
    """Compute the parts of the loss against a teacher's outputs, weighted.

    Anchors where the teacher contradicts the labels are left out. Boxes and landmarks are weighted by the
    teacher's probability of a face. All parts are divided by the sum of these, at least 1 for each crop.
    """
    log_student = functional.log_softmax(output.classes.float(), dim=-1)
    log_teacher = functional.log_softmax(teacher.classes.float(), dim=-1)
    probability = log_teacher[..., FACE].exp()
    contradicts = ((targets.labels == FACE) & (probability < 0.5)) | (
        (targets.labels == BACKGROUND) & (probability > 0.5)
    )
    weight = probability.masked_fill(contradicts, 0.0)
    total = _total(weight, minimum=len(weight))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).masked_fill(contradicts, 0.0)
    chosen = weight > _MIN_PROBABILITY
    boxes = _smooth_l1(output.boxes[chosen], teacher.boxes[chosen])
    points = _smooth_l1(output.landmarks[chosen], teacher.landmarks[chosen])
    return {
        "soft_class": config.distil_classes * divergence.sum() / total,
        "soft_box": config.distil_boxes * (boxes * weight[chosen]).sum() / total,
        "soft_landmark": config.distil_landmarks * (points * weight[chosen]).sum() / total,
    }


def diou_loss(predicted: Tensor, target: Tensor, variances: tuple[float, float]) -> Tensor:
    """Compute 1 - IoU + (distance of centres / diagonal around both)^2 of regressions (n, 4), as (n,), 0..2.

    Anchors are square, so that it is the same in sides of the anchor as in pixels.
    """
    (low, high), (true_low, true_high) = _corners(predicted, variances), _corners(target, variances)
    shared = (torch.minimum(high, true_high) - torch.maximum(low, true_low)).clamp(min=0).prod(dim=-1)
    union = (high - low).prod(dim=-1) + (true_high - true_low).prod(dim=-1) - shared
    around = (torch.maximum(high, true_high) - torch.minimum(low, true_low)).square().sum(dim=-1)
    apart = ((low + high - true_low - true_high) / 2).square().sum(dim=-1)
    return 1 - shared / union + apart / around


def hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of maps of `map_errors`."""
    return map_errors(student, teacher).mean()


def _hard_negatives(entropy: Tensor, labels: Tensor, ratio: int) -> Tensor:
    """Choose the background anchors that train, bool (batch, anchors): online hard example mining (OHEM).

    They are those of each crop with the largest loss, `ratio` for each of its positives, as in SSD's MultiBox
    loss (Liu et al., arXiv:1512.02325; OHEM: Shrivastava et al., arXiv:1604.03540).
    """
    candidates = entropy.masked_fill(labels != BACKGROUND, -1.0)
    wanted = ((labels == FACE).sum(dim=1) * ratio).clamp(min=min(ratio, labels.shape[1]), max=labels.shape[1])
    hardest = candidates.topk(int(wanted.max()), dim=1).values
    threshold = hardest.gather(1, (wanted - 1)[:, None])
    return (candidates >= threshold) & (candidates >= 0)


def _corners(regression: Tensor, variances: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Low and high corners (n, 2) in sides of the anchor, from its centre; sizes within e^±4 of it."""
    centres = regression[:, :2].float() * variances[0]
    halves = (regression[:, 2:].float() * variances[1]).clamp(-4, 4).exp() / 2
    return centres - halves, centres + halves


def _smooth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """(n, values) against (n, values) to (n,)."""
    return functional.smooth_l1_loss(predicted.float(), target.float(), reduction="none").sum(dim=-1)


def _total(weights: Tensor, minimum: int = 1) -> Tensor:
    """Return the sum to normalise by over all processes, at least `minimum` for each of them.

    Processes average their gradients, so that each one's share is what it would be in one large batch.
    """
    return sum_over_ranks(weights.sum(dtype=torch.float32)).div(world_size()).clamp(min=minimum)
