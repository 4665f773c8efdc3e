"""A detector measured in the published settings, on photos with known faces, and through the command."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli_helpers import facepipe
from label_helpers import Writer, converted, write_coco, write_voc, write_yolo
from PIL import Image
from training_helpers import FACE_XYXY, write_dataset
from wider_helpers import write_ground_truth

from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.evaluation.detector import DetectorProtocol, find_faces, scored_boxes
from facepipe.evaluation.labels import read_labels
from facepipe.evaluation.metrics.detection import iou_with_edges
from facepipe.evaluation.mistakes import MeasuredPhoto, Mistake, find_mistakes, pictures_of
from facepipe.evaluation.pages import plot
from facepipe.images.reading import read_image, write_image
from facepipe.training.detection.config import ValidationConfig
from facepipe.training.detection.validation import Validator
from facepipe.weights.cards import AnchorSpec

SCALE = 0.5


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector.load()


def _found(detector: FaceDetector, photo: UInt8Array, protocol: DetectorProtocol) -> Faces:
    detector.options = protocol.options()
    return find_faces(detector, photo, protocol)


@pytest.mark.parametrize(
    ("protocol", "width", "height", "looked_at"),
    [
        (DetectorProtocol(), 1024, 768, (1024, 768)),
        (DetectorProtocol("letterbox640"), 1024, 768, (640, 480)),
        (DetectorProtocol("letterbox640"), 200, 320, (400, 640)),
        (DetectorProtocol("short1600"), 1024, 900, (1820, 1600)),
        (DetectorProtocol("short1600"), 1024, 384, (2150, 806)),  # the longer side would be 4267
        (DetectorProtocol("short1600"), 3000, 2800, (1714, 1600)),
    ],
)
def test_sizes_are_the_published_ones(
    protocol: DetectorProtocol, width: int, height: int, looked_at: tuple[int, int]
) -> None:
    scale = protocol.scale(width, height)
    assert (round(width * scale), round(height * scale)) == looked_at


def test_thresholds_are_the_published_ones_unless_others_are_asked_for() -> None:
    overlaps = [DetectorProtocol(setting).options().nms_iou for setting in ("original", "letterbox640")]
    assert overlaps == [0.4, 0.45]
    own = DetectorProtocol("letterbox640", multi_scale=True, score_threshold=0.5, nms_iou=0.3).options()
    assert (own.score_threshold, own.nms_iou, own.max_side, own.multi_scale) == (0.5, 0.3, None, True)
    assert not DetectorProtocol().options().multi_scale
    with pytest.raises(
        UsageError, match="expected one of original, letterbox640, letterbox640_gray, short1600"
    ):
        DetectorProtocol("letterbox")  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["original", "letterbox640", "letterbox640_gray", "short1600"])
def test_faces_are_in_pixels_of_the_photo_at_every_size(
    detector: FaceDetector, astronaut: UInt8Array, setting: str
) -> None:
    photo = cv2.resize(astronaut, (300, 400)).astype(np.uint8)  # its sides scaled by factors of their own
    protocol = DetectorProtocol(setting, score_threshold=0.5)  # type: ignore[arg-type]
    faces = _found(detector, photo, protocol)
    true = FACE_XYXY * np.tile([300 / 512, 400 / 512], 2)
    assert iou_with_edges(faces.boxes_xyxy[:1], true[None])[0, 0] > 0.6
    points, box = faces.landmarks[0], faces.boxes_xyxy[0]
    assert ((points > box[:2]) & (points < box[2:])).all()


def test_the_gray_letterbox_is_a_square_around_the_photo(
    detector: FaceDetector, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[UInt8Array] = []
    detect = detector.detect

    def watched(pixels: UInt8Array) -> Faces:
        seen.append(pixels)
        return detect(pixels)

    monkeypatch.setattr(detector, "detect", watched)
    _found(
        detector, cv2.resize(astronaut, (320, 240)).astype(np.uint8), DetectorProtocol("letterbox640_gray")
    )
    (square,) = seen
    assert square.shape == (640, 640, 3)
    assert (square[:80] == 128).all()
    assert (square[560:] == 128).all()
    assert not (square[80:560] == 128).all(axis=(1, 2)).any()


def test_a_mirrored_copy_finds_the_mirrored_faces_and_counts_each_once(
    detector: FaceDetector, astronaut: UInt8Array
) -> None:
    protocol = DetectorProtocol(flip=True, score_threshold=0.6)
    photo = np.ascontiguousarray(astronaut[:300])
    faces = _found(detector, photo, protocol)
    mirrored = _found(detector, np.ascontiguousarray(photo[:, ::-1]), protocol)
    once = _found(detector, photo, DetectorProtocol(score_threshold=0.6))
    assert len(faces) == len(mirrored) == 1
    assert faces.scores[0] == pytest.approx(mirrored.scores[0], abs=1e-4)
    assert faces.scores[0] >= once.scores[0] - 1e-6
    # the same face of both photos: left and right change places
    width = photo.shape[1]
    np.testing.assert_allclose(faces.boxes_xyxy[0, [0, 2]], width - mirrored.boxes_xyxy[0, [2, 0]], atol=0.05)
    np.testing.assert_allclose(
        faces.landmarks[0, :, 0], width - mirrored.landmarks[0, [1, 0, 2, 4, 3], 0], atol=0.05
    )


def _benchmark(folder: Path, astronaut: UInt8Array) -> tuple[Path, Path]:
    """Two photos of one face each, the second of which does not count, and a label nowhere near one."""
    images = folder / "images"
    left, top, right, bottom = FACE_XYXY * SCALE
    face = [left, top, right - left, bottom - top]
    small = cv2.resize(astronaut, None, fx=SCALE, fy=SCALE).astype(np.uint8)
    for name in ("one", "two"):
        (images / "0--Parade").mkdir(parents=True, exist_ok=True)
        write_image(images / "0--Parade" / f"{name}.png", small)
    truth = {"0--Parade/one": [face, [200, 200, 30, 30]], "0--Parade/two": [face]}
    write_ground_truth(folder, truth, {"0--Parade/one": [1, 2]})
    return images, folder


def test_the_command_measures_and_reports(tmp_path: Path, astronaut: UInt8Array) -> None:
    images, truth = _benchmark(tmp_path, astronaut)
    labelled, report = write_dataset(tmp_path / "labelled", astronaut, (0.5,)), tmp_path / "new" / "report"
    command = ["evaluate", "detector", "--images", images, "--ground-truth", truth]
    said = facepipe(
        *command, "--landmarks", labelled, "--score-threshold", "0.6", "--report", report, "--json"
    )
    assert said.code == 0, said.err
    figures = json.loads(said.out)
    # of two faces that count one is found at once and one never; the third is neither right nor wrong
    assert figures["ap"] == {"easy": 0.5, "medium": 0.5, "hard": 0.5}
    assert (figures["photos"], figures["faces"]["hard"]) == (2, 2)
    assert figures["protocol"] == {
        "setting": "original",
        "flip": False,
        "multi_scale": False,
        "score_threshold": 0.6,
        "nms_iou": 0.4,
    }
    assert figures["landmarks"]["found"] == 1
    assert 0 < figures["landmarks"]["nme_box"] < 0.1
    stored = json.loads((report / "detector.json").read_text())
    assert stored["curves"]["hard"]["recall"][-1] == 0.5
    del stored["curves"]
    assert stored == figures

    page = (report / "detector.html").read_text()
    assert figures["weights"] in page
    assert page.count("<polyline") == 3
    assert not any(loaded in page for loaded in ("src=", "href=", "url(", "@import", "<script"))


def test_the_command_prints_a_table_and_refuses_two_sizes(tmp_path: Path, astronaut: UInt8Array) -> None:
    images, truth = _benchmark(tmp_path, astronaut)
    command = ["evaluate", "detector", "--images", images, "--ground-truth", truth]
    said = facepipe(
        *command, "--setting", "letterbox640", "--flip", "--multi-scale", "--score-threshold", "0.6"
    )
    assert said.code == 0, said.err
    assert "longer side of 640 px, with mirrored copies, several scales" in said.lines[0]
    assert said.lines[1].split() == ["easy", "2", "faces", "AP", "50.0"]
    refused = facepipe(*command, "--max-side", "640")
    assert refused.code == 2
    assert "--setting sets the size of photos" in refused.err


def test_any_labels_are_measured_as_training_does(tmp_path: Path, astronaut: UInt8Array) -> None:
    dataset = write_dataset(tmp_path / "data", astronaut, (0.5, 0.25))
    with (dataset / "label.txt").open("a") as labels:
        labels.write("5 5 20 30\n5 5 4 6\n")  # a face that is nowhere, and one that is too low
    command = ["evaluate", "detector", "--images", dataset, "--multi-scale", "--json"]
    said = facepipe(*command, "--report", tmp_path / "report")
    assert said.code == 0, said.err
    figures = json.loads(said.out)
    assert (figures["photos"], figures["min_face_px"], figures["faces"]) == (2, 8, {"labelled": 3})
    config = ValidationConfig(tmp_path / "data" / "images", labels=dataset / "label.txt")
    detector = FaceDetector.load(options=DetectorProtocol(multi_scale=True).options())
    validator = Validator(config, "retinaface_mobilenet025", detector.card.input, AnchorSpec())
    found = [scored_boxes(detector.detect(read_image(photo.path))) for photo in validator.photos]
    assert figures["ap"] == {"labelled": validator.measured(found)["ap"]}
    assert 0.5 < figures["ap"]["labelled"] < 0.7
    assert json.loads((tmp_path / "report" / "detector.json").read_text())["curves"].keys() == {"labelled"}
    assert "Labelled faces" in (tmp_path / "report" / "detector.html").read_text()
    higher = json.loads(facepipe(*command, "--min-face", "40").out)
    assert higher["faces"] == {"labelled": 1}


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_real_photos_have_the_same_ap_in_every_format(
    tmp_path: Path, shared_data: Path, write: Writer
) -> None:
    photos = read_labels(shared_data / "wider" / "dev")[::80]
    lines = []
    for photo in photos:
        (tmp_path / "original" / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(photo.path, tmp_path / "original" / "images")
        rows = photo.boxes_xyxy - np.tile(photo.boxes_xyxy[:, :2], 2) * [0, 0, 1, 1]
        lines += [f"# {photo.path.name}", *(" ".join(f"{value:.3f}" for value in row) for row in rows)]
    (tmp_path / "original" / "label.txt").write_text("\n".join(lines))
    converted(tmp_path / "converted", photos, write)
    command = ["evaluate", "detector", "--setting", "letterbox640", "--json", "--images"]
    first, second = (
        json.loads(facepipe(*command, tmp_path / name).out) for name in ("original", "converted")
    )
    assert first["faces"]["labelled"] > 20
    assert second["faces"] == first["faces"]
    assert second["ap"]["labelled"] == pytest.approx(first["ap"]["labelled"], abs=1e-9)


def test_labels_are_named_where_they_are_elsewhere_or_missing(tmp_path: Path, astronaut: UInt8Array) -> None:
    dataset = write_dataset(tmp_path / "data", astronaut, (0.5,))
    labels = (dataset / "label.txt").rename(tmp_path / "elsewhere.txt")
    command = ["evaluate", "detector", "--images", dataset]
    said = facepipe(*command, "--labels", labels)
    assert said.code == 0, said.err
    assert "labelled faces of at least 8 px" in said.lines[0]
    assert said.lines[1].split() == ["labelled", "1", "faces", "AP", "100.0"]
    missing = facepipe(*command)
    assert missing.code == 1
    assert "found no label.txt" in missing.err
    refused = facepipe(*command, "--labels", labels, "--ground-truth", tmp_path)
    assert refused.code == 2
    assert "are for photos without --ground-truth" in refused.err


def test_several_detectors_stand_in_one_table_and_plot(tmp_path: Path, astronaut: UInt8Array) -> None:
    dataset, report = write_dataset(tmp_path / "data", astronaut, (0.5, 0.25)), tmp_path / "report"
    command = ["evaluate", "detector", "--images", dataset, "--score-threshold", "0.6"]
    compared = [*command, "--compare", "retinaface_mobilenet025", "--report", report]
    said = facepipe(*compared)
    assert said.code == 0, said.err
    names = ["retinaface_mobilenet025_focus", "retinaface_mobilenet025"]
    assert [line.split(":")[0] for line in said.lines[:2]] == names
    assert said.lines[2].split() == ["AP", *names]
    assert said.lines[3].split() == ["labelled", "2", "faces", "100.0", "100.0"]
    assert len({len(line) for line in said.lines[2:]}) == 1
    alone = [json.loads(facepipe(*command, "--detector-weights", name, "--json").out) for name in names]
    lines = [json.loads(line) for line in facepipe(*compared, "--json").lines]
    stored = json.loads((report / "detector.json").read_text())["detectors"]
    for one, together, record in zip(alone, lines, stored, strict=True):
        assert one["ap"] == together["ap"] == record["ap"]
        assert record["curves"]["labelled"]["recall"][-1] == 1
    page = (report / "detector.html").read_text()
    assert "<title>Detectors retinaface_mobilenet025_focus, retinaface_mobilenet025</title>" in page
    assert (page.count("<svg"), page.count("<polyline")) == (1, 2)
    twice = facepipe(*command, "--compare", "retinaface_mobilenet025_focus")
    assert (twice.code, "is named twice" in twice.err) == (2, True)


def test_missed_faces_and_false_alarms_are_shown(tmp_path: Path, astronaut: UInt8Array) -> None:
    dataset, report = write_dataset(tmp_path / "data", astronaut, (0.5, 0.25)), tmp_path / "report"
    labels = dataset / "label.txt"
    found, small = labels.read_text().splitlines()[1::2]
    labels.write_text(f"# 0.png\n{found}\n5 5 20 30\n100 9 30 40\n# 1.png\n")  # two that are nowhere
    command = ["evaluate", "detector", "--images", dataset, "--report", report]
    said = facepipe(*command, "--pictures", "1")
    assert said.code == 0, said.err
    page = (report / "detector.html").read_text()
    assert "2 of 3 faces missed by detections of a score from 0.5, the largest first" in page
    assert "1 false alarm among detections of a score from 0.5" in page
    titles = re.findall(r"<figcaption><b>(\d+) px</b>([^<]*)<br>(\d.png)", page)
    assert titles[0] == ("40", "not detected", "0.png")
    assert titles[1][2] == "1.png"
    assert abs(int(titles[1][0]) - float(small.split()[3])) < 12
    pictures = [Image.open(BytesIO(b64decode(data))) for data in re.findall(r"base64,([^\"]+)\"", page)]
    assert [max(picture.size) for picture in pictures] == [224, 224]
    missed, alarm = (np.asarray(picture.convert("RGB")).astype(int) for picture in pictures)
    assert ((missed[..., 1] - missed[..., 0]) > 80).any()  # the box is green
    assert ((alarm[..., 0] - alarm[..., 1]) > 120).any()  # red
    refused = facepipe(*command[:4], "--pictures", "1")
    assert (refused.code, "--pictures goes with --report" in refused.err) == (2, True)


def test_mistakes_are_told_by_the_best_detection_of_a_face() -> None:
    boxes = np.array([[0, 0, 99, 99], [200, 0, 219, 19], [300, 0, 399, 99], [500, 0, 599, 99]], float)
    detections = np.array(
        [
            [0, 0, 99, 99, 0.9],
            [2, 2, 99, 99, 0.8],  # of the first again
            [200, 0, 219, 19, 0.3],  # of the second, below the score
            [300, 0, 399, 99, 0.7],  # of the third, which does not count
            [301, 0, 399, 99, 0.65],
            [700, 0, 720, 30, 0.95],  # of nothing
            [800, 0, 820, 30, 0.4],
        ]
    )
    counted = np.array([True, True, False, True])
    photos = [
        MeasuredPhoto(Path("a.png"), boxes, counted, detections),
        MeasuredPhoto(Path("b.png"), boxes[:0], counted[:0], detections[5:6]),
        MeasuredPhoto(Path("c.png"), boxes[:1], counted[:1], detections[:0]),
    ]
    mistakes = find_mistakes(photos, 0.5)
    assert (mistakes.faces, mistakes.score) == (4, 0.5)
    assert [(m.path.name, m.height_px, m.score) for m in mistakes.missed] == [
        ("a.png", 99, 0.0),
        ("c.png", 99, 0.0),
        ("a.png", 19, 0.3),
    ]
    assert [(m.path.name, m.score, m.is_second) for m in mistakes.alarms] == [
        ("a.png", 0.95, False),
        ("b.png", 0.95, False),
        ("a.png", 0.8, True),
    ]
    lower = find_mistakes(photos, 0.3)
    assert [m.path.name for m in lower.missed] == ["a.png", "c.png"]
    assert len(lower.alarms) == 4


@pytest.mark.parametrize(
    "box", [(-50, -50, -20, -20), (300, 300, 400, 400), (0, 0, 0.2, 0.2), (0, 0, 200, 100)]
)
def test_a_mistake_is_shown_wherever_its_box_is(
    tmp_path: Path, box: tuple[float, float, float, float]
) -> None:
    write_image(tmp_path / "photo.png", np.zeros((100, 200, 3), np.uint8))
    (picture,) = pictures_of([Mistake(tmp_path / "photo.png", box, 0.5)], missed=True)
    with Image.open(BytesIO(picture)) as opened:
        assert max(opened.size) == 224


def test_a_plot_keeps_its_shape_without_points_nearer_than_a_pixel() -> None:
    steps = np.linspace(0, 1, 5000)
    drawn = plot({"<all>": (steps, np.where(steps < 0.5, 1.0, 0.25))}, "recall", "precision")
    points = np.array(
        [[float(v) for v in pair.split(",")] for pair in drawn.split('points="')[1].split('"')[0].split()]
    )
    assert len(points) < 1000
    assert np.ptp(points, axis=0) == pytest.approx([360, 0.75 * 360], abs=2)
    assert "&lt;all&gt;" in drawn
