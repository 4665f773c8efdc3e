from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_helpers import labelled, write_dataset

from facepipe.core.errors import DataError, UsageError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.training.detection.augment import (
    PADDING_RGB,
    AugmentConfig,
    augment,
    turn_boxes,
    turn_crop,
    turn_points,
)
from facepipe.training.detection.crops import CropBatches, CropSampler, WeightedPhotos
from facepipe.training.detection.data import PhotoFiles
from facepipe.training.detection.pictures import preview
from facepipe.training.engine.stream import endless_batches

_PLAIN = AugmentConfig(size_px=160, colour_share=0, gray_share=0)
_DOT_RGB = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]])
_MIRRORED = [1, 0, 2, 4, 3]


def _test_card(width: int = 300, height: int = 200) -> tuple[UInt8Array, LabelledPhoto]:
    """A gray photo with a white face that fills its box, and a dot of its own colour at each landmark."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    left, top, side = 120, 60, 80
    pixels[top : top + side, left : left + side] = 255
    points = np.array([[140, 85], [180, 85], [160, 100], [145, 120], [175, 120]], np.float32)
    for (x, y), colour in zip(points.astype(int), _DOT_RGB, strict=True):
        pixels[y - 6 : y + 6, x - 6 : x + 6] = colour
    return pixels, labelled([[left, top, left + side, top + side]], points[None])


def _white_box(crop: UInt8Array) -> FloatArray:
    """Edges of what is neither background nor padding."""
    face = np.abs(crop.astype(int) - 90).max(axis=2) > 80
    padding = (np.abs(crop.astype(int) - PADDING_RGB) <= 2).all(axis=2)
    rows, columns = np.nonzero(face & ~padding)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def test_levels_keep_a_whole_face_at_their_scales() -> None:
    pixels, photo = _test_card()
    config = replace(_PLAIN, crop_levels=(0.3, 0.6, 0.8, 1.0), min_face_px=0)
    faces = [augment(pixels, photo, config, np.random.default_rng(seed)).boxes_xyxy for seed in range(100)]
    sides = [float(boxes[0, 2] - boxes[0, 0]) for boxes in faces]
    # A face of 80 px fits into 0.6, 0.8 and 1 of 200 px, never into 0.3.
    assert {round(160 * 80 / side) for side in sides} == {120, 160, 200}
    assert all(len(boxes) == 1 for boxes in faces)
    large = labelled([[0, 0, 300, 200]])
    whole = augment(pixels, large, replace(config, crop_levels=(0.3,)), np.random.default_rng(0))
    assert whole.boxes_xyxy.tolist() == [pytest.approx([0, 0, 160, 160 * 200 / 300])]


@pytest.mark.parametrize("seed", range(4))
def test_letterboxed_photos_lie_in_the_centre_on_gray(seed: int) -> None:
    pixels, photo = _test_card()
    config = replace(_PLAIN, scale_range=(0.4, 0.4), whole_photo_share=0, letterbox=True)
    crop = augment(pixels, photo, config, np.random.default_rng(seed))
    # The window is 400 px wide: 50 and 100 px of the photo's, 20 and 40 px of the crop's, at each side.
    assert (crop.pixels[:40] == 128).all()
    assert (crop.pixels[120:] == 128).all()
    assert (crop.pixels[:, :20] == 128).all()
    assert (crop.pixels[:, 140:] == 128).all()
    assert not (crop.pixels[40:120, 20:140] == 128).all(axis=2).any()
    centre_x = 20 + 0.4 * 160
    expected = {round(centre_x), round(160 - centre_x)}
    assert round(float(crop.boxes_xyxy[0, [0, 2]].mean())) in expected
    assert crop.boxes_xyxy[0, [1, 3]].mean() == pytest.approx(40 + 0.4 * 100)


def _nearest_dot(crop: UInt8Array, point: FloatArray) -> int:
    x, y = (int(value) for value in point)
    return int(np.abs(_DOT_RGB - crop[y, x]).sum(axis=1).argmin())


@pytest.mark.parametrize("whole_photo_share", [0, 0.25, 1])
@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_landmarks_follow_the_pixels(whole_photo_share: float, seed: int) -> None:
    pixels, photo = _test_card()
    config = replace(_PLAIN, whole_photo_share=whole_photo_share, scale_range=(0.5, 2.0))
    crop = augment(pixels, photo, config, np.random.default_rng(seed))
    assert crop.pixels.shape == (160, 160, 3)
    (box,) = crop.boxes_xyxy
    np.testing.assert_allclose(_white_box(crop.pixels), box, atol=1.5)
    inside = ((crop.landmarks[0] >= 2) & (crop.landmarks[0] < 158)).all(axis=1)
    dots = [_nearest_dot(crop.pixels, point) for point in crop.landmarks[0][inside]]
    unchanged, mirrored = np.flatnonzero(inside).tolist(), np.array(_MIRRORED)[inside].tolist()
    assert dots in (unchanged, mirrored)
    if inside.all():  # left and right are as the viewer sees them, mirrored or not
        points = crop.landmarks[0]
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]


def test_half_of_the_crops_are_mirrored() -> None:
    pixels, photo = _test_card(260, 260)
    config = replace(_PLAIN, whole_photo_share=1)
    crops = [augment(pixels, photo, config, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = sum(_nearest_dot(crop.pixels, crop.landmarks[0, 0]) == 1 for crop in crops)
    assert 70 < mirrored < 130


@pytest.mark.parametrize("seed", range(20))
def test_crops_keep_a_face_that_trains_where_the_photo_has_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 280, (30, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + random.uniform(2, 12, (30, 1))], axis=1).astype(np.float32)
    boxes[0] = 40, 50, 70, 90
    pixels = np.zeros((300, 320, 3), np.uint8)
    crop = augment(pixels, labelled(boxes), _PLAIN, random)
    assert len(crop.boxes_xyxy) >= 1
    sides = crop.boxes_xyxy[:, 2:] - crop.boxes_xyxy[:, :2]
    assert (sides > 0).all()
    assert crop.boxes_xyxy.min() >= 0
    assert crop.boxes_xyxy.max() <= 160
    assert crop.ignored_xyxy.shape[1] == 4


def test_small_cut_and_invalid_faces_are_ignored_and_broken_boxes_dropped() -> None:
    config = replace(_PLAIN, whole_photo_share=1, min_face_px=10)
    boxes: list[list[float]] = [
        [40, 40, 60, 60],
        [80, 80, 85, 85],
        [-30, 40, 10, 60],
        [100, 100, 100, 120],
        [90, 95, 85, 120],
    ]
    photo = labelled(boxes, ignored=[[120, 120, 140, 140]])
    crop = augment(np.zeros((160, 160, 3), np.uint8), photo, config, np.random.default_rng(1))
    assert len(crop.boxes_xyxy) == 1
    sizes = sorted((crop.ignored_xyxy[:, 2:] - crop.ignored_xyxy[:, :2]).tolist())
    assert sizes == [[5, 5], [10, 20], [20, 20]]


@pytest.mark.parametrize("size", [(40, 40), (31, 400), (400, 31), (1, 1), (700, 500)])
def test_photos_of_any_size_without_faces(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 200, np.uint8)
    for seed in range(10):
        crop = augment(pixels, labelled([]), _PLAIN, np.random.default_rng(seed))
        assert crop.pixels.shape == (160, 160, 3)
        colours = np.unique(crop.pixels.reshape(-1, 3), axis=0).tolist()
        assert [200, 200, 200] in colours
        assert all(colour in ([200] * 3, list(PADDING_RGB)) for colour in colours)


def test_the_widest_window_bounds_the_padding() -> None:
    """A photo of 100 px, at a scale of 0.1 in a crop of 320 px: 160 px of it at least, or 10 px."""
    pixels = np.full((100, 100, 3), 255, np.uint8)
    for widest, side in ((2.0, 160), (40.0, 10)):
        config = replace(
            _PLAIN, size_px=320, scale_range=(0.1, 0.1), whole_photo_share=0, widest_window=widest
        )
        crop = augment(pixels, labelled([]), config, np.random.default_rng(0)).pixels
        assert abs((crop > 200).all(axis=2).sum() - side**2) <= 4 * side


def test_colours_change_the_photo_and_never_the_padding() -> None:
    config = AugmentConfig(160, scale_range=(1.6, 1.6), whole_photo_share=0, colour_share=1, gray_share=0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    crops = [augment(pixels, labelled([]), config, np.random.default_rng(seed)) for seed in range(5)]
    for crop in crops:
        assert (crop.pixels == PADDING_RGB).all(axis=2).mean() > 0.4
    plain = augment(
        pixels, labelled([]), replace(config, colour_share=0, gray_share=0), np.random.default_rng(0)
    )
    assert any(not np.array_equal(crop.pixels, plain.pixels) for crop in crops)


@pytest.mark.parametrize(
    "settings",
    [
        {"size_px": 100},
        {"size_px": 0},
        {"scale_range": (0.0, 1.0)},
        {"scale_range": (2.0, 1.0)},
        {"gray_share": -0.1},
        {"crop_levels": (0.3, 1.2)},
        {"crop_levels": (0.0,)},
        {"turn_share": 1.1},
        {"widest_window": 0.5},
        {"min_face_px": -1.0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(AugmentConfig(), **settings)  # type: ignore[arg-type]


@pytest.fixture
def sampler(tmp_path: Path, astronaut: UInt8Array) -> CropSampler:
    one = read_labels(write_dataset(tmp_path / "one", astronaut))
    two = read_labels(write_dataset(tmp_path / "two", astronaut, (0.3,)))
    config = AugmentConfig(size_px=64)
    return CropSampler(
        [WeightedPhotos(PhotoFiles(one), 3), WeightedPhotos(PhotoFiles(two), 1)], config, seed=5
    )


def test_sample_i_is_a_function_of_the_seed_and_i(sampler: CropSampler) -> None:
    backwards = [sampler[i] for i in reversed(range(12))][::-1]
    for i, sample in enumerate(backwards):
        again = sampler[i]
        assert again.file == sample.file
        assert np.array_equal(again.crop.pixels, sample.crop.pixels)
        assert np.array_equal(again.crop.boxes_xyxy, sample.crop.boxes_xyxy)
    assert len({sample.crop.pixels.tobytes() for sample in backwards}) == 12


def test_photos_that_cannot_be_read_are_passed_over_and_named(sampler: CropSampler) -> None:
    before = [sampler[i] for i in range(12)]
    broken = Path(before[0].file)
    broken.write_bytes(b"no photo")
    after = [sampler[i] for i in range(12)]
    for old, new in zip(before, after, strict=True):
        if old.file != str(broken):
            assert np.array_equal(old.crop.pixels, new.crop.pixels)
            continue
        assert new.file != str(broken)
        assert new.unreadable
        assert all(reason.startswith(str(broken)) for reason in new.unreadable)
    batch = CropBatches(sampler, 12).batch(0)
    assert batch.unreadable == [reason for sample in after for reason in sample.unreadable]
    for path in {Path(sample.file) for sample in (*before, *(sampler[i] for i in range(60)))}:
        path.unlink()
    with pytest.raises(DataError, match=r"20 photos in a row can't be read, such as .*; check with"):
        sampler[0]


def test_data_sets_come_by_their_weights(sampler: CropSampler) -> None:
    share = np.mean(["/two/" in sampler[i].file for i in range(200)])
    assert 0.15 < share < 0.35


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_samples_in_order_whatever_the_workers(sampler: CropSampler, workers: int) -> None:
    source = CropBatches(sampler, 2)
    with closing(endless_batches(source, first_batch=3, every=1, workers=workers)) as batches:
        for number in range(3, 15):
            batch = next(batches)
            for i, pixels in enumerate(batch.pixels):
                assert np.array_equal(pixels.numpy(), sampler[2 * number + i].crop.pixels)
                assert batch.files[i] == sampler[2 * number + i].file
            assert batch.files == source.files(number)


def test_processes_take_turns(sampler: CropSampler) -> None:
    ranks = [
        endless_batches(CropBatches(sampler, 1), first_batch=rank, every=2, workers=0) for rank in range(2)
    ]
    alone = endless_batches(CropBatches(sampler, 1), first_batch=0, every=1, workers=0)
    for _ in range(3):
        for rank in ranks:
            assert np.array_equal(next(rank).pixels.numpy(), next(alone).pixels.numpy())


def test_the_preview_shows_boxes_and_ignored_faces(tmp_path: Path, astronaut: UInt8Array) -> None:
    photos = read_labels(write_dataset(tmp_path, astronaut))
    photos = [replace(photo, ignored_xyxy=np.array([[4, 4, 30, 30]], np.float32)) for photo in photos]
    config = AugmentConfig(size_px=64, whole_photo_share=1, colour_share=0, gray_share=0)
    sheet = preview([WeightedPhotos(PhotoFiles(photos), 1)], config, count=5, columns=3, cell_px=100)
    assert sheet.shape == (2 * 106, 3 * 106, 3)
    for colour in ((0, 230, 80), (255, 160, 0), (255, 0, 0), (0, 120, 255)):
        assert (sheet == colour).all(axis=2).sum() > 10


def test_turning_moves_pixels_points_and_boxes_together() -> None:
    crop = np.zeros((64, 64, 3), np.uint8)
    crop[12:17, 40:45] = 255
    spot = np.array([[42.0, 14.0]], np.float32)
    for degrees in (-40.0, 25.0, 90.0):
        bright = np.argwhere(turn_crop(crop, degrees)[..., 0] > 128)[:, ::-1].mean(axis=0)
        assert turn_points(spot, 64, degrees)[0] == pytest.approx(bright, abs=0.6)
    box = np.array([[30.0, 20.0, 40.0, 44.0]], np.float32)
    quarter = turn_boxes(box, 64, 90.0)[0]
    assert quarter[2:] - quarter[:2] == pytest.approx([24, 10], abs=1e-4)
    assert turn_boxes(box, 64, 0.0) == pytest.approx(box, abs=1e-5)
