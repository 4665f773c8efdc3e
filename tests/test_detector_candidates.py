"""A network that finds faces everywhere: one that has learned nothing yet, or a bad weight."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

import facepipe.detector
from facepipe.core.faces import FloatArray
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.retinaface import nms
from facepipe.weights.cards import AnchorSpec, InputSpec, WeightCard, WeightFile

_CAP = 5000


class _Everywhere:
    """Every anchor is a face, with a score of its own."""

    def __init__(self) -> None:
        self.scores: list[FloatArray] = []

    def run(self, batch: FloatArray, outputs: int | None = None) -> Sequence[FloatArray]:
        height, width = batch.shape[2:]
        count = sum(2 * (height // stride) * (width // stride) for stride in (8, 16, 32))
        rng = np.random.default_rng(count)
        scores = rng.permutation(np.linspace(0.6, 0.99, count)).astype(np.float32)
        self.scores.append(scores)
        probabilities = np.stack([1 - scores, scores], axis=-1)[None]
        return np.zeros((1, count, 4), np.float32), probabilities, np.zeros((1, count, 10), np.float32)


def _detector(network: _Everywhere, options: DetectorOptions) -> FaceDetector:
    card = WeightCard(
        "everywhere",
        "detector",
        "retinaface_mobilenet025",
        InputSpec("rgb", (0, 0, 0), (1, 1, 1)),
        WeightFile("none", None),
        anchors=AnchorSpec(),
    )
    return FaceDetector(network, card, options)


def test_the_most_confident_candidates_are_compared() -> None:
    network = _Everywhere()
    # Nothing overlaps by more than all of it: what is compared stays.
    detector = _detector(network, DetectorOptions(0.02, 1.0, None, multi_scale=False))
    faces = detector.detect(np.zeros((640, 640, 3), np.uint8))
    (scores,) = network.scores
    assert len(scores) == 16_800
    assert faces.scores.tolist() == np.sort(scores)[::-1][:_CAP].tolist()


@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_a_photo_full_of_candidates_takes_seconds(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = nms.box_voting

    def counted(candidates: object, *arguments: object, **options: object) -> object:
        compared.append(len(candidates))  # type: ignore[arg-type]
        return real(candidates, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(facepipe.detector, "box_voting", counted)
    started = time.process_time()
    _detector(_Everywhere(), DetectorOptions(threshold)).detect(np.zeros((1280, 1280, 3), np.uint8))
    assert compared[0] <= 2 * _CAP  # of 67,200 and 4,200
    assert time.process_time() - started < 60
