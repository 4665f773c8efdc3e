"""Labels of COCO, Pascal VOC and YOLO: the same faces in every format, and one error for a bad file."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from label_helpers import (
    Writer,
    converted,
    write_coco,
    write_voc,
    write_yolo,
    write_yolo_without_visibility,
)
from PIL import Image
from training_helpers import write_dataset

from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.images.reading import write_image

BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
IMAGES = [{"id": 1, "file_name": "a.png"}]
FACE = [{"id": 1, "name": "face"}]
OBJECT = "<object><name>face</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"
BOMB = """<?xml version="1.0"?>
<!DOCTYPE b [<!ENTITY a "face"><!ENTITY c "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&c;</filename></annotation>"""


@pytest.fixture
def photos(tmp_path: Path, astronaut: UInt8Array) -> list[LabelledPhoto]:
    """Two photos; the first has a face without landmarks, one without its nose, and one that is ignored."""
    first, second = read_labels(write_dataset(tmp_path / "original", astronaut))
    boxes = np.concatenate([first.boxes_xyxy, first.boxes_xyxy + 3, first.boxes_xyxy - 5])
    landmarks = np.repeat(first.landmarks, 3, axis=0)
    landmarks[1], landmarks[2, 2] = np.nan, np.nan
    ignored = np.array([[10, 11, 20, 22.5]], np.float32)
    return [replace(first, boxes_xyxy=boxes, landmarks=landmarks, ignored_xyxy=ignored), second]


def _require_same(found: list[LabelledPhoto], wanted: list[LabelledPhoto]) -> None:
    assert [photo.path.name for photo in found] == [photo.path.name for photo in wanted]
    for photo, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(photo.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(photo.landmarks, other.landmarks, atol=1e-3)
        np.testing.assert_allclose(photo.ignored_xyxy, other.ignored_xyxy, atol=1e-3)


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo, write_yolo_without_visibility])
def test_every_format_has_the_same_faces(tmp_path: Path, photos: list[LabelledPhoto], write: Writer) -> None:
    folder = converted(tmp_path / "converted", photos, write)
    if write is write_voc:
        photos = [replace(photo, landmarks=np.full_like(photo.landmarks, np.nan)) for photo in photos]
    elif write is not write_coco:
        photos = [replace(photo, ignored_xyxy=np.zeros((0, 4), np.float32)) for photo in photos]
    _require_same(read_labels(folder), photos)
    said = facepipe("data", "check", folder, "--json")
    report = json.loads(said.out)
    assert (said.code, report["photos"], report["faces"], report["faults"]) == (0, 2, 4, [])
    assert report["with_landmarks"] == (0 if write is write_voc else 2)
    (labels,) = (path for path in folder.iterdir() if path.name != "images")
    moved = labels.rename(tmp_path / labels.name)
    assert json.loads(facepipe("data", "check", folder, "--labels", moved, "--json").out) == report


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_real_labels_are_the_same_in_every_format(tmp_path: Path, shared_data: Path, write: Writer) -> None:
    photos = read_labels(shared_data / "wider" / "train")[::400]
    found = read_labels(converted(tmp_path / "converted", photos, write))
    by_name = {photo.path.name: photo for photo in found}
    assert sum(len(photo.boxes_xyxy) for photo in found) > 20
    if write is write_voc:
        photos = [replace(photo, landmarks=np.full_like(photo.landmarks, np.nan)) for photo in photos]
    _require_same([by_name[photo.path.name] for photo in photos], photos)


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_a_missing_photo_is_a_fault_of_the_data_set(
    tmp_path: Path, photos: list[LabelledPhoto], write: Writer
) -> None:
    folder = converted(tmp_path / "converted", photos, write)
    (folder / "images" / "0.png").unlink()
    (folder / "images" / "1.png").write_bytes(b"no photo")
    said = facepipe("data", "check", folder, "--json")
    counts = json.loads(said.out)["fault_counts"]
    assert (said.code, counts) == (1, {"missing photo": 1, "unreadable photo": 1})


def _coco(folder: Path, **changes: object) -> Path:
    record = {"images": IMAGES, "annotations": [BOX], "categories": FACE, **changes}
    (folder / "a.json").write_text(json.dumps(record))
    return folder


