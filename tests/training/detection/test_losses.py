from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from facepipe.retinaface.anchors import encode_boxes
from facepipe.retinaface.network import RetinaFaceOutput
from facepipe.training.detection.losses import (
    LossConfig,
    diou_loss,
    distillation_loss,
    hint_loss,
    multibox_loss,
)
from facepipe.training.detection.targets import BACKGROUND, FACE, IGNORED, Targets
from facepipe.weights.cards import AnchorSpec

_VARIANCES = AnchorSpec().variances
_PLAIN = LossConfig(classes=1, boxes=1, landmarks=1, distil_classes=1, distil_boxes=1, distil_landmarks=1)


def _output(logits: list[list[list[float]]], fill: float = 0.0) -> RetinaFaceOutput:
    classes = torch.tensor(logits)
    batch, anchors, _ = classes.shape
    return RetinaFaceOutput(
        torch.full((batch, anchors, 4), fill), classes, torch.full((batch, anchors, 10), fill)
    )


def _targets(labels: list[list[int]], landmarks_known: bool = True) -> Targets:
    classes = torch.tensor(labels)
    points = torch.zeros(*classes.shape, 10)
    if not landmarks_known:
        points[..., 3] = math.nan
    return Targets(classes, torch.zeros(*classes.shape, 4), points)


def _entropy(own: float, other: float) -> float:
    return math.log(math.exp(own) + math.exp(other)) - own


def test_classes_by_hand() -> None:
    # One positive, ratio 2: of three backgrounds the two worst; the ignored one never.
    logits = [[[0.0, 2.0], [1.0, 0.0], [0.0, 3.0], [0.0, 0.5], [0.0, 9.0]]]
    targets = _targets([[FACE, BACKGROUND, BACKGROUND, BACKGROUND, IGNORED]])
    losses = multibox_loss(_output(logits), targets, LossConfig(negatives_per_positive=2), _VARIANCES)
    expected = _entropy(2, 0) + _entropy(0, 3) + _entropy(0, 0.5)
    assert losses["class"].item() == pytest.approx(expected, rel=1e-5)


