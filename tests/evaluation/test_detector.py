"""A detector measured in the published settings, on photos with known faces, and through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from cli_helpers import facepipe
from label_helpers import Writer, converted, write_coco, write_voc, write_yolo
from training_helpers import FACE_XYXY, write_dataset
from wider_helpers import write_ground_truth

from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.evaluation.detector import DetectorProtocol, find_faces, scored_boxes
from facepipe.evaluation.labels import read_labels
from facepipe.evaluation.metrics.detection import iou_with_edges
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
    with pytest.raises(UsageError, match="expected one of original, letterbox640, short1600"):
        DetectorProtocol("letterbox")  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["original", "letterbox640", "short1600"])
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


def test_a_plot_keeps_its_shape_without_points_nearer_than_a_pixel() -> None:
    steps = np.linspace(0, 1, 5000)
    drawn = plot({"<all>": (steps, np.where(steps < 0.5, 1.0, 0.25))}, "recall", "precision")
    points = np.array(
        [[float(v) for v in pair.split(",")] for pair in drawn.split('points="')[1].split('"')[0].split()]
    )
    assert len(points) < 1000
    assert np.ptp(points, axis=0) == pytest.approx([360, 0.75 * 360], abs=2)
    assert "&lt;all&gt;" in drawn
