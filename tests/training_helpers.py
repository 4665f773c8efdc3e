"""A tiny labelled data set, made from the astronaut photo."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from facepipe.faces import FloatArray, UInt8Array
from facepipe.images import write_image
from training.detection.labels import LabelledPhoto

FACE_XYXY = np.array([178, 68, 268, 186], np.float32)
LANDMARKS = np.array([[203, 108], [244, 108], [225, 130], [206, 152], [242, 152]], np.float32)
"""Of the astronaut, as the viewer sees her."""


def write_dataset(folder: Path, astronaut: UInt8Array, scales: tuple[float, ...] = (0.25, 0.4)) -> Path:
    """`folder/images/*.png` and `folder/label.txt` in RetinaFace's form: the photo at several scales."""
    lines = []
    (folder / "images").mkdir(parents=True)
    for i, scale in enumerate(scales):
        size = round(512 * scale)
        write_image(folder / "images" / f"{i}.png", cv2.resize(astronaut, (size, size)).astype(np.uint8))
        x, y, right, bottom = FACE_XYXY * size / 512
        points = " ".join(f"{px:.2f} {py:.2f} 0" for px, py in LANDMARKS * size / 512)
        lines += [f"# {i}.png", f"{x:.2f} {y:.2f} {right - x:.2f} {bottom - y:.2f} {points} 0.9"]
    (folder / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def labelled(
    boxes: FloatArray | list[list[float]],
    landmarks: FloatArray | None = None,
    ignored: list[list[float]] | None = None,
) -> LabelledPhoto:
    """Labels of a photo that is in memory only."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    points = np.full((len(boxes), 5, 2), np.nan, np.float32) if landmarks is None else landmarks
    return LabelledPhoto(Path("memory"), boxes, points, np.array(ignored or [], np.float32).reshape(-1, 4))
