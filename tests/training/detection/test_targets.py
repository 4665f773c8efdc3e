from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from facepipe.core.faces import FloatArray
from facepipe.retinaface.anchors import decode_boxes, decode_landmarks, make_anchors
from facepipe.training.detection.targets import (
    BACKGROUND,
    FACE,
    IGNORED,
    CropFaces,
    MatchConfig,
    Targets,
    match_batch,
)
from facepipe.weights.cards import AnchorSpec

_SPEC = AnchorSpec()
_SIDE = 96
_ANCHORS = make_anchors(_SIDE, _SIDE, _SPEC)
_CONFIG = MatchConfig()


def _faces(
    boxes: list[list[float]] | FloatArray, ignored: list[list[float]] | None = None, labelled: bool = True
) -> CropFaces:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    points = (
        np.stack([np.linspace(box[:2], box[2:], 5) for box in array]) if len(array) else np.zeros((0, 5, 2))
    )
    ignored_array = np.array(ignored or [], np.float32).reshape(-1, 4)
    return CropFaces(array, points.astype(np.float32), ignored_array, labelled)


def _match(*crops: CropFaces, config: MatchConfig = _CONFIG) -> Targets:
    return match_batch(crops, torch.from_numpy(_ANCHORS.copy()), _SPEC.variances, config)


def _slow_iou(box: FloatArray, anchor: FloatArray) -> float:
    left, top = max(box[0], anchor[0] - anchor[2] / 2), max(box[1], anchor[1] - anchor[3] / 2)
    right, bottom = min(box[2], anchor[0] + anchor[2] / 2), min(box[3], anchor[1] + anchor[3] / 2)
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    return float(shared / ((box[2] - box[0]) * (box[3] - box[1]) + anchor[2] * anchor[3] - shared))


def _slow_owner(boxes: FloatArray) -> list[int]:
    """The face of each anchor, or -1, by the rules in words, one anchor after the other."""
    overlaps = [[_slow_iou(box, anchor) for anchor in _ANCHORS] for box in boxes]
    owners = [-1] * len(_ANCHORS)
    for a in range(len(_ANCHORS)):
        best = max(range(len(boxes)), key=lambda f: overlaps[f][a])
        if overlaps[best][a] >= _CONFIG.positive_iou:
            owners[a] = best
    claims: dict[int, tuple[float, int]] = {}
    for f in range(len(boxes)):
        a = max(range(len(_ANCHORS)), key=lambda a: overlaps[f][a])
        if overlaps[f][a] >= _CONFIG.best_anchor_iou:
            claims[a] = max(claims.get(a, (0.0, -1)), (overlaps[f][a], f))
    for a, (_, f) in claims.items():
        owners[a] = f
    return owners


def _slow_ignored(owners: list[int], crop: CropFaces) -> list[bool]:
    left_out = [box for f, box in enumerate(crop.boxes_xyxy) if f not in owners]
    flags = []
    for x, y, size, _ in _ANCHORS:
        hit = False
        for left, top, right, bottom in [*crop.ignored_xyxy, *left_out]:
            side = max(right - left, bottom - top)
            near = left - 4 <= x <= right + 4 and top - 4 <= y <= bottom + 4
            hit |= bool(near and side / 4 <= size <= 4 * max(side, 4))
        flags.append(hit)
    return flags


@pytest.mark.parametrize("seed", range(8))
def test_matching_equals_a_slow_oracle(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, _SIDE, (6, 2))
    sides = np.exp(random.uniform(np.log(3), np.log(60), (6, 2)))
    boxes = np.clip(np.concatenate([corners, corners + sides], axis=1), 0, _SIDE + 3)
    crop = _faces(boxes.astype(np.float32), ignored=[[5, 5, 9, 12], [40, 40, 90, 90]])
    targets = _match(crop)
    owners = _slow_owner(crop.boxes_xyxy)
    ignored = _slow_ignored(owners, crop)
    expected = [
        FACE if owner >= 0 else IGNORED if skip else BACKGROUND
        for owner, skip in zip(owners, ignored, strict=True)
    ]
    assert targets.labels[0].tolist() == expected
    positive = [a for a, owner in enumerate(owners) if owner >= 0]
    faces = [owners[a] for a in positive]
    boxes_back = decode_boxes(targets.boxes[0].numpy()[positive], _ANCHORS[positive], _SPEC.variances)
    points_back = decode_landmarks(
        targets.landmarks[0].numpy()[positive], _ANCHORS[positive], _SPEC.variances
    )
    np.testing.assert_allclose(boxes_back, crop.boxes_xyxy[faces], atol=1e-3)
    np.testing.assert_allclose(points_back, crop.landmarks[faces], atol=1e-3)


