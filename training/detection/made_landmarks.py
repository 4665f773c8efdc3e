"""Landmarks made by a detector, for data sets that have boxes alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.errors import OutputError
from facepipe.core.faces import Faces, FloatArray
from facepipe.core.files import atomic_write_bytes
from facepipe.core.validation import decode_json
from facepipe.detector import FaceDetector
from facepipe.evaluation.labels import LabelledPhoto
from facepipe.evaluation.labels.coco import coco_json
from facepipe.evaluation.metrics.detection import MATCH_IOU
from facepipe.images.reading import read_image

MADE_LABELS = "annotations.json"
"""In the form of COCO, which keeps ignored faces."""
MIN_SIDE_PX = 10.0
"""Of a box that gets landmarks: those of smaller faces are guesses."""

_PROGRESS = ".landmarks.jsonl"
_NOT_FOUND = np.full((5, 2), np.nan, np.float32)

Point = tuple[float, float]
Points = tuple[Point, Point, Point, Point, Point]
Watch = Callable[[Sequence[LabelledPhoto]], Iterable[LabelledPhoto]]


@dataclass(frozen=True, slots=True)
class _Made:
    """A line of the progress file: five points or none for each face of a photo."""

    photo: str
    landmarks: tuple[Points | None, ...]


def add_landmarks(
    folder: Path,
    labels: Path,
    photos: Sequence[LabelledPhoto],
    detector: FaceDetector,
    watch: Watch = iter,
) -> list[LabelledPhoto]:
    """Give labelled faces the landmarks of the detections that overlap them, and write them as labels.

    A face gets those of the detection that overlaps it most, where the overlap (IoU) reaches 0.5 and the box
    is at least 10 px wide and high. `folder/annotations.json` then takes the place of `labels`, to whose name
    `.before` is added. An interrupted run is continued by the next one with the same detector and labels.

    Args:
        folder: The data set, with `images/`.
        labels: Its labels, in the folder; renamed in the end.
        photos: What they hold.
        detector: With the options to use.
        watch: Hands on the photos one by one, for a progress bar.

    Raises:
        PhotoError: A photo can't be read.
        OutputError: The folder can't be written.
    """
    images, progress = folder / "images", folder / _PROGRESS
    try:
        run = f"{detector.card.fingerprint} {hashlib.sha256(labels.read_bytes()).hexdigest()}"
        with _continued(progress, run) as (made, stream):
            completed = []
            for photo in watch(photos):
                name = photo.path.relative_to(images).as_posix()
                if name not in made:
                    made[name] = _Made(name, _matched(photo, detector.detect(read_image(photo.path))))
                    _append(stream, made[name])
                completed.append(replace(photo, landmarks=_as_array(made[name].landmarks)))
        atomic_write_bytes(folder / MADE_LABELS, coco_json(completed, images))
        before = labels.with_name(f"{labels.name}.before")
        before.unlink(missing_ok=True)  # a rename between two names of one file does nothing
        labels.rename(before)
        progress.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: can't be written ({error.strerror}); check room and rights") from error
    return completed


def has_made_landmarks(folder: Path) -> bool:
    """Return whether `add_landmarks` came to its end in a data set."""
    return (folder / MADE_LABELS).is_file() and not (folder / _PROGRESS).exists()


@contextmanager
def _continued(progress: Path, run: str) -> Iterator[tuple[dict[str, _Made], BinaryIO]]:
    """Yield what earlier runs made, and the progress file to append to, without a line that was cut off."""
    made = {line.photo: line for line in _read_progress(progress, run)}
    lines = [json.dumps({"run": run}), *(json.dumps(asdict(line)) for line in made.values())]
    atomic_write_bytes(progress, "".join(f"{line}\n" for line in lines).encode())
    with open(progress, "ab") as stream:
        yield made, stream


def _read_progress(progress: Path, run: str) -> Iterator[_Made]:
    """Yield the whole lines of the same run; none of another detector's or of other labels."""
    if not progress.is_file():
        return
    header, *lines = progress.read_bytes().split(b"\n")
    if header != json.dumps({"run": run}).encode():
        return
    for line in lines:
        try:
            yield decode_json(line, _Made)
        except ValueError:  # cut off
            return


def _append(stream: BinaryIO, made: _Made) -> None:
    stream.write(json.dumps(asdict(made)).encode() + b"\n")
    stream.flush()


def _matched(photo: LabelledPhoto, found: Faces) -> tuple[Points | None, ...]:
    overlaps = iou(photo.boxes_xyxy[:, None], found.boxes_xyxy)
    sides = (photo.boxes_xyxy[:, 2:] - photo.boxes_xyxy[:, :2]).min(axis=1)
    hits = (overlaps.max(axis=1, initial=0) >= MATCH_IOU) & (sides >= MIN_SIDE_PX)
    return tuple(
        _rounded(found.landmarks[overlaps[row].argmax()]) if hit else None for row, hit in enumerate(hits)
    )


def _rounded(points: FloatArray) -> Points:
    first, second, third, fourth, fifth = ((round(float(x), 2), round(float(y), 2)) for x, y in points)
    return first, second, third, fourth, fifth


def _as_array(landmarks: Sequence[Points | None]) -> FloatArray:
    """float32 (n, 5, 2); NaN where there are none."""
    points = [_NOT_FOUND if face is None else face for face in landmarks]
    return np.array(points, np.float32).reshape(-1, 5, 2)
