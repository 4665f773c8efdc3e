"""RetinaFace: the network against the published one's outputs, and its maths against slow references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from network_helpers import preprocessed, randomised
from published_outputs import NAMES, PHOTOS, WEIGHTS, fixed_order_outputs, published_outputs

from facepipe.core.faces import Faces, FloatArray
from facepipe.retinaface.anchors import (
    decode_boxes,
    decode_landmarks,
    encode_boxes,
    encode_landmarks,
    make_anchors,
)
from facepipe.retinaface.nms import box_voting, non_maximum_suppression
from facepipe.weights.cards import AnchorSpec
from facepipe.weights.registry import load_card

OTHER_ANCHORS = AnchorSpec(sizes_px=((10, 20), (32, 64), (128, 256)))


@pytest.mark.parametrize(
    ("architecture", "millions"),
    [
        ("retinaface_mobilenet025", 0.427),
        ("retinaface_mobilenet025_detail", 0.441),
        ("retinaface_mobilenet025_focus", 0.488),
        ("retinaface_mobilenet050", 1.66),
        ("retinaface_mobilenet100", 4.16),
        ("retinaface_resnet18", 12.02),
        ("retinaface_resnet34", 22.12),
        ("retinaface_resnet50", 27.29),
    ],
)
def test_parameter_counts(architecture: str, millions: float) -> None:
    torch = pytest.importorskip("torch")
    from facepipe.runtime.architectures import build_network

    with torch.device("meta"):
        network = build_network(architecture)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("architecture", ["retinaface_mobilenet025", "retinaface_mobilenet025_detail"])
def test_fused_heads_are_the_networks_heads(architecture: str) -> None:
    """Served, the three heads of a stride are one convolution with the same outputs."""
    torch = pytest.importorskip("torch")
    from facepipe.runtime.architectures import build_network, serving_module

    network = randomised(build_network(architecture))
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = network(images)
        boxes, probabilities, landmarks = serving_module(network)(images)
    torch.testing.assert_close(boxes, raw.boxes)
    torch.testing.assert_close(probabilities, raw.classes.softmax(dim=-1))
    torch.testing.assert_close(landmarks, raw.landmarks)


def test_the_exported_heads_are_three_convolutions() -> None:
    onnx = pytest.importorskip("onnx")
    from facepipe.runtime.architectures import build_network, serving_module
    from facepipe.runtime.onnx_export import export_onnx

    network = build_network("retinaface_mobilenet025")
    card = load_card("retinaface_mobilenet025").card
    graph = onnx.load_from_string(export_onnx(serving_module(network), card)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 27 + 3 + 2 + 3 * 5 + 3  # backbone, laterals, merges, SSH, heads
    assert (kinds.count("Transpose"), kinds.count("Reshape"), kinds.count("Split")) == (3, 3, 1)


def test_the_branch_for_small_faces_keeps_its_names_in_files() -> None:
    """Files call it "detail", and parameters keep the order in which optimizers' states know them."""
    torch = pytest.importorskip("torch")
    from facepipe.retinaface.small_faces import retinaface_mobilenet025_detail

    network, other = randomised(retinaface_mobilenet025_detail()), retinaface_mobilenet025_detail()
    stored = network.state_dict()
    assert not any("small_face" in name for name in stored)
    assert list(dict.fromkeys(name.split(".")[0] for name in stored)) == [
        *("backbone", "fpn", "detail", "detail_laterals", "contexts"),
        *("box_heads", "class_heads", "landmark_heads"),
    ]
    other.load_state_dict(stored)
    ours, theirs = dict(network.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    held = torch.nn.ModuleDict({"network": network}).state_dict()
    assert {name.removeprefix("network.") for name in held} == set(stored)


def test_published_weights_give_the_published_outputs_in_a_fixed_order(
    shared_data: Path, tmp_path: Path
) -> None:
    """Within 1e-4, whatever the processor's own kernels do.

    The largest outputs are above 460, where 1e-4 is three units in the last place. Other orders of sums end
    up to six units away, and the published outputs are up to 1.12e-4 from those of the same network in 64-bit
    floats.
    """
    pytest.importorskip("torch")
    outputs = fixed_order_outputs(shared_data, tmp_path)
    assert len(outputs) == len(PHOTOS) * len(WEIGHTS) * len(NAMES)
    for photo in PHOTOS:
        for weights in WEIGHTS:
            expected = np.load(shared_data / "reference" / f"{photo}_{weights}.npz")
            for name in NAMES:
                output = outputs[f"{photo}_{weights}_{name}"]
                np.testing.assert_allclose(output, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("photo", PHOTOS)
def test_published_weights_give_the_published_outputs(shared_data: Path, photo: str, weights: str) -> None:
    """By the processor's own kernels, in whatever order they sum."""
    pytest.importorskip("torch")
    expected = np.load(shared_data / "reference" / f"{photo}_{weights}.npz")
    outputs = published_outputs(shared_data, weights, photo, channels=weights)
    for output, name in zip(outputs, NAMES, strict=True):
        np.testing.assert_allclose(output, expected[name], rtol=0, atol=1e-4)


def test_swapped_channels_do_not_go_unnoticed(shared_data: Path) -> None:
    pytest.importorskip("torch")
    expected = np.load(shared_data / "reference" / "astronaut_rgb.npz")
    boxes, _, _ = published_outputs(shared_data, "rgb", "astronaut", channels="bgr")
    assert np.abs(boxes - expected["box_regression"]).max() > 0.1


@pytest.mark.parametrize("photo", PHOTOS)
def test_decoding_and_suppression_give_the_published_detections(shared_data: Path, photo: str) -> None:
    golden = np.load(shared_data / "reference" / f"{photo}_rgb.npz")
    _, _, height, width = preprocessed(shared_data / "reference" / f"{photo}.png", "rgb").shape
    spec = AnchorSpec()
    anchors = make_anchors(width, height, spec)
    scores = golden["class_probability"][:, 1]
    rows = np.flatnonzero(scores > 0.5)
    boxes = decode_boxes(golden["box_regression"][rows], anchors[rows], spec.variances)
    points = decode_landmarks(golden["landmark_regression"][rows], anchors[rows], spec.variances)
    keep = non_maximum_suppression(boxes, scores[rows], 0.4)
    assert len(keep) == len(golden["detections"]) > 0
    np.testing.assert_allclose(boxes[keep], golden["detections"][:, :4], atol=0.1)
    np.testing.assert_allclose(scores[rows][keep], golden["detections"][:, 4], atol=1e-6)
    np.testing.assert_allclose(points[keep].reshape(-1, 10), golden["detections"][:, 5:], atol=0.1)


def slow_anchors(width: int, height: int, spec: AnchorSpec) -> FloatArray:
    rows = []
    for stride, sizes in zip(spec.strides_px, spec.sizes_px, strict=True):
        for y in range(height // stride):
            for x in range(width // stride):
                for size in sizes:
                    rows.append(((x + 0.5) * stride, (y + 0.5) * stride, size, size))
    return np.array(rows, np.float32)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 32), (32, 96), (320, 224)])
@pytest.mark.parametrize("spec", [AnchorSpec(), OTHER_ANCHORS], ids=["default", "other"])
def test_anchors_are_those_of_three_nested_loops(width: int, height: int, spec: AnchorSpec) -> None:
    np.testing.assert_array_equal(make_anchors(width, height, spec), slow_anchors(width, height, spec))


def test_anchors_are_cached_and_can_not_be_spoilt() -> None:
    anchors = make_anchors(64, 64, AnchorSpec())
    assert make_anchors(64, 64, AnchorSpec()) is anchors
    with pytest.raises(ValueError, match="read-only"):
        anchors[0] = 0


def test_decoding_inverts_the_coding_of_the_paper() -> None:
    random = np.random.default_rng(0)
    anchors = make_anchors(96, 64, AnchorSpec())
    centre = anchors[:, :2] + random.uniform(-9, 9, (len(anchors), 2))
    size = anchors[:, 2:] * random.uniform(0.5, 2, (len(anchors), 2))
    points = random.uniform(-20, 120, (len(anchors), 5, 2))
    coded_boxes = np.hstack(
        [(centre - anchors[:, :2]) / anchors[:, 2:] / 0.1, np.log(size / anchors[:, 2:]) / 0.2]
    )
    coded_points = (points - anchors[:, None, :2]) / anchors[:, None, 2:] / 0.1
    boxes = decode_boxes(coded_boxes.astype(np.float32), anchors, (0.1, 0.2))
    decoded_points = decode_landmarks(coded_points.reshape(-1, 10).astype(np.float32), anchors, (0.1, 0.2))
    np.testing.assert_allclose(boxes, np.hstack([centre - size / 2, centre + size / 2]), atol=1e-3)
    np.testing.assert_allclose(decoded_points, points, atol=1e-3)


def test_encoding_and_decoding_are_inverse() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    anchors = make_anchors(96, 64, AnchorSpec())
    corners = random.uniform(0, 60, (len(anchors), 2))
    boxes = np.hstack([corners, corners + random.uniform(5, 50, corners.shape)]).astype(np.float32)
    points = random.uniform(-20, 120, (len(anchors), 5, 2)).astype(np.float32)
    given = torch.from_numpy(anchors.copy())
    coded = encode_boxes(torch.from_numpy(boxes), given, (0.1, 0.2)).numpy()
    coded_points = encode_landmarks(torch.from_numpy(points), given, (0.1, 0.2)).numpy()
    np.testing.assert_allclose(decode_boxes(coded, anchors, (0.1, 0.2)), boxes, atol=1e-3)
    np.testing.assert_allclose(decode_landmarks(coded_points, anchors, (0.1, 0.2)), points, atol=1e-3)


def slow_suppression(boxes: FloatArray, scores: FloatArray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(slow_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(int(i))
    return kept


def slow_iou(a: FloatArray, b: FloatArray) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    areas = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / (areas - width * height)


def crowded_boxes(seed: int, count: int) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, 60, (count, 2)), random.uniform(5, 50, (count, 2))
    return np.hstack([corner, corner + size]).astype(np.float32), random.random(count).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_that_of_a_slow_loop(seed: int, threshold: float) -> None:
    boxes, scores = crowded_boxes(seed, 60)
    expected = slow_suppression(boxes, scores, threshold)
    assert non_maximum_suppression(boxes, scores, threshold).tolist() == expected


def test_suppression_is_that_of_torchvision() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    boxes, scores = crowded_boxes(seed=9, count=500)
    expected = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.45).tolist()
    assert 5 < len(expected) < 400
    assert non_maximum_suppression(boxes, scores, 0.45).tolist() == expected


def test_equal_scores_and_no_boxes_at_all() -> None:
    boxes = np.array([(0, 0, 10, 10), (0, 0, 10, 10), (20, 0, 30, 10)], np.float32)
    assert non_maximum_suppression(boxes, np.full(3, 0.9, np.float32), 0.4).tolist() == [0, 2]
    assert non_maximum_suppression(boxes[:0], np.zeros(0, np.float32), 0.4).tolist() == []


def candidates(*rows: tuple[float, float, float, float, float]) -> Faces:
    """Candidates from left, top, right, bottom and score; all five landmarks in the middle of the box."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    middles = (table[:, :2] + table[:, 2:4]) / 2
    return Faces(table[:, :4].copy(), table[:, 4].copy(), np.repeat(middles[:, None], 5, axis=1))


def test_candidates_of_a_face_agree_on_box_landmarks_and_score() -> None:
    # The second overlaps the first by 0.6, the third by 1/3 only: another face, which it suppresses at 0.3.
    found = candidates((0, 0, 20, 20, 0.8), (5, 0, 25, 20, 0.4), (10, 0, 30, 20, 0.6))
    face = box_voting(found, 0.3, 0.1)
    first, second = 0.8**2, 0.4**2 * 0.6
    left = 5 * second / (first + second)
    np.testing.assert_allclose(face.boxes_xyxy, [[left, 0, left + 20, 20]], atol=1e-5)
    np.testing.assert_allclose(face.landmarks, np.full((1, 5, 2), [left + 10, 10]), atol=1e-5)
    np.testing.assert_allclose(face.scores, [0.8 * (1 + 0.4 * 0.6) / 2], atol=1e-6)


def test_a_candidate_that_stands_alone_falls_behind_one_with_support() -> None:
    found = candidates((0, 0, 20, 20, 0.9), *[(100, 0, 120, 20, 0.7)] * 3)
    faces = box_voting(found, 0.4, 0.1)
    np.testing.assert_allclose(faces.boxes_xyxy[:, 0], [100, 0], atol=1e-4)
    np.testing.assert_allclose(faces.scores, [0.7 * (1 + 1 - 0.3**2) / 2, 0.45], atol=1e-6)
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.7, 0.7], err_msg="the candidates are as before")


def test_agreement_in_a_crowd_is_that_of_one_face_after_the_other() -> None:
    boxes, scores = crowded_boxes(seed=3, count=600)
    points = np.random.default_rng(3).uniform(0, 60, (len(boxes), 5, 2)).astype(np.float32)
    expected = []
    for best in slow_suppression(boxes, scores, 0.9):
        overlap = np.array([slow_iou(boxes[best], other) for other in boxes])
        same = np.flatnonzero(overlap >= 0.5)
        weights = scores[same] ** 2 * overlap[same]
        others = same[same != best]
        score = scores[best] * (2 - np.prod(1 - scores[others] * overlap[others])) / 2
        means = (np.average(column[same], axis=0, weights=weights) for column in (boxes, points))
        if score > 0.2:
            expected.append((score, *means))
    expected.sort(key=lambda face: -face[0])
    faces = box_voting(Faces(boxes, scores, points), 0.9, 0.2)
    assert len(faces) == len(expected) > 256
    np.testing.assert_allclose(faces.scores, [face[0] for face in expected], atol=1e-5)
    np.testing.assert_allclose(faces.boxes_xyxy, [face[1] for face in expected], atol=1e-3)
    np.testing.assert_allclose(faces.landmarks, [face[2] for face in expected], atol=1e-3)


def test_agreement_needs_neither_area_nor_candidates() -> None:
    point = candidates((5, 5, 5, 5, 0.9))
    np.testing.assert_allclose(box_voting(point, 0.4, 0.1).boxes_xyxy, point.boxes_xyxy)
    assert len(box_voting(candidates(), 0.4, 0.1)) == 0