def test_a_face_keeps_its_best_anchor_below_the_threshold() -> None:
    face = [22.0, 22, 30, 30]  # 8 px in the 16-px anchor at (28, 28): IoU 0.25
    labels = _match(_faces([face])).labels[0]
    assert (labels == FACE).sum() == 1
    assert _ANCHORS[int(labels.argmax())].tolist() == [28, 28, 16, 16]


def test_a_face_too_small_for_any_anchor_is_ignored_not_background() -> None:
    labels = _match(_faces([[25.0, 25, 30, 30]])).labels[0]
    assert not (labels == FACE).any()
    (cell,) = np.flatnonzero((_ANCHORS[:, :2] == 28).all(axis=1) & (_ANCHORS[:, 2] == 16))
    assert labels[cell] == IGNORED
    assert (labels == IGNORED).sum() < 10


def test_of_two_faces_at_one_anchor_the_better_fitting_has_it_whatever_their_order() -> None:
    fitting, other = [20.0, 20, 36, 36], [24.0, 24, 34, 34]
    for boxes in ([fitting, other], [other, fitting]):
        targets = _match(_faces(boxes))
        (cell,) = np.flatnonzero((_ANCHORS[:, :2] == 28).all(axis=1) & (_ANCHORS[:, 2] == 16))
        assert targets.labels[0, cell] == FACE
        np.testing.assert_allclose(targets.boxes[0, cell].numpy(), 0, atol=1e-5)


def test_positives_stand_in_ignored_regions() -> None:
    face = [20.0, 20, 36, 36]
    alone, among = _match(_faces([face])), _match(_faces([face], ignored=[[0, 0, 60, 60]]))
    assert torch.equal(alone.labels == FACE, among.labels == FACE)
    assert (among.labels == IGNORED).any()


def test_an_ignored_face_leaves_anchors_of_quite_other_sizes_alone() -> None:
    labels = _match(_faces([], ignored=[[0, 0, 90, 90]])).labels[0]
    sizes = {int(_ANCHORS[a, 2]) for a in np.flatnonzero(labels == IGNORED)}
    assert sizes == {32, 64, 128, 256}


@pytest.mark.parametrize(
    ("crop", "expected"), [(_faces([]), BACKGROUND), (_faces([], labelled=False), IGNORED)]
)
def test_crops_without_faces(crop: CropFaces, expected: int) -> None:
    targets = _match(crop)
    assert (targets.labels == expected).all()
    assert targets.landmarks.isnan().all()


def test_a_batch_is_its_crops_side_by_side() -> None:
    crops = [_faces([[20.0, 20, 50, 50]]), _faces([]), _faces([[1.0, 2, 30, 40]], ignored=[[60, 60, 80, 80]])]
    together = _match(*crops)
    for i, crop in enumerate(crops):
        alone = _match(crop)
        assert torch.equal(together.labels[i], alone.labels[0])
        assert torch.equal(together.boxes[i], alone.boxes[0])


def test_unknown_landmarks_stay_unknown() -> None:
    crop = _faces([[20.0, 20, 50, 50]])
    crop = replace(crop, landmarks=np.full_like(crop.landmarks, math.nan))
    assert _match(crop).landmarks.isnan().all()


def test_a_small_face_keeps_several_anchors_and_takes_no_neighbours_only_one() -> None:
    small, neighbour = [30.0, 30.0, 41.0, 42.0], [38.0, 30.0, 49.0, 42.0]
    config = MatchConfig(best_anchor_iou=0.1, anchors_per_face=4)
    one, several = (_match(_faces([small]), config=c).labels[0] for c in (_CONFIG, config))
    overlaps = np.array([_slow_iou(np.array(small, np.float32), anchor) for anchor in _ANCHORS])
    assert int((one == FACE).sum()) < 4
    assert set(np.flatnonzero(several == FACE)) >= set(np.argsort(-overlaps, kind="stable")[:4])
    assert overlaps[several.numpy() == FACE].min() >= 0.1

    crowd = _match(_faces([small, neighbour]), config=config)
    for face in (small, neighbour):
        own = max(range(len(_ANCHORS)), key=lambda a: _slow_iou(np.array(face, np.float32), _ANCHORS[a]))
        box = decode_boxes(crowd.boxes[0].numpy(), _ANCHORS, _SPEC.variances)[own]
        np.testing.assert_allclose(box, face, atol=1e-3)
        assert crowd.labels[0, own] == FACE
