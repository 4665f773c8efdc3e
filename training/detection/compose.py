"""Crops made of several photos: mosaics, and small faces pasted into a crop."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from facepipe.faces import FloatArray, UInt8Array
from training.detection.augment import (
    AugmentConfig,
    TrainingCrop,
    mirror_boxes,
    mirror_landmarks,
    recolour,
)
from training.detection.labels import LabelledPhoto

_PASTE_MARGIN = 0.3
_PLACE_TRIES = 10


def mosaic(crops: Sequence[TrainingCrop]) -> TrainingCrop:
    """One crop of four of half its size: top left, top right, bottom left, bottom right."""
    half = crops[0].pixels.shape[0]
    offsets = [np.array([x, y], np.float32) for y in (0, half) for x in (0, half)]
    top, bottom = (np.concatenate([crop.pixels for crop in pair], axis=1) for pair in (crops[:2], crops[2:]))
    placed = list(zip(crops, offsets, strict=True))
    return TrainingCrop(
        np.concatenate([top, bottom]),
        np.concatenate([crop.boxes_xyxy + np.tile(offset, 2) for crop, offset in placed]),
        np.concatenate([crop.landmarks + offset for crop, offset in placed]),
        np.concatenate([crop.ignored_xyxy + np.tile(offset, 2) for crop, offset in placed]),
    )


def paste_faces(
    crop: TrainingCrop,
    pixels: UInt8Array,
    donor: LabelledPhoto,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> TrainingCrop:
    """The crop with up to `config.paste_faces` faces of another photo, made small, where there were none."""
    faces = _lonely_faces(donor, pixels.shape[1], pixels.shape[0], config.paste_px[0])
    for row in rng.permutation(faces)[: config.paste_faces]:
        crop = _paste_one(crop, pixels, donor.boxes_xyxy[row], donor.landmarks[row], config, rng)
    return crop


def _lonely_faces(donor: LabelledPhoto, width: int, height: int, least_px: float) -> list[int]:
    """Rows of faces that are large enough to be made small, whole, and have no other face in their margin."""
    boxes = np.concatenate([donor.boxes_xyxy, donor.ignored_xyxy])
    rows = []
    for row, box in enumerate(donor.boxes_xyxy):
        patch = _with_margin(box)
        whole = patch[0] >= 0 and patch[1] >= 0 and patch[2] <= width and patch[3] <= height
        if whole and min(box[2:] - box[:2]) >= least_px and _touched(patch, boxes) == 1:
            rows.append(row)
    return rows


def _paste_one(
    crop: TrainingCrop,
    pixels: UInt8Array,
    box: FloatArray,
    points: FloatArray,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> TrainingCrop:
    left, top, right, bottom = (round(float(edge)) for edge in _with_margin(box))
    shorter = float(min(box[2:] - box[:2]))
    low, high = config.paste_px
    scale = float(np.exp(rng.uniform(np.log(low), np.log(max(low, min(high, shorter)))))) / shorter
    size_wh = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    place = _free_place(crop, size_wh, rng)
    if place is None:
        return crop
    part = pixels[top:bottom, left:right]
    patch = np.asarray(cv2.resize(part, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    scales = np.array([size_wh[0] / (right - left), size_wh[1] / (bottom - top)], np.float32)
    offset = np.array([left, top], np.float32)
    new_box = ((box - np.tile(offset, 2)) * np.tile(scales, 2))[None]
    new_points = ((points - offset) * scales)[None]
    if rng.random() < 0.5:
        patch = np.ascontiguousarray(patch[:, ::-1])
        new_box, new_points = mirror_boxes(new_box, size_wh[0]), mirror_landmarks(new_points, size_wh[0])
    return TrainingCrop(
        _blended(crop.pixels, recolour(patch, config, rng), place),
        np.concatenate([crop.boxes_xyxy, (new_box + np.tile(place, 2)).astype(np.float32)]),
        np.concatenate([crop.landmarks, (new_points + place).astype(np.float32)]),
        crop.ignored_xyxy,
    )


def _free_place(
    crop: TrainingCrop, size_wh: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a patch of this size that touches no face; None: not found."""
    side = crop.pixels.shape[0]
    taken = np.concatenate([crop.boxes_xyxy, crop.ignored_xyxy])
    if max(size_wh) > side:
        return None
    for _ in range(_PLACE_TRIES):
        x, y = int(rng.integers(side - size_wh[0] + 1)), int(rng.integers(side - size_wh[1] + 1))
        if not _touched(np.array([x, y, x + size_wh[0], y + size_wh[1]], np.float32), taken):
            return x, y
    return None


def _blended(pixels: UInt8Array, patch: UInt8Array, place: tuple[int, int]) -> UInt8Array:
    """A straight seam would give a pasted face away: the margin fades into the picture."""
    x, y = place
    height, width = patch.shape[:2]
    ramps = [np.minimum(np.arange(n) + 1, np.arange(n, 0, -1)) / (0.12 * n + 1) for n in (height, width)]
    alpha = np.clip(np.minimum.outer(*ramps), 0, 1)[..., None]
    result = pixels.copy()
    under = result[y : y + height, x : x + width]
    result[y : y + height, x : x + width] = np.rint(alpha * patch + (1 - alpha) * under).astype(np.uint8)
    return result


def _with_margin(box: FloatArray) -> FloatArray:
    margin = _PASTE_MARGIN * (box[2:] - box[:2])
    return np.concatenate([box[:2] - margin, box[2:] + margin])


def _touched(patch: FloatArray, boxes: FloatArray) -> int:
    """How many boxes overlap the patch."""
    apart = (boxes[:, :2] >= patch[2:]) | (boxes[:, 2:] <= patch[:2])
    return int((~apart.any(axis=1)).sum())
