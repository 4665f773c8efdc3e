"""Faces found where they are: the published detectors' outputs, every size of photo, and the options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_helpers import FACE_XYXY, SURE, iou, noise

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.images.reading import read_image
from facepipe.retinaface.anchors import make_anchors
from facepipe.runtime.engines import choose_runtime, open_network
from facepipe.weights.cards import AnchorSpec, Channels
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, load_card

PHOTOS = ("astronaut", "group", "portrait")
AS_PUBLISHED = DetectorOptions(score_threshold=0.5, nms_iou=0.4, max_side=None, multi_scale=False)
SMALL_ANCHORS = AnchorSpec(sizes_px=((10, 20), (32, 64), (128, 256)))


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    options = DetectorOptions(score_threshold=SURE)
    return FaceDetector.load(options=options, runtime=choose_runtime(threads=1))


def with_options(detector: FaceDetector, **options: Any) -> FaceDetector:
    return FaceDetector(detector._network, detector.card, replace(detector.options, **options))


# Published detectors, imported, against their own outputs


@pytest.fixture(scope="module")
def imported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Imports `retinaface_mnet025_FILE.pth` with what the card is to say, once."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from facepipe.runtime.onnx_export import import_checkpoint

    folder = tmp_path_factory.mktemp("imported")

    def detector(
        file: str,
        channels: Channels,
        anchors: AnchorSpec | None = None,
        architecture: str | None = None,
    ) -> FaceDetector:
        name = f"{file}_{channels}_{anchors is not None}"
        card = folder / f"{name}.json"
        if not card.exists():
            import_checkpoint(
                shared_data / "weights" / f"retinaface_mnet025_{file}.pth",
                name=name,
                channels=channels,
                anchors=anchors,
                architecture=architecture,
                folder=folder,
            )
        return FaceDetector.load(str(card), AS_PUBLISHED, choose_runtime("onnx", threads=1))

    return detector


def reference(shared_data: Path, photo: str, channels: str) -> tuple[UInt8Array, Faces]:
    """A photo, and what the published network finds there; boxes end at the photo's edges."""
    image = read_image(shared_data / "reference" / f"{photo}.png")
    rows = np.load(shared_data / "reference" / f"{photo}_{channels}.npz")["detections"]
    height, width = image.shape[:2]
    boxes = np.clip(rows[:, :4], 0, np.array([width, height, width, height]))
    return image, Faces(boxes, rows[:, 4], rows[:, 5:].reshape(-1, 5, 2))


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("photo", PHOTOS)
def test_published_detectors_find_what_they_found(
    shared_data: Path, imported: Any, photo: str, channels: Channels
) -> None:
    image, expected = reference(shared_data, photo, channels)
    found = imported(channels, channels).detect(image)
    assert len(found) == len(expected)
    order = iou(expected.boxes_xyxy, found.boxes_xyxy).argmax(axis=1)
    assert sorted(order) == list(range(len(found)))
    found = found.select(order)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.1)
    np.testing.assert_allclose(found.landmarks, expected.landmarks, rtol=0, atol=0.1)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("file", ["rgb", "bgr"])
def test_the_wrong_channel_order_is_worse(shared_data: Path, imported: Any, file: Channels) -> None:
    swapped: Channels = "bgr" if file == "rgb" else "rgb"
    image, expected = reference(shared_data, "group", file)
    right, wrong = imported(file, file).detect(image), imported(file, swapped).detect(image)
    assert np.sort(wrong.scores)[-9:].mean() < right.scores.mean() - 1e-3
    nearest = iou(expected.boxes_xyxy, wrong.boxes_xyxy).argmax(axis=1)
    assert np.abs(expected.boxes_xyxy - wrong.boxes_xyxy[nearest]).max() > 0.5


def test_anchors_are_the_cards(shared_data: Path, imported: Any) -> None:
    architecture = "retinaface_mobilenet025_relu"
    right = imported("bgr_anchors10", "bgr", SMALL_ANCHORS, architecture)
    wrong = imported("bgr_anchors10", "bgr", None, architecture)
    for photo in PHOTOS:
        image, expected = reference(shared_data, photo, "bgr")
        found, missed = right.detect(image), wrong.detect(image)
        assert len(found) == len(expected)
        assert iou(expected.boxes_xyxy, found.boxes_xyxy).max(axis=1).min() > 0.75
        overlaps = iou(expected.boxes_xyxy, missed.boxes_xyxy)
        assert not overlaps.size or overlaps.max() < 0.6


# Photos of every size


def enlarged(image: UInt8Array, width: int, height: int) -> UInt8Array:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def test_the_astronaut(detector: FaceDetector, astronaut: UInt8Array) -> None:
    faces = detector.detect(astronaut)
    assert len(faces) == 1
    assert iou(faces.boxes_xyxy, FACE_XYXY[None])[0, 0] > 0.6
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert faces.boxes_xyxy.dtype == faces.scores.dtype == faces.landmarks.dtype == np.float32


