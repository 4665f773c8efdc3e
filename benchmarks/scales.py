"""How closely should the detector look? AP and time for several `max_side`, as they are and at 12 MP.

    python benchmarks/scales.py DATASET [--mosaics N]

DATASET has `images/` and `label.txt` (docs/training.md). The 12-megapixel group photos are mosaics of twelve
photos each, at 4000x3000, so that their faces are as small as in a hall full of people.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np

from facepipe.commands.options import Setup, with_setup
from facepipe.detector import FaceDetector
from facepipe.faces import FloatArray, UInt8Array
from facepipe.images import read_image
from training.detection.data import LabelledPhoto, read_labels
from training.evaluation.detection import detection_ap
from weights.registry import DEFAULT_DETECTOR

_TILE_PX = 1000
_COLUMNS, _ROWS = 4, 3
Labelled = tuple[UInt8Array, FloatArray]


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--mosaics", default=12, show_default=True)
@with_setup
def main(setup: Setup, dataset: Path, mosaics: int) -> None:
    """Print a table."""
    photos = read_labels(dataset)
    step = max(1, len(photos) // (mosaics * _COLUMNS * _ROWS))
    chosen = photos[::step][: mosaics * _COLUMNS * _ROWS]
    options = replace(setup.detector_options(), score_threshold=0.02)
    detector = FaceDetector.load(setup.detector_weights or DEFAULT_DETECTOR, options, setup.choose_runtime())
    singles = [(read_image(photo.path), photo.boxes_xyxy) for photo in chosen]
    count = _COLUMNS * _ROWS
    groups = [_mosaic(chosen[at : at + count]) for at in range(0, len(chosen) - count + 1, count)]
    for title, labelled in (("photos as they are", singles), ("mosaics of 12 MP", groups)):
        click.echo(f"{title}: {len(labelled)}")
        for max_side in (640, 960, 1280, 1600, 2048, 3000, None):
            detector.options = replace(options, max_side=max_side)
            ap, milliseconds = _measure(detector, labelled)
            click.echo(
                f"  max_side {max_side or 'original':>8}  AP {100 * ap:5.1f}  {milliseconds:7.1f} ms/photo"
            )


def _measure(detector: FaceDetector, labelled: list[Labelled]) -> tuple[float, float]:
    found, seconds = {}, 0.0
    for i, (image, _) in enumerate(labelled):
        started = time.perf_counter()
        faces = detector.detect(image)
        seconds += time.perf_counter() - started
        found[str(i)] = np.concatenate([faces.boxes_xyxy, faces.scores[:, None]], axis=1)
    truth = {str(i): boxes for i, (_, boxes) in enumerate(labelled)}
    return detection_ap(truth, found) or 0.0, 1000 * seconds / len(labelled)


def _mosaic(photos: list[LabelledPhoto]) -> Labelled:
    canvas = np.zeros((_ROWS * _TILE_PX, _COLUMNS * _TILE_PX, 3), np.uint8)
    boxes = []
    for i, photo in enumerate(photos):
        image = read_image(photo.path)
        scale = min(1.0, _TILE_PX / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = divmod(i, _COLUMNS)
        top, left = top * _TILE_PX, left * _TILE_PX
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        boxes.append(photo.boxes_xyxy * scale + np.array([left, top, left, top], np.float32))
    return canvas, np.concatenate(boxes)


if __name__ == "__main__":
    main()
