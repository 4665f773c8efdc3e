"""Speed and accuracy of the detector beside those of others.

    python -m benchmarks.detector [--data FOLDER] [--yunet FILE] [--size WxH]... [--rounds N] [--json]

All detect in the same photos, in turns: our detector on each runtime that is installed, YuNet (an ONNX file
of OpenCV's model zoo that takes any size) and the MTCNN of facenet-pytorch. All take the photos in their
size; "as served" is ours with its usual longest side, scales and merging. Photos are the labelled ones of
FOLDER (`images/` and `label.txt`, docs/training.md), laid side by side and cut to size, or else the portrait
that comes with scikit-image.

With FOLDER, average precision over its photos is measured too, at original size (faces of at least 8 px).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt
import torch
from skimage import data

from benchmarks.measure import cost, in_turns, peak, table
from facepipe.core.errors import MissingExtraError
from facepipe.core.faces import UInt8Array
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.evaluation.detector import NMS_IOU, SCORE_THRESHOLD
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.evaluation.metrics.detection import labelled_ap
from facepipe.images.reading import read_image
from facepipe.runtime.architectures import load_network
from facepipe.runtime.engines import Engine, RuntimeChoice, choose_runtime
from facepipe.weights.registry import DEFAULT_DETECTOR, load_card

_ENGINES: tuple[Engine, ...] = ("onnx", "openvino", "torch")
_SIZES = ("320x320", "640x640", "1280x960", "4000x3000")
_MAX_TILES = 60
_MIN_FACE_PX = 8.0
_YUNET_NMS_IOU = 0.45
AS_SERVED = "as served"

PhotoAnalysis = Callable[[UInt8Array], npt.NDArray[np.float64]]
"""An RGB photo to boxes and scores (n, 5)."""


@click.command()
@click.option("--detector-weights", default=DEFAULT_DETECTOR, show_default=True, metavar="NAME")
@click.option("--data", "dataset", type=click.Path(path_type=Path), help="Labelled photos.")
@click.option("--photos", default=100, show_default=True, help="Of them, for average precision.")
@click.option("--yunet", type=click.Path(path_type=Path, exists=True), help="YuNet's ONNX file.")
@click.option("--size", "sizes", multiple=True, default=_SIZES, show_default=True, metavar="WxH")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    detector_weights: str,
    dataset: Path | None,
    photos: int,
    yunet: Path | None,
    sizes: tuple[str, ...],
    rounds: int,
    as_json: bool,
) -> None:
    """Print tables, or JSON."""
    labelled = read_labels(dataset) if dataset else []
    figures = measure(detector_weights, labelled, photos, yunet, sizes, rounds)
    click.echo(json.dumps(figures) if as_json else as_table(figures))


def measure(
    weights: str,
    labelled: list[LabelledPhoto],
    photos: int,
    yunet: Path | None,
    sizes: tuple[str, ...],
    rounds: int,
) -> dict[str, Any]:
    """Milliseconds by size and contestant, average precision, and what the network costs."""
    contestants = {**_ours(weights), **_others(yunet)}
    pictures = {size: _picture(size, labelled) for size in sizes}
    times = {
        size: in_turns({n: partial(detect, p) for n, detect in contestants.items()}, rounds)
        for size, p in pictures.items()
    }
    network = load_network(load_card(weights))
    figures: dict[str, Any] = {
        "weights": weights,
        "ms": {size: {n: 1000 * taken for n, taken in row.items()} for size, row in times.items()},
        "macs": {size: cost(network, torch.zeros(1, 3, *_padded(size))).macs for size in sizes},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "peak_flops": peak().flops,
        "peak_bytes_per_s": peak().bytes_per_s,
    }
    if labelled:
        chosen = labelled[:: max(1, len(labelled) // photos)][:photos]
        figures["ap"] = {name: _ap(detect, chosen) for name, detect in contestants.items()}
        figures["ap_photos"] = len(chosen)
    return figures


def _ours(weights: str) -> dict[str, PhotoAnalysis]:
    found: dict[str, PhotoAnalysis] = {}
    as_they_are = DetectorOptions(SCORE_THRESHOLD, NMS_IOU["original"], None, multi_scale=False)
    for engine in _ENGINES:
        try:
            choice = choose_runtime(engine)
        except MissingExtraError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        found[str(choice)] = _own(weights, as_they_are, choice)
        if engine == "onnx":
            served = replace(DetectorOptions(), score_threshold=SCORE_THRESHOLD)
            found[f"{choice}, {AS_SERVED}"] = _own(weights, served, choice)
    return found


def _own(weights: str, options: DetectorOptions, choice: RuntimeChoice) -> PhotoAnalysis:
    detector = FaceDetector.load(weights, options, choice)

    def detect(photo: UInt8Array) -> npt.NDArray[np.float64]:
        faces = detector.detect(photo)
        return np.column_stack([faces.boxes_xyxy, faces.scores]).astype(np.float64)

    return detect


def _others(yunet: Path | None) -> dict[str, PhotoAnalysis]:
    found: dict[str, PhotoAnalysis] = {}
    if yunet is not None:
        found["YuNet, OpenCV"] = _yunet(yunet)
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        click.echo("left out: facenet-pytorch's MTCNN: not installed", err=True)
        return found
    mtcnn = MTCNN(keep_all=True)

    def detect(photo: UInt8Array) -> npt.NDArray[np.float64]:
        boxes, scores = mtcnn.detect(photo)
        if boxes is None:
            return np.zeros((0, 5))
        return np.column_stack([np.asarray(boxes, np.float64), np.asarray(scores, np.float64)])

    found["facenet-pytorch MTCNN, torch"] = detect
    return found


def _yunet(file: Path) -> PhotoAnalysis:
    model, nothing = np.fromfile(file, np.uint8), np.zeros(0, np.uint8)  # a name that is no UTF-8 would crash
    limits = (SCORE_THRESHOLD, _YUNET_NMS_IOU, 5000)
    network = cv2.FaceDetectorYN.create("onnx", model, nothing, (320, 320), *limits)

    def detect(photo: UInt8Array) -> npt.NDArray[np.float64]:
        network.setInputSize(photo.shape[1::-1])
        _, found = network.detect(np.ascontiguousarray(photo[..., ::-1]))
        if found is None:
            return np.zeros((0, 5))
        x, y, w, h = found[:, :4].T
        return np.column_stack([x, y, x + w, y + h, found[:, -1]]).astype(np.float64)

    return detect


def _picture(size: str, labelled: list[LabelledPhoto]) -> UInt8Array:
    """A photo of this size: many photos side by side where it is large, so that faces are no larger."""
    width, height = map(int, size.split("x"))
    rows, at = [], 0
    tiles = [read_image(photo.path) for photo in labelled[:_MAX_TILES]] or [data.astronaut()]
    side = min(512, width, height)
    for _ in range(0, height, side):
        row = []
        for _ in range(0, width, side):
            row.append(cv2.resize(tiles[at % len(tiles)], (side, side), interpolation=cv2.INTER_AREA))
            at += 1
        rows.append(np.hstack(row))
    return np.ascontiguousarray(np.vstack(rows)[:height, :width]).astype(np.uint8)


def _padded(size: str) -> tuple[int, int]:
    width, height = (-(-int(side) // 32) * 32 for side in size.split("x"))
    return height, width


def _ap(detect: PhotoAnalysis, photos: list[LabelledPhoto]) -> float:
    found = [detect(read_image(photo.path)) for photo in photos]
    return labelled_ap(photos, found, _MIN_FACE_PX).curves["labelled"].ap or 0.0


def as_table(figures: dict[str, Any]) -> str:
    """Milliseconds; in brackets times the first contestant's."""
    sizes = list(figures["ms"])
    names = list(figures["ms"][sizes[0]])
    rows = []
    for name in names:
        row = [name]
        for size in sizes:
            times = figures["ms"][size]
            row.append(f"{times[name]:.1f} ({times[name] / times[names[0]]:.2f})")
        if "ap" in figures:
            row.append(f"{100 * figures['ap'][name]:.1f}")
        rows.append(row)
    head = ["ms a photo (times the first)", *sizes]
    if "ap" in figures:
        head.append(f"AP, {figures['ap_photos']} photos at original size")
    shares = "; ".join(
        f"{size}: {figures['macs'][size] / 1e9:.2f} G multiply-adds, "
        f"{100 * 2e3 * figures['macs'][size] / figures['ms'][size][names[0]] / figures['peak_flops']:.0f}%"
        for size in sizes
    )
    return (
        f"{table(head, rows)}\n\n{figures['parameters'] / 1e6:.3f} M parameters. Work, and share of the "
        f"peak of {figures['peak_flops'] / 1e9:.0f} GFLOP/s (a product of matrices; a copy moves "
        f"{figures['peak_bytes_per_s'] / 1e9:.0f} GB/s): {shares}"
    )


if __name__ == "__main__":
    main()
