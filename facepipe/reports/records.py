"""Results as records: the stable JSON and CSV forms of docs/results.md, and embeddings as .npz."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from facepipe.core.counting import counted
from facepipe.core.csv_files import BOM, csv_line
from facepipe.core.errors import OutputError
from facepipe.core.faces import Faces, Match
from facepipe.core.files import atomic_write_bytes
from facepipe.core.json_lines import record_to_json
from facepipe.core.plain_text import text_of

if TYPE_CHECKING:
    from facepipe.pipeline import PhotoResult

"""Bytes of file names that are no text; not to be had in UTF-8."""
CSV_COLUMNS = (
    "photo",
    "error",
    "face",
    "left",
    "top",
    "right",
    "bottom",
    "score",
    "name",
    "distance_l2",
    "threshold_l2",
    "runner_up",
    "runner_up_distance_l2",
    "status",
    "candidate",
    "reason",
)


@dataclass(frozen=True, slots=True)
class Printer:
    """Lines for stdout: a header, then those of each result."""

    header: tuple[str, ...]
    of: Callable[[PhotoResult], list[str]]


def printer(form: Literal["table", "json", "csv"], *, bom: bool = False) -> Printer:
    """Return how results are printed: for people, as JSON Lines, or as CSV.

    Args:
        form: Which of them.
        bom: Begin the CSV with a byte-order mark, by which spreadsheets know that it is UTF-8.
    """
    if form == "json":
        return Printer((), lambda result: [to_json(result)])
    if form == "csv":
        header = f"{BOM if bom else ''}{csv_line(CSV_COLUMNS)}"
        return Printer((header,), lambda result: [csv_line(row) for row in csv_rows(result)])
    return Printer((), table_lines)


def table_lines(result: PhotoResult) -> list[str]:
    """Return the faces of a photo for people to read; nothing after an error, which is on stderr."""
    if result.faces is None:
        return []
    photo = text_of(result.path)
    if not len(result.faces):
        return [f"{photo}: no faces{result.hint and f' ({result.hint})'}"]
    faces = [f"  {_in_words(result.faces, i)}" for i in range(len(result.faces))]
    return [f"{photo}: {counted(len(faces), 'face')}", *faces]


def photo_record(result: PhotoResult) -> dict[str, Any]:
    """Return `{"photo", "error", "faces", "warnings"}`, None where there is nothing."""
    faces = [] if result.faces is None else [face_record(result.faces, i) for i in range(len(result.faces))]
    return {
        "photo": result.path,
        "error": result.error,
        "faces": faces,
        "warnings": [warning.value for warning in result.warnings],
    }


def face_record(faces: Faces, i: int) -> dict[str, Any]:
    """Return one face of a photo: its place, its name, and why it has that or none."""
    match = faces.matches[i] if faces.matches is not None else None
    return {
        "box_xyxy": [_rounded(v, 2) for v in faces.boxes_xyxy[i]],
        "score": _rounded(faces.scores[i], 4),
        "landmarks": [[_rounded(v, 2) for v in point] for point in faces.landmarks[i]],
        "name": match.name if match else None,
        "distance_l2": _distance(match.distance_l2) if match else None,
        "threshold_l2": _distance(match.threshold_l2) if match else None,
        "runner_up": _runner_up(match) if match else None,
        "status": match.status.value if match else None,
        "candidate": match.candidate_name if match else None,
        "reason": match.reason if match else None,
    }


def to_json(result: PhotoResult) -> str:
    """One line of JSON: see `photo_record`."""
    return record_to_json(photo_record(result))


def csv_rows(result: PhotoResult) -> list[list[Any]]:
    """One row a face in the order of `CSV_COLUMNS`; a photo without faces or with an error has one row."""
    photo = text_of(result.path)
    if result.faces is None or not len(result.faces):
        return [[photo, text_of(result.error or ""), *[""] * (len(CSV_COLUMNS) - 2)]]
    return [[photo, "", i, *_csv_face(result.faces, i)] for i in range(len(result.faces))]


def save_embeddings(file: Path, results: Sequence[PhotoResult]) -> int:
    """Write the embeddings of all encoded faces to an .npz of `paths`, `boxes` (n, 4), `embeddings` (n, d).

    Arrays only, no pickle. Returns the number of faces.

    Raises:
        OutputError: The file can't be written.
    """
    found = [(result.path, _encoded(result.faces)) for result in results if result.faces is not None]
    paths = [text_of(path) for path, faces in found for _ in range(len(faces))]
    embeddings = [faces.embeddings for _, faces in found if faces.embeddings is not None]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        paths=np.array(paths, dtype=np.str_),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(faces.boxes_xyxy for _, faces in found)]),
        embeddings=np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
    )
    try:
        atomic_write_bytes(file, buffer.getvalue())
    except OSError as error:
        raise OutputError(f"{file}: can't be written ({error.strerror}); choose another place") from error
    return len(paths)


def _encoded(faces: Faces) -> Faces:
    if faces.embeddings is None:
        return faces
    return faces.select(np.flatnonzero(np.isfinite(faces.embeddings).all(axis=1)))


def _in_words(faces: Faces, i: int) -> str:
    left, top, right, bottom = (round(float(v)) for v in faces.boxes_xyxy[i])
    place = f"at {left},{top} {right - left}x{bottom - top} px, score {faces.scores[i]:.2f}"
    if faces.matches is None:
        return place
    match = faces.matches[i]
    distance = "" if match.distance_l2 is None else f"distance {match.distance_l2:.2f}"
    runner_up = ""
    if match.runner_up_name is not None and match.runner_up_distance_l2 is not None:
        runner_up = f", next {match.runner_up_name} {match.runner_up_distance_l2:.2f}"
    doubt = "" if match.reason is None else f", {match.reason.replace('_', ' ')}"
    return f"{match.label:<24} {distance}{runner_up}  ({place}{doubt})"


def _runner_up(match: Match) -> dict[str, Any] | None:
    if match.runner_up_name is None:
        return None
    return {"name": match.runner_up_name, "distance_l2": _distance(match.runner_up_distance_l2)}


def _csv_face(faces: Faces, i: int) -> list[Any]:
    face = face_record(faces, i)
    runner_up = face["runner_up"] or {"name": None, "distance_l2": None}
    values = [*face["box_xyxy"], face["score"], face["name"], face["distance_l2"], face["threshold_l2"]]
    values += [runner_up["name"], runner_up["distance_l2"], face["status"], face["candidate"], face["reason"]]
    return ["" if value is None else value for value in values]


def _rounded(value: Any, digits: int) -> float:
    return round(float(value), digits)


def _distance(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
