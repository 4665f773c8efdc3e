"""The report: one HTML file that opens from disk, for ten photos or ten thousand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from facepipe.batch.groups import update_groups
from facepipe.batch.job import Job
from facepipe.batch.models import PREVIEW, PhotoRecord, ReportOptions
from facepipe.core.errors import unwritable
from facepipe.core.files import atomic_file
from facepipe.core.overwriting import PAGE, require_replaceable
from facepipe.core.plain_text import visible
from facepipe.images.small_pictures import data_url

Groups = dict[tuple[int, int], int]

REPORT_FILE = "report.html"
_CHUNK = 100
"""Photos whose pictures are unpacked together when one of them comes into view."""


def write_report(job: Job, options: ReportOptions) -> None:
    """Write `report.html` into the job's folder: people with their faces, unknown faces, failures.

    Raises:
        OutputError: It can't be written, or would take the place of another file than a page of facepipe.
    """
    file = job.folder / REPORT_FILE
    require_replaceable(file, PAGE)
    job.outputs.remember_report(options)
    template = resources.files("facepipe.batch").joinpath("report.html").read_text(encoding="utf-8")
    head, tail = template.split("<!--DATA-->")
    try:
        with atomic_file(file) as stream:
            stream.write(head.encode())
            _write_data(stream, job, _groups(job, options), _Names(job) if options.paths else None)
            stream.write(tail.encode())
    except OSError as error:
        raise unwritable(file, error) from error


def _groups(job: Job, options: ReportOptions) -> Groups:
    """Return the number of its group for each unknown face that has company, by photo and row."""
    numbers = update_groups(job, options.group_within_l2)
    return {
        (face.photo_id, face.row): numbers[face.face_id]
        for face in job.faces.unknown_faces()
        if face.face_id in numbers
    }


class _Names:
    """How the report calls the photos: by their paths below their common folder.

    Attributes:
        url: Of that folder, relative to the report.
    """

    def __init__(self, job: Job) -> None:
        parents = {os.path.abspath(photo.parent) for photo in job.photos()} or {os.path.abspath(job.folder)}
        try:
            folder = os.path.commonpath(parents)
            self._folder: Path | None = Path(folder)
            self.url = f"{_quoted(os.path.relpath(folder, job.folder))}/"
        except ValueError:  # several drives of Windows: nothing leads from one to the other
            self._folder, self.url = None, ""

    def of(self, photo: Path) -> dict[str, str]:
        """Return the path, and what is added to `url` where the path does not contain it."""
        if self._folder is None:
            return {"path": visible(str(photo)), "url": photo.as_uri()}
        path = photo.relative_to(self._folder).as_posix()
        text = visible(path)
        return {"path": text} if text == path else {"path": text, "url": _quoted(path)}


def _quoted(path: str) -> str:
    return quote(os.fsencode(Path(path).as_posix()))


def _write_data(stream: BinaryIO, job: Job, groups: Groups, names: _Names | None) -> None:
    """Everything but pictures in one piece, for the filters; pictures in chunks, unpacked when seen."""
    photos = []
    for number, chunk in enumerate(_chunks(job)):
        for record in chunk:
            name = names.of(record.result.path) if names else {}
            photos.append(name | _photo(record, groups))
        pictures = [_pictures(job, record) for record in chunk]
        stream.write(_script(f"pictures-{number}", pictures))
    url = names and names.url
    stream.write(_script("report-data", {"chunk": _CHUNK, "url": url, "photos": photos}))


def _chunks(job: Job) -> Iterator[list[PhotoRecord]]:
    chunk: list[PhotoRecord] = []
    for record in job.records():
        chunk.append(record)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _photo(record: PhotoRecord, groups: Groups) -> dict[str, Any]:
    result = record.result
    if result.faces is None:
        return {"error": visible(result.error or "").removeprefix(f"{visible(str(result.path))}: ")}
    boxes, matches = result.faces.boxes_xyxy.tolist(), result.faces.matches or ()
    faces = [
        {
            "box": [round(side) for side in box],
            "status": match.status.value,
            "name": name and visible(name),
            "distance": None if match.distance_l2 is None else round(match.distance_l2, 2),
            "reason": match.reason,
            "group": groups.get((record.id, row)),
        }
        for row, (box, match) in enumerate(zip(boxes, matches, strict=True))
        for name in [match.name or match.candidate_name]
    ]
    return {"size": record.size_wh, "faces": faces}


def _pictures(job: Job, record: PhotoRecord) -> dict[str, str]:
    pictures = job.faces.pictures(record.id)
    names = {face: "photo" if face == PREVIEW else str(face) for face in pictures}
    return {names[face]: data_url(picture) for face, picture in pictures.items()}


def _script(id: str, value: Any) -> bytes:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{text}</script>\n'.encode()
