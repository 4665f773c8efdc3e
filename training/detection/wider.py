"""WIDER FACE's official downloads -> data sets for training and validation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facepipe.core.errors import DataError, OutputError
from facepipe.core.files import make_private_folder
from facepipe.detector import FaceDetector
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.evaluation.labels.fields import read_file
from facepipe.evaluation.metrics.wider import SETTINGS
from facepipe.training.detection.downloads import Download
from facepipe.training.detection.made_landmarks import MADE_LABELS, add_landmarks, has_made_landmarks

PARTS = ("train", "val")
GROUND_TRUTH = ("wider_face_val.mat", *(f"wider_{setting}_val.mat" for setting in SETTINGS))

_RETINAFACE = "retinaface_gt_v1.1"
_log = logging.getLogger("facepipe")

Watch = Callable[[Sequence[LabelledPhoto]], Iterable[LabelledPhoto]]


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """One data set that was made.

    Attributes:
        folder: With `images/` and the labels.
        photos: Numbers of photos by how they came there: see `Download.place`.
        faces: Number of labelled faces.
        with_landmarks: Number of those with five landmarks.
    """

    folder: Path
    photos: Counter[str]
    faces: int
    with_landmarks: int


def prepare_wider(
    folder: Path, landmarks_by: FaceDetector | None = None, *, watch: Watch = iter
) -> list[PreparedPart]:
    """Make `folder/train` and `folder/val` of the downloads in a folder, as unpacked or as zip files.

    Photos are those of `WIDER_train` and `WIDER_val`. Labels are RetinaFace's `label.txt`, in the data set's
    folder already or from `retinaface_gt_v1.1`, or else the boxes of `wider_face_split`. A part whose photos
    are missing is left out. The downloads stay as they are, and what is there already is not made again.

    Args:
        folder: With the downloads.
        landmarks_by: Makes landmarks for labels without any: see `add_landmarks`.
        watch: Hands on the photos one by one, for a progress bar.

    Raises:
        DataError: A download is missing or damaged; says what it is.
        PhotoError: A photo can't be read, to make landmarks.
        OutputError: The disk is full, or the folder can't be written.
    """
    downloads = {part: Download(folder, f"WIDER_{part}") for part in PARTS}
    found = [part for part in PARTS if downloads[part].exists]
    if not found:
        raise DataError(
            f"{folder}: found no WIDER_train and no WIDER_val, as folders or .zip files; they are the "
            "training and validation images of WIDER FACE's download page"
        )
    for part in set(PARTS) - set(found):
        _log.warning("%s: found no WIDER_%s and no WIDER_%s.zip; %s is left out", folder, part, part, part)
    return [_prepare(folder, part, downloads[part], landmarks_by, watch) for part in found]


def place_ground_truth(folder: Path) -> Path | None:
    """Return the folder of the official protocol's `.mat` files, linked or extracted there; None: none.

    Raises:
        DataError, OutputError: `eval_tools.zip` is damaged, or its files can't be written.
    """
    target, tools = folder / "ground_truth", Download(folder, "eval_tools")
    for name in GROUND_TRUTH:
        if not (target / name).is_file():
            if not tools.has(f"ground_truth/{name}"):
                return None
            tools.place(f"ground_truth/{name}", target / name)
    return target


def _prepare(
    folder: Path, part: str, download: Download, landmarks_by: FaceDetector | None, watch: Watch
) -> PreparedPart:
    place = folder / part
    labels = _place_labels(folder, part)
    _make_folder(place / "images")
    photos = read_labels(place, labels)
    counts = Counter(_place_photo(photo, place / "images", download) for photo in watch(photos))
    if landmarks_by and not any(np.isfinite(photo.landmarks).any() for photo in photos):
        photos = add_landmarks(place, labels, photos, landmarks_by, watch)
    complete = sum(int(np.isfinite(photo.landmarks).all(axis=(1, 2)).sum()) for photo in photos)
    return PreparedPart(place, counts, sum(len(photo.boxes_xyxy) for photo in photos), complete)


def _place_labels(folder: Path, part: str) -> Path:
    """Return the labels of a part, put into its folder where there are none yet."""
    place, boxes = folder / part, f"wider_face_{part}_bbx_gt.txt"
    if has_made_landmarks(place):
        return place / MADE_LABELS
    for labels in (place / "label.txt", place / boxes):
        if labels.is_file():
            if not _has_faces(read_file(labels)):
                raise DataError(f"{labels}: names photos and no faces; remove it, to take {boxes}")
            return labels
    for download, inner in (
        (Download(folder, _RETINAFACE), f"{part}/label.txt"),
        (Download(folder, "wider_face_split"), boxes),
    ):
        if download.has(inner) and _has_faces(download.read(inner)):
            labels = place / Path(inner).name
            download.place(inner, labels)
            return labels
    raise DataError(
        f"{folder}: found no labels of the photos of WIDER_{part}: {boxes} of wider_face_split (the face "
        f"annotations of WIDER FACE's download page) or {part}/label.txt of {_RETINAFACE} (RetinaFace's "
        "annotations), as folders or .zip files"
    )


def _has_faces(labels: bytes) -> bool:
    """Return whether a `label.txt` has more than names: those of the test photos have no faces."""
    return any(line.strip() and not line.startswith(b"#") for line in labels.splitlines())


def _make_folder(folder: Path) -> None:
    try:
        make_private_folder(folder)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made ({error.strerror}); check the rights") from error


def _place_photo(photo: LabelledPhoto, images: Path, download: Download) -> str:
    if not photo.path.is_relative_to(images) or ".." in photo.path.parts:
        raise DataError(f"{images.parent}: the labels name {photo.path}, which is in another folder")
    inner = f"images/{photo.path.relative_to(images).as_posix()}"
    if not photo.path.is_file() and not download.has(inner):
        raise DataError(f"{download}: lacks {inner}, which the labels in {images.parent} name")
    return download.place(inner, photo.path)
