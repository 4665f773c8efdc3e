"""Writers of label files in other formats, for tests of their readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.images.reading import read_size

Writer = Callable[[Path, Sequence[LabelledPhoto]], None]


def write_coco(folder: Path, photos: Sequence[LabelledPhoto]) -> None:
    """`annotations.json`, with a category beside face whose boxes are to be passed over."""
    annotations = []
    for number, photo in enumerate(photos):
        rows = [*zip(photo.boxes_xyxy, photo.landmarks, strict=True)]
        for box, points in rows:
            annotations.append({**_coco_box(number, box), "keypoints": _with_visibility(points)})
        annotations += [{**_coco_box(number, box), "iscrowd": 1} for box in photo.ignored_xyxy]
        annotations.append({**_coco_box(number, np.array([1, 2, 3, 4])), "category_id": 2})
    record = {
        "info": {"year": 2020},
        "images": [{"id": n, "file_name": photo.path.name, "width": 1} for n, photo in enumerate(photos)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "Face"}, {"id": 2, "name": "hand"}],
    }
    (folder / "annotations.json").write_text(json.dumps(record))


def write_voc(folder: Path, photos: Sequence[LabelledPhoto]) -> None:
    """`Annotations/*.xml`, without landmarks."""
    (folder / "Annotations").mkdir()
    for photo in photos:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = photo.path.name
        for boxes, difficult in ((photo.boxes_xyxy, "0"), (photo.ignored_xyxy, "1")):
            for box in boxes:
                item = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(item, "name").text = "face"
                ElementTree.SubElement(item, "difficult").text = difficult
                corners = ElementTree.SubElement(item, "bndbox")
                for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                    ElementTree.SubElement(corners, name).text = repr(float(value))
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{photo.path.stem}.xml")


def write_yolo(folder: Path, photos: Sequence[LabelledPhoto], visibility: bool = True) -> None:
    """`labels/*.txt`, with landmarks where the photos have some; ignored faces have no place in them."""
    (folder / "labels").mkdir()
    for photo in photos:
        size = np.array(read_size(photo.path), np.float64)
        lines = []
        for box, points in zip(photo.boxes_xyxy.astype(np.float64), photo.landmarks, strict=True):
            middle, sides = (box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size
            known = np.isfinite(points).all(axis=1)
            shares = np.where(known[:, None], points / size, 0 if visibility else -1)
            rows = np.column_stack([shares, np.where(known, 2, 0)]) if visibility else shares
            lines.append(" ".join(f"{value:.12g}" for value in (0, *middle, *sides, *rows.ravel())))
        (folder / "labels" / f"{photo.path.stem}.txt").write_text("\n".join(lines))


def write_yolo_without_visibility(folder: Path, photos: Sequence[LabelledPhoto]) -> None:
    """See `write_yolo`."""
    write_yolo(folder, photos, visibility=False)


def converted(folder: Path, photos: Sequence[LabelledPhoto], write: Writer) -> Path:
    """A data set of the photos in another format; their names must differ."""
    (folder / "images").mkdir(parents=True)
    for photo in photos:
        shutil.copy(photo.path, folder / "images" / photo.path.name)
    write(folder, photos)
    return folder


def _coco_box(photo: int, box_xyxy: FloatArray) -> dict[str, object]:
    left, top, right, bottom = map(float, box_xyxy)
    return {"image_id": photo, "category_id": 1, "bbox": [left, top, right - left, bottom - top]}


def _with_visibility(points: FloatArray) -> list[float]:
    known = np.isfinite(points).all(axis=1)
    return np.column_stack([np.nan_to_num(points), np.where(known, 2, 0)]).ravel().tolist()