@pytest.mark.parametrize("max_side", [DetectorOptions().max_side, None], ids=["default", "original size"])
def test_a_selfie_that_fills_the_photo(
    detector: FaceDetector, astronaut: UInt8Array, max_side: int | None
) -> None:
    """The face is 2,200 px wide; the largest anchor has 512."""
    selfie = enlarged(astronaut[60:180, 170:290], 3000, 3000)
    faces = with_options(detector, max_side=max_side).detect(selfie)
    expected = (FACE_XYXY - [170, 60, 170, 60]) * 25
    assert iou(faces.boxes_xyxy[:1], expected[None].astype(np.float32))[0, 0] > 0.6


def test_a_group_in_twelve_megapixels(detector: FaceDetector, shared_data: Path) -> None:
    photo, expected = reference(shared_data, "group", "bgr")
    faces = detector.detect(enlarged(photo, 4000, 2670))
    overlaps = iou(expected.boxes_xyxy * 5, faces.boxes_xyxy)
    assert overlaps.max(axis=1).min() > 0.5
    assert len(faces) <= len(expected) + 1


def test_a_crowd_in_twelve_megapixels(detector: FaceDetector, shared_data: Path) -> None:
    """225 whole faces of 32 to 40 px: 10 to 13 px at the default scale."""
    photo, expected = reference(shared_data, "group", "bgr")
    mosaic = np.tile(photo, (5, 5, 1))[:, :4000]
    places = [
        expected.boxes_xyxy + np.array([x * 800, y * 534] * 2, np.float32) for y in range(5) for x in range(5)
    ]
    found = with_options(detector, score_threshold=0.5).detect(mosaic)
    overlaps = iou(np.concatenate(places), found.boxes_xyxy)
    assert (overlaps.max(axis=1) > 0.5).mean() > 0.6
    assert (overlaps.max(axis=0) > 0.3).mean() > 0.95


SIZES = [(8000, 1000), (4000, 1000), (12_000, 700), (1000, 8000), (900, 2700)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_panorama_is_looked_at_in_detail(
    detector: FaceDetector, astronaut: UInt8Array, width: int, height: int
) -> None:
    """Six faces of 47 px along it, of 3 to 11 px where the longer side is scaled to 640 px."""
    photo = np.full((height, width, 3), 120, np.uint8)
    person, side = enlarged(astronaut, 250, 250), 250
    places = []
    for i in range(6):
        along, across = (2 * i + 1) * max(width, height) // 12 - side // 2, 100 * (i % 3)
        left, top = (along, across) if width > height else (across, along)
        photo[top : top + side, left : left + side] = person
        places.append(FACE_XYXY * (side / 512) + [left, top, left, top])
    faces = with_options(detector, max_side=640, score_threshold=0.5).detect(photo)
    overlaps = iou(np.array(places, np.float32), faces.boxes_xyxy)
    assert (overlaps.max(axis=1) > 0.5).all()
    assert len(faces) == 6


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(32, 8000))
def test_photos_up_to_two_to_one_are_bound_by_their_longer_side_others_by_their_pixels(
    width: int, height: int, max_side: int
) -> None:
    long_side, short_side = max(width, height), min(width, height)
    scale = DetectorOptions(max_side=max_side).scale_of((width, height))
    assert scale == DetectorOptions(max_side=max_side).scale_of((height, width))
    by_longer_side = min(1.0, max_side / long_side)
    assert scale == by_longer_side or (long_side > 2 * short_side and by_longer_side < scale <= 1)
    assert scale in (1, by_longer_side) or short_side * scale <= max_side / 2 * (1 + 1e-9)
    assert width * height * scale**2 <= 2 * max_side**2 * (1 + 1e-9)
    assert long_side * scale <= 16 * max_side * (1 + 1e-9)
    assert DetectorOptions(max_side=None).scale_of((width, height)) == 1


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (1, 1),
        (2, 1),
        (31, 33),
        (32, 32),
        (33, 31),
        (3000, 20),
        (20, 3000),
        (449, 448),
        (1281, 7),
        (40_000, 3),
    ],
)
def test_any_size_without_faces(detector: FaceDetector, width: int, height: int) -> None:
    for photo in (noise(1, height, width), np.zeros((height, width, 3), np.uint8)):
        faces = detector.detect(photo)
        assert_inside(faces, photo)


@pytest.mark.parametrize("cut", [0, 1, 17, 31], ids=lambda n: f"{512 - n} px wide")
def test_any_size_with_a_face(detector: FaceDetector, astronaut: UInt8Array, cut: int) -> None:
    photo = astronaut[: 300 + cut, : 512 - cut]
    faces = detector.detect(photo)
    assert iou(faces.boxes_xyxy, FACE_XYXY[None]).max() > 0.6
    assert_inside(faces, photo)