def test_coco_without_categories_or_keypoints(tmp_path: Path) -> None:
    empty = {**BOX, "keypoints": [0] * 51, "bbox": [1, 2, -3, 0]}
    (photo,) = read_labels(_coco(tmp_path, categories=[], annotations=[BOX, empty]))
    assert photo.path == tmp_path / "a.png"
    assert photo.boxes_xyxy.tolist() == [
        [1, 2, 4, 6],
        [1, 2, -2, 2],
    ]  # the second is for `data check` to name
    assert np.isnan(photo.landmarks).all()


def test_all_categories_are_faces_where_none_is_named_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = [{"id": 1, "name": "mask"}, {"id": 2, "name": "no mask"}]
    other = {**BOX, "category_id": 2}
    with caplog.at_level(logging.WARNING, "facepipe"):
        (photo,) = read_labels(_coco(tmp_path, categories=masks, annotations=[BOX, other]))
    assert len(photo.boxes_xyxy) == 2
    assert "no category is named face; all 2 are taken" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "images: expected `array`, got `null`"),
        ({"images": [*IMAGES, *IMAGES]}, "images[1]: expected an id of its own, got '1' again"),
        ({"images": [{"id": 1, "file_name": "a\0.png"}]}, "images[0]: expected the file name of a photo"),
        ({"images": [{"id": 1, "file_name": "\ud800.png"}]}, "not annotations of COCO"),
        ({"images": [{"id": 1, "file_name": "é" * 128}]}, "images[0]: expected the file name of a photo"),
        ({"images": [{"id": 1, "file_name": "a/" * 501}]}, "images[0]: expected the file name of a photo"),
        ({"images": [], "annotations": []}, "names no photos"),
        ({"annotations": [{**BOX, "image_id": 7}]}, "annotations[0]: image_id '7' is not among the images"),
        ({"annotations": [{**BOX, "category_id": 7}]}, "annotations[0]: category_id '7' is not a category"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3]}]}, "annotations[0].bbox: expected `array` of length 4"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3, "4"]}]}, "annotations[0].bbox[3]: expected `float`"),
        (
            {"annotations": [{**BOX, "bbox": [1, 2, 3, 10**30]}]},
            "annotations[0]: expected finite numbers up to",
        ),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3, float("nan")]}]}, "not annotations of COCO"),
        (
            {"annotations": [{**BOX, "keypoints": [1] * 51}]},
            "annotations[0]: expected keypoints of 15 numbers",
        ),
    ],
)
def test_bad_coco_names_file_and_place(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(_coco(tmp_path, **changes))
    assert f"{tmp_path / 'a.json'}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b'{"images": 1e999}', b"[" * 100_000, b"\xff\xfe{", b"9" * 9999])
def test_what_is_no_coco_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DataError, match=r"a\.json: not annotations of COCO"):
        read_labels(tmp_path)


def _voc(folder: Path, text: str | bytes) -> Path:
    file = folder / "Annotations" / "a.xml"
    file.parent.mkdir()
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_voc_takes_faces_only_and_photos_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    other = OBJECT.replace("face", "dog")
    text = f"<annotation><filename>a.jpg</filename>{OBJECT}</object>{other}</object></annotation>"
    (photo,) = read_labels(_voc(tmp_path, text))
    assert photo.path == tmp_path / "JPEGImages" / "a.jpg"
    assert photo.boxes_xyxy.tolist() == [[1, 2, 4, 6]]


def test_voc_finds_photos_in_sub_folders(tmp_path: Path, astronaut: UInt8Array) -> None:
    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "Annotations" / name).mkdir(parents=True)
        write_image(tmp_path / "images" / name / "a.png", astronaut)
        (tmp_path / "Annotations" / name / "a.xml").write_text(
            f"<annotation><filename>a.png</filename>{OBJECT}</object></annotation>"
        )
    assert [photo.path.parent.name for photo in read_labels(tmp_path)] == ["one", "two"]
    assert facepipe("data", "check", tmp_path).code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an annotation of Pascal VOC: no element found"),
        ("<annotation>", "no element found: line 1, column 12"),
        ("<annotation/>", "filename: expected the file name of a photo, got ''"),
        (BOMB, "line 2: has a document type; remove it"),
        (BOMB.encode("utf-16"), "line 2: has a document type; remove it"),
        ('<?xml version="1.0" encoding="x-none"?><a/>', "unknown encoding"),
        ("<a><filename>a.jpg</filename><object><name>face</name></object></a>", "object 1, bndbox: expected"),
        (
            f"<a><filename>a.jpg</filename>{OBJECT.replace('2', 'nan')}</object></a>",
            "expected finite numbers",
        ),
    ],
)
def test_bad_voc_names_file_and_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(_voc(tmp_path, text))
    assert "a.xml" in str(caught.value)
    assert message in str(caught.value)


