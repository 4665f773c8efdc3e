"""The WIDER FACE protocol: by hand, against a slow oracle that reads like the protocol, on real photos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from wider_helpers import write_ground_truth

from facepipe.core.errors import DataError
from facepipe.evaluation.arrays import Float64Array
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.evaluation.metrics.detection import (
    HEIGHT_BINS_PX,
    iou_with_edges,
    labelled_ap,
    match_detections,
    precision_recall,
)
from facepipe.evaluation.metrics.wider import (
    WiderGroundTruth,
    WiderPhoto,
    wider_ap,
    wider_key,
)


def oracle_ap(
    photos: Mapping[str, WiderPhoto], detections: Mapping[str, Float64Array], setting: int
) -> float:
    """The official protocol step by step: one detection, one threshold at a time."""
    every_score = np.concatenate([rows[:, 4] for rows in detections.values()])
    low, high = every_score.min(), every_score.max()
    proposals_at, hits_at, faces = np.zeros(1000), np.zeros(1000), 0
    for key, rows in detections.items():
        boxes, counted = photos[key].boxes_xyxy, photos[key].counted[setting]
        faces += int(counted.sum())
        rows = rows[np.argsort(-rows[:, 4], kind="stable")].copy()
        rows[:, 4] = (rows[:, 4] - low) / (high - low)
        recalled = np.zeros(len(boxes), int)
        proposal = np.ones(len(rows), int)
        recall_after = np.zeros(len(rows), int)
        for i, row in enumerate(rows):
            overlaps = [_oracle_iou(box, row) for box in boxes]
            best = int(np.argmax(overlaps))
            if overlaps[best] >= 0.5:
                if not counted[best]:
                    recalled[best], proposal[i] = -1, -1
                elif recalled[best] == 0:
                    recalled[best] = 1
            recall_after[i] = (recalled == 1).sum()
        for t in range(1000):
            reached = np.flatnonzero(rows[:, 4] >= 1 - (t + 1) / 1000)
            if len(reached):
                proposals_at[t] += (proposal[: reached[-1] + 1] == 1).sum()
                hits_at[t] += recall_after[reached[-1]]
    return _oracle_area(hits_at / np.maximum(proposals_at, 1), hits_at / faces)


def _oracle_iou(a: Float64Array, b: Float64Array) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def _oracle_area(precision: Float64Array, recall: Float64Array) -> float:
    area, left = 0.0, 0.0
    for i, right in enumerate(recall):
        area += (right - left) * max(precision[i:])
        left = right
    return float(area)


def random_benchmark(seed: int) -> tuple[WiderGroundTruth, dict[str, Float64Array]]:
    """Crowded photos with many near misses, duplicates, ignored faces and equal scores."""
    rng = np.random.default_rng(seed)
    photos: dict[str, WiderPhoto] = {}
    detections: dict[str, Float64Array] = {}
    for i in range(6):
        n = int(rng.integers(1, 12))
        corners = rng.uniform(0, 120, (n, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (n, 2))], axis=1)
        easy = rng.random(n) < 0.4
        medium = easy | (rng.random(n) < 0.4)
        photos[f"e/{i}"] = WiderPhoto(boxes, (easy, medium, medium | (rng.random(n) < 0.5)))
        guesses = boxes[rng.integers(0, n, 3 * n)] + rng.normal(0, 5, (3 * n, 4))
        detections[f"e/{i}"] = np.concatenate([guesses, rng.random((3 * n, 1)).round(2)], axis=1)
    detections["e/3"] = np.zeros((0, 5))
    return WiderGroundTruth(photos), detections


@pytest.mark.parametrize("seed", range(5))
def test_wider_ap_equals_the_protocol_step_by_step(seed: int) -> None:
    truth, detections = random_benchmark(seed)
    result = wider_ap(truth, detections)
    for setting, curve in enumerate(result.curves.values()):
        assert curve.ap == pytest.approx(oracle_ap(truth.photos, detections, setting), abs=1e-12)
    assert 0 < (result.curves["hard"].ap or 0) < 1


def test_wider_ap_is_of_detections_not_of_their_order() -> None:
    truth, detections = random_benchmark(9)
    for key, rows in detections.items():
        rows[:, 4] += np.arange(len(rows)) * 1e-4 + int(key[-1]) * 1e-3  # equal scores would keep their order
    shuffled = {key: np.random.default_rng(1).permutation(rows) for key, rows in reversed(detections.items())}
    assert wider_ap(truth, detections).to_dict() == wider_ap(truth, shuffled).to_dict()


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        ((0, 0, 9, 9), 1.0),
        ((0, 0, 9, 4), 0.5),
        ((9, 9, 18, 18), 1 / 199),  # the one pixel that both include
        ((10, 0, 19, 9), 0.0),
        ((0, 0, -1, -1), 0.0),  # no pixel
    ],
)
def test_iou_includes_the_edges(other: tuple[int, ...], iou: float) -> None:
    assert iou_with_edges(np.array([[0, 0, 9, 9]]), np.array([other]))[0, 0] == pytest.approx(iou)


FACES = np.array([[0, 0, 20, 20], [100, 0, 120, 20], [200, 0, 220, 20]], np.float64)


def _row(face: int, score: float) -> list[float]:
    return [*FACES[face], score]


MISS = [500.0, 500.0, 520.0, 520.0]


@pytest.mark.parametrize(
    ("rows", "counted", "ap"),
    [
        ([_row(0, 0.9), _row(1, 0.8), _row(2, 0.7)], [1, 1, 1], 1.0),
        ([_row(0, 0.9)], [1, 1, 1], 1 / 3),
        # precision 1 up to a recall of 1/3, then 2/3 and 3/4, which made falling is 3/4 twice
        ([_row(0, 0.9), [*MISS, 0.8], _row(1, 0.7), _row(2, 0.6)], [1, 1, 1], 1 / 3 + 3 / 4 * 2 / 3),
        # the second detection of a face is a false alarm
        ([_row(0, 0.9), _row(0, 0.8), _row(1, 0.7)], [1, 1, 0], 1 / 2 + 2 / 3 / 2),
        # those of an ignored face are nothing at all
        ([_row(2, 0.9), _row(2, 0.8), _row(0, 0.7), _row(1, 0.6)], [1, 1, 0], 1.0),
        ([[*MISS, 0.9]], [1, 1, 1], 0.0),
        ([[*MISS, 0.9]], [0, 0, 0], None),
    ],
)
def test_ap_by_hand(rows: list[list[float]], counted: list[int], ap: float | None) -> None:
    matching = match_detections([FACES], [np.array(rows)])
    assert precision_recall(matching, np.array(counted, bool)).ap == pytest.approx(ap)


def _labelled(boxes: list[list[float]], ignored: list[list[float]] | None = None) -> LabelledPhoto:
    points = np.full((len(boxes), 5, 2), np.nan, np.float32)
    arrays = [np.array(rows or [], np.float32).reshape(-1, 4) for rows in (boxes, ignored)]
    return LabelledPhoto(Path("a"), arrays[0], points, arrays[1])


def _ap(photos: list[LabelledPhoto], found: list[list[list[float]]]) -> float | None:
    rows = [np.array(row, np.float64).reshape(-1, 5) for row in found]
    return labelled_ap(photos, rows, min_face_px=10).curves["labelled"].ap


def test_without_detections_nothing_is_found() -> None:
    assert _ap([_labelled([[0, 0, 50, 50]])], [[]]) == 0.0
    assert _ap([_labelled([])], [[]]) is None


def test_labelled_ap_ignores_low_and_ignored_faces_and_counts_alarms_in_empty_photos() -> None:
    photos = [_labelled([[0, 0, 50, 50], [100, 100, 105, 105]], [[200, 0, 250, 50]]), _labelled([])]
    rows = [[0, 0, 50, 50, 0.5], [100, 100, 105, 105, 0.9], [200, 0, 250, 50, 0.9]]
    assert _ap(photos, [rows, []]) == 1.0
    assert _ap(photos, [rows, [[0, 0, 50, 50, 0.8]]]) == 0.5
    assert labelled_ap(photos, [np.array(rows), np.zeros((0, 5))]).to_dict()["faces"] == {"labelled": 1}


def test_heights_are_measured_in_their_own_bin() -> None:
    boxes = np.array([[0, 0, 20, 20], [100, 0, 140, 40]], np.float64)
    every = np.ones(2, bool)
    truth = WiderGroundTruth({"e/a": WiderPhoto(boxes, (every, every, every))})
    # a false alarm 40 px high, better scored than both faces: only the bin of 32..64 px may suffer
    rows = np.array([[300, 300, 340, 340, 0.9], [0, 0, 20, 20, 0.8], [100, 0, 140, 40, 0.7]])
    by_height = {b.low_px: b for b in wider_ap(truth, {"e/a": rows}).by_height}
    assert (by_height[16].ap, by_height[32].ap, by_height[0].ap) == (1.0, 0.5, None)
    assert [b.faces for b in by_height.values()] == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({"0--Parade/x": np.zeros((1, 5))}, "0--Parade/x: not a photo"),
        ({"e/0": np.zeros((1, 4))}, r"shape \(n, 5\).*got \(1, 4\)"),
        ({"e/0": np.full((1, 5), np.nan)}, "not finite"),
        ({}, "at least one photo"),
    ],
)
def test_malformed_detections_are_refused(detections: dict[str, Float64Array], message: str) -> None:
    truth, _ = random_benchmark(0)
    with pytest.raises(DataError, match=message):
        wider_ap(truth, detections)


TRUTH = {"0--Parade/one": [[1, 2, 10, 20]], "0--Parade/two": [[0, 0, 5, 5], [7, 7, 9, 9]]}


def _write_ground_truth(folder: Path, kept: list[int]) -> None:
    write_ground_truth(folder, TRUTH, {"0--Parade/two": kept})


def test_ground_truth_files_are_read(tmp_path: Path) -> None:
    _write_ground_truth(tmp_path, kept=[2])
    photos = WiderGroundTruth.load(tmp_path).photos
    assert photos.keys() == {"0--Parade/one", "0--Parade/two"}
    assert photos["0--Parade/one"].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert [mask.tolist() for mask in photos["0--Parade/one"].counted] == [[False]] * 3
    assert [mask.tolist() for mask in photos["0--Parade/two"].counted] == [[False, True]] * 3


def test_bad_ground_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wider_face_val\.mat: WIDER FACE ground truth not found"):
        WiderGroundTruth.load(tmp_path)
    _write_ground_truth(tmp_path, kept=[3])
    with pytest.raises(DataError, match=r"wider_easy_val\.mat: keeps face 3 of a photo that has 2"):
        WiderGroundTruth.load(tmp_path)
    (tmp_path / "wider_easy_val.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"wider_easy_val\.mat: not WIDER FACE ground truth"):
        WiderGroundTruth.load(tmp_path)


def test_key_of_a_photo() -> None:
    assert wider_key(Path("any/images/0--Parade/0_Parade_x_0_1.webp")) == "0--Parade/0_Parade_x_0_1"


@pytest.fixture(scope="module")
def official(shared_data: Path) -> WiderGroundTruth:
    return WiderGroundTruth.load(shared_data / "wider" / "ground_truth")


def test_official_ground_truth_has_the_published_counts(official: WiderGroundTruth) -> None:
    counted = [sum(int(p.counted[i].sum()) for p in official.photos.values()) for i in range(3)]
    assert (len(official.photos), counted) == (3226, [7211, 13319, 31958])


YUNET_AP_ON_40 = [0.845, 0.851, 0.805]


def test_real_detections_on_real_photos(official: WiderGroundTruth, shared_data: Path) -> None:
    """A published detector (YuNet) on every tenth development photo.

    On all 400 this code gives 88.4 / 87.2 / 78.7, as an independent implementation of the protocol did.
    """
    photos = sorted((shared_data / "wider" / "dev" / "images").rglob("*.webp"))[::10]
    detections = _yunet(shared_data / "weights" / "yunet_n_dynamic.onnx", photos)
    result = wider_ap(official, detections)
    curves = result.curves.values()
    assert [curve.ap for curve in curves] == pytest.approx(YUNET_AP_ON_40, abs=0.005)
    assert [curve.ap for curve in curves] == pytest.approx(
        [oracle_ap(official.photos, detections, setting) for setting in range(3)], abs=1e-12
    )
    assert sum(b.faces for b in result.by_height) == result.curves["hard"].faces
    assert len(result.by_height) == len(HEIGHT_BINS_PX) - 1


def _yunet(weights: Path, photos: list[Path]) -> dict[str, Float64Array]:
    import cv2

    net = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), 0.02, 0.45, 5000)
    detections = {}
    for photo in photos:
        pixels = cv2.imread(str(photo))
        assert pixels is not None
        net.setInputSize((pixels.shape[1], pixels.shape[0]))
        found = net.detect(pixels)[1]
        rows = np.zeros((0, 15)) if found is None else np.asarray(found, np.float64)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        detections[wider_key(photo)] = np.concatenate([corners, rows[:, 14:15]], axis=1)
    return detections


def test_settings_hold_one_another(official: WiderGroundTruth) -> None:
    for photo in official.photos.values():
        easy, medium, hard = photo.counted
        assert medium[easy].all()
        assert hard[medium].all()