def assert_inside(faces: Faces, photo: UInt8Array) -> None:
    height, width = photo.shape[:2]
    assert (faces.boxes_xyxy >= 0).all()
    assert (faces.boxes_xyxy <= [width, height, width, height]).all()
    assert (faces.sizes_px >= 1).all()
    assert (np.diff(faces.scores) <= 0).all()


def test_a_batch_is_as_one_by_one(detector: FaceDetector, astronaut: UInt8Array) -> None:
    photos = [
        astronaut,
        np.ascontiguousarray(astronaut[:, ::-1]),
        noise(2, 48, 200),
        enlarged(astronaut, 900, 700),
        astronaut[:400],
        np.zeros((1, 1, 3), np.uint8),
    ]
    together, alone = detector.detect_batch(photos), [detector.detect(photo) for photo in photos]
    assert [len(faces) for faces in together] == [len(faces) for faces in alone]
    assert sum(map(len, alone)) >= 4
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first.boxes_xyxy, second.boxes_xyxy, atol=0.01)
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)
        np.testing.assert_allclose(first.landmarks, second.landmarks, atol=0.01)
    assert detector.detect_batch([]) == []


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((20, 20), np.uint8),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 3), np.float32),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((20, 0, 3), np.uint8),
        np.zeros((1, 20, 20, 3), np.uint8),
    ],
    ids=["gray", "RGBA", "float", "no rows", "no columns", "batch"],
)
def test_what_is_no_photo_is_refused(detector: FaceDetector, photo: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a photo: RGB uint8 \(h, w, 3\), .*got an array of"):
        detector.detect(photo)
    with pytest.raises(UsageError, match="expected a photo"):
        detector.detect_batch([np.zeros((20, 20, 3), np.uint8), photo])


# Options


def test_a_photo_leaves_nothing_behind_for_the_next(detector: FaceDetector, astronaut: UInt8Array) -> None:
    """Memory is used again: what a larger photo held must not show in the padding of a smaller one."""
    small = np.ascontiguousarray(astronaut[:470, :490])
    alone = with_options(detector).detect(small)
    after = with_options(detector)
    for larger in (np.tile(astronaut, (2, 3, 1)), astronaut):  # of another padded size, and of the same
        after.detect(larger)
        again = after.detect(small)
        np.testing.assert_array_equal(again.boxes_xyxy, alone.boxes_xyxy)
        np.testing.assert_array_equal(again.scores, alone.scores)


def test_the_photo_is_not_changed(detector: FaceDetector, astronaut: UInt8Array) -> None:
    before = astronaut.copy()
    detector.detect(astronaut)
    np.testing.assert_array_equal(astronaut, before)


def test_scaling_down_keeps_the_photos_frame(detector: FaceDetector, astronaut: UInt8Array) -> None:
    faces = with_options(detector, max_side=300).detect(astronaut)
    assert iou(faces.boxes_xyxy, FACE_XYXY[None]).max() > 0.6


def test_a_small_photo_is_never_scaled_up(detector: FaceDetector, astronaut: UInt8Array) -> None:
    larger = with_options(detector, max_side=4000).detect(astronaut)
    np.testing.assert_array_equal(larger.boxes_xyxy, detector.detect(astronaut).boxes_xyxy)


def test_options_choose_among_the_faces(detector: FaceDetector, shared_data: Path) -> None:
    photo, _ = reference(shared_data, "group", "bgr")
    everybody = detector.detect(photo)
    assert len(everybody) == 9
    best = with_options(detector, top_k=4).detect(photo)
    np.testing.assert_array_equal(best.scores, everybody.scores[:4])
    limit = float(np.median(everybody.sizes_px))
    large = with_options(detector, min_face_px=limit).detect(photo)
    np.testing.assert_array_equal(large.scores, everybody.scores[everybody.sizes_px >= limit])
    sure = with_options(detector, score_threshold=float(everybody.scores[4])).detect(photo)
    np.testing.assert_array_equal(sure.scores, everybody.scores[:4])
    assert len(with_options(detector, min_face_px=1000).detect(photo)) == 0
    assert len(with_options(detector, score_threshold=1).detect(photo)) == 0


def test_overlapping_boxes_are_one_face_as_the_iou_says(
    detector: FaceDetector, astronaut: UInt8Array
) -> None:
    assert len(detector.detect(astronaut)) == 1
    assert len(with_options(detector, nms_iou=1.0).detect(astronaut)) > 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"score_threshold": -0.1}, "score threshold: expected 0..1, got -0.1"),
        ({"score_threshold": 1.5}, "score threshold"),
        ({"score_threshold": float("nan")}, "score threshold"),
        ({"nms_iou": 0}, "NMS IoU"),
        ({"nms_iou": 1.01}, "NMS IoU"),
        ({"nms_iou": float("nan")}, "NMS IoU"),
        ({"max_side": 31}, "longest side: expected at least 32 px, got 31"),
        ({"max_side": 0}, "longest side"),
        ({"max_side": -1280}, "longest side"),
        ({"min_face_px": -1}, "smallest face: expected 0 px or more, got -1"),
        ({"min_face_px": float("nan")}, "smallest face"),
        ({"min_face_px": float("inf")}, "smallest face"),
        ({"top_k": 0}, "top-k: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_wrong_usage(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        DetectorOptions(**options)


def test_only_detectors_detect() -> None:
    with pytest.raises(WeightsError, match=f"{DEFAULT_ENCODER} is an encoder, not a detector"):
        FaceDetector.load(DEFAULT_ENCODER)
    encoder = load_card(DEFAULT_ENCODER)
    network = open_network(encoder, choose_runtime(threads=1))
    with pytest.raises(WeightsError, match=f"{DEFAULT_ENCODER} is not a detector"):
        FaceDetector(network, encoder.card)


class _Scripted:
    """A network that finds faces of these sides in the very middle of whatever it is shown."""

    def __init__(
        self, anchors: AnchorSpec, sides_px: tuple[float, ...], in_quarter_px: tuple[float, ...] = ()
    ):
        self._anchors, self._sides, self._in_quarter = anchors, sides_px, in_quarter_px or sides_px

    def run(self, batch: FloatArray, outputs: int | None = None) -> list[FloatArray]:
        """See `Network.run`."""
        n, _, height, width = batch.shape
        anchors = make_anchors(width, height, self._anchors)
        boxes, scores = (np.zeros((n, len(anchors), columns), np.float32) for columns in (4, 2))
        from_middle = anchors[:, :2] - np.array([width / 2, height / 2], np.float32)
        nearest = np.abs(from_middle).max(axis=1).argsort(kind="stable")
        to_centre, to_size = self._anchors.variances
        for row, side in zip(nearest, self._sides if width > 512 else self._in_quarter, strict=False):
            boxes[:, row, :2] = -from_middle[row] / anchors[row, 2:] / to_centre
            boxes[:, row, 2:] = np.log(side / anchors[row, 2:]) / to_size
            scores[:, row, 1] = 0.9
        return [boxes, scores, np.zeros((n, len(anchors), 10), np.float32)]


@pytest.mark.parametrize(("multi_scale", "expected"), [(True, [20, 120, 480, 920]), (False, [20, 120, 230])])
def test_each_scale_finds_the_faces_of_its_size(multi_scale: bool, expected: list[float]) -> None:
    """A 1000 px photo is looked at in full size for small faces and in quarter size for large ones."""
    card = replace(load_card(DEFAULT_DETECTOR).card, focus=None)
    assert card.anchors is not None
    # Nothing supports these faces, which halves their scores as served.
    options = DetectorOptions(0.4, max_side=None, multi_scale=multi_scale)
    scripted = FaceDetector(_Scripted(card.anchors, (20, 120, 230)), card, options)
    faces = scripted.detect(np.zeros((1000, 1000, 3), np.uint8))
    np.testing.assert_allclose(sorted(faces.sizes_px), expected, rtol=1e-3)


def test_scales_agree_on_a_face_and_the_finer_one_sees_it_better() -> None:
    """Of each face one scale sees what is not its own to find: quarter size 18 of 64 px, full size 250 px."""
    card = replace(load_card(DEFAULT_DETECTOR).card, focus=None)
    assert card.anchors is not None
    scripted = FaceDetector(
        _Scripted(card.anchors, (64, 250), (18, 56)), card, DetectorOptions(max_side=None)
    )
    faces = scripted.detect(np.zeros((1024, 1024, 3), np.uint8))
    own, other = np.array([64, 4 * 56]), np.array([4 * 18, 250])
    overlap = (np.minimum(own, other) / np.maximum(own, other)) ** 2
    weights = np.array([[1, 1 / 4], overlap * [1 / 4, 1]])
    sides = (weights * [own, other]).sum(axis=0) / weights.sum(axis=0)
    order = np.argsort(faces.sizes_px)
    np.testing.assert_allclose(faces.sizes_px[order], sides, rtol=1e-3)
    np.testing.assert_allclose(faces.scores[order], 0.9 * (1 + 0.9 * overlap) / 2, rtol=1e-3)


def test_the_earlier_name_of_one_scale_still_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="as_published=True is now multi_scale=False"):
        options = DetectorOptions(as_published=True)
    assert options == DetectorOptions(multi_scale=False)
    assert replace(options, top_k=1) == DetectorOptions(multi_scale=False, top_k=1)
