"""The finer look: it goes where the focus map of the coarse look says, and faces lie where they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from facepipe.core.errors import WeightsError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.retinaface.anchors import make_anchors
from facepipe.weights.cards import AnchorSpec, FocusSpec, InputSpec, WeightCard, WeightFile

FACE_PX = 20.0
CARD = WeightCard(
    "dots",
    "detector",
    "retinaface_mobilenet025_focus",
    InputSpec("rgb", (0, 0, 0), (1, 1, 1)),
    WeightFile("none", None),
    anchors=AnchorSpec(),
    focus=FocusSpec(0.5),
)


class Dots:
    """Takes a white pixel for a face of 20 px; in a quarter of the size it is gray, and a hint."""

    def __init__(self, outputs: int = 4) -> None:
        self.looks: list[tuple[int, ...]] = []
        self.asked_for: list[int | None] = []
        self._outputs = outputs

    def run(self, batch: FloatArray, outputs: int | None = None) -> list[FloatArray]:
        count, _, height, width = batch.shape
        self.looks += [(width, height)] * count
        spec = AnchorSpec()
        anchors = make_anchors(width, height, spec)
        boxes = np.zeros((count, len(anchors), 4), np.float32)
        probabilities = np.zeros((count, len(anchors), 2), np.float32)
        focus = np.zeros((count, height // 8, width // 8), np.float32)
        for i, red in enumerate(batch[:, 0]):
            for y, x in np.argwhere(red > 1):
                if red[y, x] < 200:
                    focus[i, y // 8, x // 8] = 1
                    continue
                middle = np.array([x + 0.5, y + 0.5], np.float32)
                anchor = np.abs(anchors - [*middle, 16, 16]).sum(axis=1).argmin()
                offset = (middle - anchors[anchor, :2]) / anchors[anchor, 2:] / spec.variances[0]
                size = np.log(FACE_PX / anchors[anchor, 2:]) / spec.variances[1]
                boxes[i, anchor] = [*offset, *size]
                probabilities[i, anchor, 1] = 1
        self.asked_for.append(outputs)
        found = [boxes, probabilities, np.zeros((count, len(anchors), 10), np.float32), focus]
        return found[: self._outputs][:outputs]


def photo(*dots: tuple[int, int], width: int = 1280, height: int = 960) -> UInt8Array:
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y in dots:
        pixels[y, x] = 255
    return pixels


def detector(network: Dots, **options: bool) -> FaceDetector:
    return FaceDetector(network, CARD, DetectorOptions(score_threshold=0.3, **options))


def centres(found: FloatArray) -> list[tuple[float, ...]]:
    return sorted(tuple(((box[:2] + box[2:]) / 2 - 0.5).round(2).tolist()) for box in found)


def test_faces_are_found_where_they_are_in_small_parts_of_the_photo() -> None:
    network, dots = Dots(), [(40, 50), (700, 500), (1270, 950)]
    faces = detector(network).detect(photo(*dots))
    assert network.looks[0] == (320, 256)
    assert len(network.looks) == 4
    assert max(max(look) for look in network.looks[1:]) <= 160
    assert centres(faces.boxes_xyxy)[:2] == [(40, 50), (700, 500)]  # the third reaches over the edge
    np.testing.assert_allclose(np.sort(faces.sizes_px)[1:], FACE_PX, rtol=1e-3)


def test_the_map_is_asked_for_in_coarse_looks_alone() -> None:
    network = Dots()
    detector(network).detect(photo((40, 50)))
    assert network.asked_for == [None, 3]


def test_a_photo_without_small_faces_is_looked_at_in_a_quarter_of_its_size_alone() -> None:
    network = Dots()
    assert len(detector(network).detect(photo())) == 0
    assert network.looks == [(320, 256)]


@pytest.mark.parametrize("options", [{"focus": False}, {"multi_scale": False}])
def test_everything_is_looked_at_on_request(options: dict[str, bool]) -> None:
    network = Dots()
    faces = detector(network, **options).detect(photo((40, 50)))
    assert centres(faces.boxes_xyxy) == [(40, 50)]
    assert (1280, 960) in network.looks


def test_small_photos_are_looked_at_once() -> None:
    network = Dots()
    assert len(detector(network).detect(photo((40, 50), width=400, height=300))) == 1
    assert network.looks == [(416, 320)]


def test_photos_of_a_batch_keep_their_faces_apart() -> None:
    photos = [photo((40, 50)), photo(), photo((700, 500), (90, 800)), photo((30, 30), width=400, height=300)]
    together = detector(Dots()).detect_batch(photos)
    assert [centres(faces.boxes_xyxy) for faces in together] == [
        [(40, 50)],
        [],
        [(90, 800), (700, 500)],
        [(30, 30)],
    ]


def test_the_largest_of_three_sizes_is_looked_at_by_the_middle_ones_map() -> None:
    """A photo of 4,000 px has levels of 4,000, 1,000 and 250 px; only the finest is left out in parts."""
    network = Dots()
    options = DetectorOptions(score_threshold=0.3, max_side=None)
    faces = FaceDetector(network, CARD, options).detect(photo((3000, 1000), width=4000, height=3000))
    assert centres(faces.boxes_xyxy) == [(3000, 1000)]
    assert network.looks[:2] == [(1024, 768), (256, 192)]
    assert max(network.looks[2]) <= 160


@pytest.mark.parametrize(("focus", "outputs"), [(FocusSpec(), 3), (None, 4)])
def test_a_network_that_is_not_the_cards_is_refused(focus: FocusSpec | None, outputs: int) -> None:
    mismatched = FaceDetector(Dots(outputs), replace(CARD, focus=focus))
    with pytest.raises(WeightsError, match="dots: by its card the network gives float32 of"):
        mismatched.detect(photo())
