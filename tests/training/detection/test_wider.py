"""WIDER FACE's downloads become data sets, with landmarks made where asked for; nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Said, facepipe
from training_helpers import FACE_XYXY, LANDMARKS
from wider_helpers import write_ground_truth

from facepipe.core.faces import UInt8Array
from facepipe.detector import FaceDetector
from facepipe.evaluation.labels import read_labels
from facepipe.images.reading import write_image

LEFT, TOP, RIGHT, BOTTOM = FACE_XYXY.astype(int).tolist()
FACE = f"{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}"
BOXES = (
    f"0--Parade/a.jpg\n3\n{FACE} 0 0 0 0 0 0\n5 5 40 40 0 0 0 0 0 0\n300 300 50 50 0 0 0 1 0 0\n"
    "1--Other/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
)
POINTS = " ".join(f"{x} {y} 0" for x, y in LANDMARKS.tolist())
WITH_LANDMARKS = f"# 0--Parade/a.jpg\n{FACE} {POINTS} 0.9\n# 1--Other/b.jpg\n"


@pytest.fixture
def downloads(tmp_path: Path, astronaut: UInt8Array) -> Path:
    """Training and validation photos and their boxes, unpacked."""
    folder = tmp_path / "wider"
    (folder / "wider_face_split").mkdir(parents=True)
    for part in ("train", "val"):
        (folder / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt").write_text(BOXES)
        for name in ("0--Parade/a.jpg", "1--Other/b.jpg"):
            photo = folder / f"WIDER_{part}" / "images" / name
            photo.parent.mkdir(parents=True)
            write_image(photo, astronaut if name[0] == "0" else np.zeros((32, 32, 3), np.uint8))
    return folder


def _zip(folder: Path, prefix: str = "") -> None:
    """Put a download into its zip file."""
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{prefix}{file.relative_to(folder.parent)}")
    shutil.rmtree(folder)


def _prepared(folder: Path, *options: str) -> Said:
    said = facepipe("data", "prepare", "wider", folder, *options)
    assert said.code == 0, said.err
    return said


def _state(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_folders_become_data_sets_of_hard_links(downloads: Path) -> None:
    before = _state(downloads)
    said = _prepared(downloads)
    assert said.lines == [
        f"{downloads / part}: 2 hard links; 2 faces, 0 with landmarks" for part in ("train", "val")
    ]
    photo = "images/0--Parade/a.jpg"
    assert os.path.samefile(downloads / "train" / photo, downloads / "WIDER_train" / photo)
    assert facepipe("data", "check", downloads / "train", "--json").code == 1  # b.jpg has no faces
    first, second = read_labels(downloads / "val")
    assert (len(first.boxes_xyxy), len(first.ignored_xyxy), len(second.boxes_xyxy)) == (2, 1, 0)
    assert before.items() <= _state(downloads).items()
    assert (
        _prepared(downloads).lines[0] == f"{downloads / 'train'}: 2 earlier files; 2 faces, 0 with landmarks"
    )


def test_zip_files_become_the_same_data_sets(downloads: Path) -> None:
    shutil.copytree(downloads, downloads.parent / "unpacked")
    _prepared(downloads.parent / "unpacked")
    for name in ("WIDER_train", "WIDER_val", "wider_face_split"):
        _zip(downloads / name)
    assert "2 extracted files" in _prepared(downloads).lines[0]
    for part in ("train", "val"):
        assert _state(downloads / part) == _state(downloads.parent / "unpacked" / part)


def test_photos_are_copied_where_there_are_no_links(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    assert "2 copied files" in _prepared(downloads).lines[0]
    photo = "images/0--Parade/a.jpg"
    assert (downloads / "val" / photo).read_bytes() == (downloads / "WIDER_val" / photo).read_bytes()
    assert not os.path.samefile(downloads / "val" / photo, downloads / "WIDER_val" / photo)


@pytest.mark.parametrize("zipped", [False, True])
def test_retinaface_labels_go_first_where_they_have_faces(downloads: Path, zipped: bool) -> None:
    annotations = downloads / "retinaface_gt_v1.1"
    for part, text in (("train", WITH_LANDMARKS), ("val", "# 0--Parade/a.jpg\n# 1--Other/b.jpg\n")):
        (annotations / part).mkdir(parents=True)
        (annotations / part / "label.txt").write_text(text)
    if zipped:
        _zip(annotations)
    train, val = _prepared(downloads, "--landmarks").lines
    assert train.endswith("1 face, 1 with landmarks")  # those of the labels
    assert read_labels(downloads / "train")[0].landmarks[0].tolist() == LANDMARKS.tolist()
    assert val.endswith("2 faces, 1 with landmarks")  # made


def test_landmarks_are_those_of_the_detection_on_a_box(downloads: Path, astronaut: UInt8Array) -> None:
    assert _prepared(downloads, "--landmarks").lines[0].endswith("2 faces, 1 with landmarks")
    first, _ = read_labels(downloads / "train")
    assert (downloads / "train" / "wider_face_train_bbx_gt.txt.before").read_text() == BOXES
    assert first.boxes_xyxy[0].tolist() == FACE_XYXY.tolist()
    assert np.isnan(first.landmarks[1]).all()  # no face is there
    assert first.ignored_xyxy.tolist() == [[300, 300, 350, 350]]
    found = FaceDetector.load().detect(astronaut)
    assert np.abs(first.landmarks[0] - found.landmarks[0]).max() < 1  # JPEG
    state = _state(downloads)
    assert _prepared(downloads, "--landmarks").lines[0].endswith("2 earlier files; 2 faces, 1 with landmarks")
    assert _state(downloads) == state


def test_interrupted_landmarks_are_continued(downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    real, analyzed = FaceDetector.detect, []

    def detect(detector: FaceDetector, photo: UInt8Array) -> object:
        analyzed.append(photo.shape)
        if len(analyzed) == 2:
            raise Killed
        return real(detector, photo)

    monkeypatch.setattr(FaceDetector, "detect", detect)
    with pytest.raises(Killed):
        facepipe("data", "prepare", "wider", downloads, "--landmarks")
    assert len(read_labels(downloads / "train")) == 2  # the boxes are there
    progress = downloads / "train" / ".landmarks.jsonl"
    with progress.open("ab") as stream:
        stream.write(b'{"photo": "1--Other/b.jpg", "landma')  # cut off
    _prepared(downloads, "--landmarks")
    assert analyzed[:3] == [(512, 512, 3), (32, 32, 3), (32, 32, 3)]
    assert not progress.exists()
    assert np.isfinite(read_labels(downloads / "train")[0].landmarks[0]).all()


@pytest.mark.parametrize("last_step", ["rename", "unlink"])
def test_landmarks_interrupted_at_their_end_are_finished(
    downloads: Path, monkeypatch: pytest.MonkeyPatch, last_step: str
) -> None:
    def killed(path: Path, *_: object, **__: object) -> None:
        if path.name in ("wider_face_train_bbx_gt.txt", ".landmarks.jsonl"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, last_step, killed)
        assert facepipe("data", "prepare", "wider", downloads, "--landmarks").code != 0
    _prepared(downloads)  # without landmarks: the boxes
    assert len(read_labels(downloads / "train")) == 2
    assert _prepared(downloads, "--landmarks").lines[0].endswith("2 faces, 1 with landmarks")
    assert np.isfinite(read_labels(downloads / "train")[0].landmarks[0]).all()
    assert not (downloads / "train" / "wider_face_train_bbx_gt.txt").exists()


def test_progress_of_other_labels_is_made_again(downloads: Path) -> None:
    (downloads / "train").mkdir()
    progress = downloads / "train" / ".landmarks.jsonl"
    made = {"photo": "0--Parade/a.jpg", "landmarks": [[[1, 1]] * 5] * 2}
    progress.write_text(json.dumps({"run": "another"}) + "\n" + json.dumps(made) + "\n")
    assert _prepared(downloads, "--landmarks").lines[0].endswith("1 with landmarks")


def test_ground_truth_is_found_in_the_tools_of_evaluation(downloads: Path) -> None:
    truth = downloads / "eval_tools" / "ground_truth"
    truth.mkdir(parents=True)
    write_ground_truth(truth, {"0--Parade/a": [[1, 2, 3, 4]]}, {"0--Parade/a": [1]})
    _zip(truth.parent)
    assert _prepared(downloads).lines[-1] == f"{downloads / 'ground_truth'}: for --ground-truth"
    assert len(list((downloads / "ground_truth").glob("*.mat"))) == 4


def test_a_part_without_photos_is_left_out(downloads: Path) -> None:
    shutil.rmtree(downloads / "WIDER_train")
    said = _prepared(downloads)
    assert len(said.lines) == 1
    assert "found no WIDER_train and no WIDER_train.zip; train is left out" in said.err
    assert not (downloads / "train").exists()


def _without_photos(folder: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(folder / f"WIDER_{part}")


def _without_labels(folder: Path) -> None:
    shutil.rmtree(folder / "wider_face_split")


def _without_one_photo(folder: Path) -> None:
    (folder / "WIDER_train" / "images" / "1--Other" / "b.jpg").unlink()


def _without_one_photo_in_zip(folder: Path) -> None:
    _without_one_photo(folder)
    _zip(folder / "WIDER_train")


def _cut_off(folder: Path) -> None:
    _zip(folder / "WIDER_train")
    archive = folder / "WIDER_train.zip"
    archive.write_bytes(archive.read_bytes()[:-200])


def _flipped(folder: Path) -> None:
    _zip(folder / "WIDER_train")
    archive = folder / "WIDER_train.zip"
    data = bytearray(archive.read_bytes())
    data[5000] ^= 1
    archive.write_bytes(data)


def _leading_elsewhere(folder: Path) -> None:
    labels = folder / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    labels.write_text(labels.read_text().replace("1--Other/", "../../../"))


def _names_only(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "label.txt").write_text("# 0--Parade/a.jpg\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_photos, "found no WIDER_train and no WIDER_val, as folders or .zip files"),
        (_without_labels, "wider_face_train_bbx_gt.txt of wider_face_split"),
        (_without_one_photo, "WIDER_train: lacks images/1--Other/b.jpg"),
        (_without_one_photo_in_zip, "WIDER_train.zip: lacks images/1--Other/b.jpg"),
        (_cut_off, "WIDER_train.zip: damaged or cut off"),
        (_flipped, "WIDER_train.zip: damaged or cut off"),
        (_names_only, "label.txt: names photos and no faces; remove it"),
        (_leading_elsewhere, "which is in another folder"),
    ],
)
def test_what_is_missing_or_damaged_is_named(downloads: Path, spoil: object, message: str) -> None:
    assert callable(spoil)
    spoil(downloads)
    said = facepipe("data", "prepare", "wider", downloads)
    assert said.code == 1
    assert message in said.err
    assert not list(downloads.rglob("*.part"))