def test_positives_of_the_whole_batch_normalise() -> None:
    logits = [[[0.0, 2.0], [0.0, 1.0]], [[0.0, 4.0], [0.0, 0.0]]]
    targets = _targets([[FACE, FACE], [FACE, IGNORED]])
    losses = multibox_loss(_output(logits), targets, LossConfig(), _VARIANCES)
    expected = (_entropy(2, 0) + _entropy(1, 0) + _entropy(4, 0)) / 3
    assert losses["class"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("error", "each"), [(0.5, 0.125), (2.0, 1.5), (-3.0, 2.5)], ids=["square", "straight", "below"]
)
def test_boxes_and_landmarks_by_hand(error: float, each: float) -> None:
    logits = [[[0.0, 0.0]] * 3]
    targets = _targets([[FACE, BACKGROUND, FACE]])
    losses = multibox_loss(_output(logits, fill=error), targets, LossConfig(), _VARIANCES)
    assert losses["box"].item() == pytest.approx(2 * 4 * each)  # weighted 2, four values, mean over positives
    assert losses["landmark"].item() == pytest.approx(10 * each)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 30, 30), 0.0),
        ((20, 10, 40, 30), 1 - 1 / 3 + 100 / (30**2 + 20**2)),  # half of it, centres 10 px apart
        ((10, 10, 20, 30), 1 - 1 / 2 + 25 / (20**2 + 20**2)),
        ((40, 10, 60, 30), 1 + 900 / (50**2 + 20**2)),  # no overlap, and still a way to go
    ],
)
def test_diou_by_hand_whatever_the_anchor(box: tuple[float, ...], expected: float) -> None:
    anchors = torch.tensor([[24.0, 20.0, 16.0, 16.0], [12.0, 28.0, 64.0, 64.0]])
    found, true = (
        encode_boxes(torch.tensor([b] * 2, dtype=torch.float32), anchors, _VARIANCES)
        for b in (box, (10, 10, 30, 30))
    )
    assert diou_loss(found, true, _VARIANCES).tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_diou_leads_a_box_to_its_face() -> None:
    anchors = torch.tensor([[24.0, 20.0, 16.0, 16.0]] * 2)
    true = encode_boxes(torch.tensor([[4.0, 6.0, 16.0, 20.0], [30.0, 24.0, 42.0, 40.0]]), anchors, _VARIANCES)
    found = torch.zeros(2, 4, requires_grad=True)
    optimiser = torch.optim.Adam([found], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        diou_loss(found, true, _VARIANCES).sum().backward()
        optimiser.step()
    assert diou_loss(found, true, _VARIANCES).max().item() < 0.1


def test_the_box_error_is_chosen_and_bounded() -> None:
    logits, wild = [[[0.0, 0.0]]], 1e4  # as regressions are before anything is learned in bfloat16
    losses = multibox_loss(
        _output(logits, wild), _targets([[FACE]]), LossConfig(box_error="diou"), _VARIANCES
    )
    assert 0 < losses["box"].item() <= 2 * 2


def test_faces_without_landmarks_train_class_and_box_only() -> None:
    output = _output([[[0.0, 0.0]] * 2], fill=1.0)
    output = RetinaFaceOutput(*(part.requires_grad_() for part in output))
    losses = multibox_loss(output, _targets([[FACE, FACE]], landmarks_known=False), LossConfig(), _VARIANCES)
    torch.stack(list(losses.values())).sum().backward()
    assert losses["landmark"].item() == 0
    assert output.landmarks.grad is not None
    assert output.landmarks.grad.abs().sum() == 0
    assert output.boxes.grad is not None
    assert output.boxes.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("labels", "ratio", "trained"),
    [
        ([BACKGROUND] * 5, 2, 2),  # no face: still the worst few
        ([BACKGROUND] * 5, 9, 5),
        ([FACE, FACE, BACKGROUND, BACKGROUND, BACKGROUND], 7, 5),  # more wanted than there are
        ([FACE, IGNORED, IGNORED, IGNORED, BACKGROUND], 3, 2),
        ([IGNORED] * 5, 3, 0),
        ([FACE] * 5, 3, 5),
    ],
)
def test_how_many_anchors_train(labels: list[int], ratio: int, trained: int) -> None:
    classes = torch.arange(10.0).reshape(1, 5, 2).square().requires_grad_()
    output = RetinaFaceOutput(torch.zeros(1, 5, 4), classes, torch.zeros(1, 5, 10))
    losses = multibox_loss(output, _targets([labels]), LossConfig(negatives_per_positive=ratio), _VARIANCES)
    losses["class"].backward()
    assert classes.grad is not None
    assert int((classes.grad.abs().sum(dim=-1) > 0).sum()) == trained


def test_hard_negatives_are_chosen_crop_by_crop() -> None:
    logits = [[[0.0, 1.0], [0.0, 5.0], [0.0, 6.0]], [[0.0, 1.0], [3.0, 0.0], [2.0, 0.0]]]
    output = RetinaFaceOutput(
        torch.zeros(2, 3, 4), torch.tensor(logits, requires_grad=True), torch.zeros(2, 3, 10)
    )
    targets = _targets([[FACE, BACKGROUND, BACKGROUND]] * 2)
    multibox_loss(output, targets, LossConfig(negatives_per_positive=1), _VARIANCES)["class"].backward()
    assert output.classes.grad is not None
    assert (output.classes.grad.abs().sum(dim=-1) > 0).tolist() == [[True, False, True], [True, False, True]]


def test_crops_without_faces_weigh_as_those_with_one() -> None:
    with_face, without = [FACE, *[BACKGROUND] * 7], [IGNORED, *[BACKGROUND] * 7]
    output = _output([[[0.0, 0.0]] * 8] * 8)
    losses = [
        multibox_loss(output, _targets(labels), LossConfig(), _VARIANCES)["class"].item()
        for labels in ([with_face] * 8, [with_face, without] * 4, [without] * 8)
    ]
    assert losses == pytest.approx([8 * math.log(2), 7.5 * math.log(2), 7 * math.log(2)])