def _yolo(folder: Path, text: str) -> Path:
    for name in ("images", "labels"):
        (folder / name / "train").mkdir(parents=True, exist_ok=True)
    write_image(folder / "images" / "train" / "a.png", np.zeros((100, 200, 3), np.uint8))
    (folder / "labels" / "train" / "a.txt").write_text(text)
    return folder


def test_yolo_takes_classes_named_face_and_photos_without_labels(tmp_path: Path) -> None:
    _yolo(tmp_path, "0 .5 .5 .1 .2\n1 .5 .5 .2 .4\n\n")
    write_image(tmp_path / "images" / "empty.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "labels" / "classes.txt").write_text("person\nface\n")
    empty, photo = read_labels(tmp_path)
    assert (empty.path.name, len(empty.boxes_xyxy)) == ("empty.png", 0)
    np.testing.assert_allclose(photo.boxes_xyxy, [[80, 30, 120, 70]], atol=1e-4)
    (tmp_path / "labels" / "classes.txt").unlink()
    assert len(read_labels(tmp_path)[1].boxes_xyxy) == 2


def test_yolo_is_in_the_frame_of_the_upright_photo(tmp_path: Path) -> None:
    _yolo(tmp_path, "0 .5 .5 .1 .2\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    (photo,) = read_labels(tmp_path)
    np.testing.assert_allclose(photo.boxes_xyxy, [[45, 80, 55, 120]], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 .5 .5 .1\n", "line 1: expected 5 numbers (class and box), 15"),
        ("\n0 .5 .5 .1 .1 .9\n", "line 2: expected 5 numbers"),
        ("0 .5 .5 .1 inf\n", "line 1: expected finite numbers"),
        ("0 .5 .5 .1 x\n", "line 1: expected numbers, got '0 .5 .5 .1 x'"),
        ("0.5 .5 .5 .1 .1\n", "line 1: expected the number of a class, got '0.5'"),
        ("-1 .5 .5 .1 .1\n", "line 1: expected the number of a class"),
    ],
)
def test_bad_yolo_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(_yolo(tmp_path, text))
    assert "a.txt" in str(caught.value)
    assert message in str(caught.value)


def test_text_files_go_before_other_formats(tmp_path: Path) -> None:
    _coco(_yolo(tmp_path, "0 .5 .5 .1 .2\n"))
    (tmp_path / "x_bbx_gt.txt").write_text("wider.jpg\n0\n0 0 0 0\n")
    assert [photo.path.name for photo in read_labels(tmp_path)] == ["wider.jpg"]
    (tmp_path / "label.txt").write_text("# retinaface.jpg\n")
    assert [photo.path.name for photo in read_labels(tmp_path)] == ["retinaface.jpg"]


def test_several_formats_must_be_chosen_from(tmp_path: Path) -> None:
    _coco(_yolo(tmp_path, "0 .5 .5 .1 .2\n"))
    with pytest.raises(DataError, match=r"several label files \(a\.json, labels\); say which one"):
        read_labels(tmp_path)
    assert len(read_labels(tmp_path, tmp_path / "a.json")) == 1
    assert len(read_labels(tmp_path / "images" / "train", tmp_path / "labels" / "train")) == 1
    with pytest.raises(DataError, match=r"holds no \*\.xml"):
        read_labels(tmp_path, tmp_path / "images")
    with pytest.raises(DataError, match=r"missing\.json: can't be read: No such file"):
        read_labels(tmp_path, tmp_path / "missing.json")