def test_a_teacher_that_sees_no_face_weighs_no_more() -> None:
    student, teacher = _output([[_logit(0.5)] * 50] * 8), _output([[_logit(0.001)] * 50] * 8)
    losses = distillation_loss(student, teacher, _targets([[BACKGROUND] * 50] * 8), _PLAIN)
    assert losses["soft_class"].item() == pytest.approx(50 * _divergence(0.001, 0.5), rel=1e-4)


def _logit(probability: float) -> list[float]:
    return [0.0, math.log(probability / (1 - probability))]


def _divergence(teacher: float, student: float) -> float:
    return teacher * math.log(teacher / student) + (1 - teacher) * math.log((1 - teacher) / (1 - student))


def test_a_teacher_by_hand() -> None:
    student = _output([[_logit(0.5)] * 3], fill=2.0)
    teacher = _output([[_logit(0.9), _logit(0.8), _logit(0.05)]])
    targets = _targets([[FACE, IGNORED, BACKGROUND]])
    losses = distillation_loss(student, teacher, targets, _PLAIN)
    probability = 0.9 + 0.8 + 0.05
    kl = _divergence(0.9, 0.5) + _divergence(0.8, 0.5) + _divergence(0.05, 0.5)
    assert losses["soft_class"].item() == pytest.approx(kl / probability, rel=1e-4)
    assert losses["soft_box"].item() == pytest.approx(4 * 1.5 * (0.9 + 0.8) / probability, rel=1e-4)
    assert losses["soft_landmark"].item() == pytest.approx(10 * 1.5 * (0.9 + 0.8) / probability, rel=1e-4)


@pytest.mark.parametrize(("label", "probability"), [(FACE, 0.3), (BACKGROUND, 0.7)])
def test_a_teacher_that_contradicts_the_labels_is_ignored(label: int, probability: float) -> None:
    losses = distillation_loss(
        _output([[_logit(0.5)]], fill=3.0), _output([[_logit(probability)]]), _targets([[label]]), _PLAIN
    )
    assert all(value.item() == 0 for value in losses.values())


def test_an_unlabelled_crop_learns_from_the_teacher_alone() -> None:
    output, targets = _output([[_logit(0.5)] * 2], fill=1.0), _targets([[IGNORED, IGNORED]])
    assert all(
        value.item() == 0 for value in multibox_loss(output, targets, LossConfig(), _VARIANCES).values()
    )
    losses = distillation_loss(output, _output([[_logit(0.9), _logit(0.1)]]), targets, LossConfig())
    assert all(value.item() > 0 for value in losses.values())


def test_hints_are_shares_of_the_teachers_variance() -> None:
    teacher = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]])
    variance = teacher.var().item()
    assert hint_loss([teacher + 1, teacher], [teacher, teacher]).item() == pytest.approx(0.5 / variance)
    flat = torch.zeros(1, 1, 2, 2)
    assert torch.isfinite(hint_loss([flat], [flat]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_outputs_are_compared_in_float32(dtype: torch.dtype) -> None:
    def low(part: Tensor) -> Tensor:
        return part.to(dtype)

    student, teacher = _output([[_logit(0.4)] * 2], fill=1.0), _output([[_logit(0.9)] * 2])
    targets = _targets([[FACE, BACKGROUND]])
    half_student = RetinaFaceOutput(*map(low, student))
    half_teacher = RetinaFaceOutput(*map(low, teacher))
    losses = multibox_loss(half_student, targets, LossConfig(), _VARIANCES)
    losses |= distillation_loss(half_student, half_teacher, targets, LossConfig())
    assert all(value.dtype == torch.float32 for value in losses.values())
    whole = multibox_loss(student, targets, LossConfig(), _VARIANCES)
    assert losses["class"].item() == pytest.approx(whole["class"].item(), rel=0.01)
