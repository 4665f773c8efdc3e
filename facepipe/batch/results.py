"""Records of a batch's results, and files written for each photo."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from facepipe.batch.job import Job
from facepipe.batch.models import OutputFiles, PhotoRecord, ReportOptions
from facepipe.batch.output_files import (
    PICTURE_KINDS,
    SIDECAR_KIND,
    TAGGED_SIDECAR_KIND,
    output_folder,
    picture_folder,
    remove_pictures,
)
from facepipe.batch.page import REPORT_FILE, write_report
from facepipe.batch.planning import Remembered, require_unchanged
from facepipe.core.errors import FacepipeError, unwritable
from facepipe.core.files import atomic_file
from facepipe.core.overwriting import PAGE, RECORDS, TABLE, require_replaceable
from facepipe.core.processors import compute_threads
from facepipe.images.decoding_memory import PhotoMemory, allowed_bytes
from facepipe.images.reading import DEFAULT_MAX_PIXELS, printable, read_reduced
from facepipe.pipeline import PhotoResult
from facepipe.reports.pictures import PictureFolder
from facepipe.reports.records import Printer, printer, to_json
from facepipe.xmp.embedding import write_named_copy
from facepipe.xmp.sidecars import write_sidecar

_CHUNK = 64
_FORMS = {"results.jsonl": RECORDS, "faces.csv": TABLE}
_COPIES = 3
_log = logging.getLogger("facepipe")

Writer = Callable[[PhotoRecord], list[Path]]
"""Writes the files of one photo; answers which they are."""


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Which files are written beside the records.

    Attributes:
        annotate: Photos with their faces drawn.
        crops: Each face as a picture.
        xmp: Sidecars beside the photos.
        xmp_tags: Names as keywords in the sidecars.
        xmp_embed: Copies of the photos with the names embedded.
        xmp_in_place: Names in the photos themselves; see `facepipe.batch.photo_writing`.
        paths: Whether the report names the photos by their paths.
        max_pixels: Largest photo read for a picture.
    """

    annotate: bool = False
    crops: bool = False
    xmp: bool = False
    xmp_tags: bool = False
    xmp_embed: bool = False
    xmp_in_place: bool = False
    paths: bool = True
    max_pixels: int = DEFAULT_MAX_PIXELS


def write_results(job: Job, group_within_l2: float, options: ResultOptions) -> int:
    """Write records and report, and the files that are asked for; one that fails is logged, the rest goes on.

    Args:
        job: The results.
        group_within_l2: See `ReportOptions`.
        options: What is asked for.

    Returns:
        How many could not be written: files of records, report, and photos by kind of file.
    """

    def pictures(kind: str, writer: Callable[[Path, list[Path], int], Writer]) -> int:
        folder = picture_folder(job.folder, kind)
        return write_outputs(job, kind, writer(folder, job.photos(), options.max_pixels))

    unwritten = _unwritten(lambda: write_records(job, "results.jsonl"))
    unwritten += _unwritten(lambda: write_records(job, "faces.csv"))
    unwritten += _unwritten(lambda: write_report(job, ReportOptions(group_within_l2, options.paths)))
    if options.annotate:
        unwritten += _unwritten(lambda: pictures("annotated", annotated_writer))
    if options.crops:
        unwritten += _unwritten(lambda: pictures("crops", crop_writer))
    if options.xmp_embed:
        unwritten += _unwritten(lambda: pictures("embedded", named_copy_writer))
    if options.xmp_tags:
        unwritten += _unwritten(lambda: write_outputs(job, TAGGED_SIDECAR_KIND, write_tagged_sidecar))
    elif options.xmp:
        unwritten += _unwritten(lambda: write_outputs(job, SIDECAR_KIND, write_photo_sidecar))
    return unwritten


def _unwritten(write: Callable[[], int | None]) -> int:
    try:
        return write() or 0
    except FacepipeError as error:
        _log.warning("%s", error)
        return 1


def require_places(folder: Path) -> None:
    """Check that the records and the report replace nothing else in a job's folder, before the work.

    Raises:
        OutputError: There is a file of such a name that facepipe did not write.
    """
    for name, form in {**_FORMS, REPORT_FILE: PAGE}.items():
        if not (folder / name).is_dir():  # reported in its turn: the other files can be written
            require_replaceable(folder / name, form)


def write_records(job: Job, name: Literal["results.jsonl", "faces.csv"]) -> None:
    """Write one of the files of records into the job's folder, in the order of the command.

    The lines are those of `facepipe identify --json` and `--csv --bom`. The file is replaced as a whole.

    Raises:
        OutputError: The file can't be written, or would take the place of another file than such records.
    """
    file, form = job.folder / name, _FORMS[name]
    require_replaceable(file, form)
    lines = printer("json") if name == "results.jsonl" else printer("csv", bom=True)
    try:
        with atomic_file(file) as stream:
            for line in _lines(lines, job.records()):
                stream.write(f"{line}\n".encode())
    except OSError as error:
        raise unwritable(file, error) from error


def _lines(form: Printer, records: Iterable[PhotoRecord]) -> Iterator[str]:
    yield from form.header
    for record in records:
        yield from form.of(record.result)


def annotated_writer(folder: Path, photos: list[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> Writer:
    """Write photos with their faces drawn into `folder`; see `PictureFolder`."""
    pictures = PictureFolder(folder, photos)
    return _pixel_writer(max_pixels, lambda result: [pictures.write_annotated(result)])


def crop_writer(folder: Path, photos: list[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> Writer:
    """Write every face as a picture into `folder`."""
    return _pixel_writer(max_pixels, PictureFolder(folder, photos).write_crops)


def named_copy_writer(folder: Path, photos: list[Path], max_pixels: int = DEFAULT_MAX_PIXELS) -> Writer:
    """Write copies of photos with the names embedded into `folder`."""
    pictures = PictureFolder(folder, photos)

    def write(record: PhotoRecord) -> list[Path]:
        photo, faces = record.result.path, record.result.faces
        assert faces is not None
        assert record.size_wh is not None
        target = pictures.place_of_copy(photo)
        is_written = write_named_copy(photo, target, record.size_wh, faces, max_pixels=max_pixels)
        return [target] if is_written else []

    return write


def _pixel_writer(max_pixels: int, write: Callable[[PhotoResult], list[Path]]) -> Writer:
    """A writer with a photo's pixels; they and the copies made of them are counted until they are gone."""

    def write_from_pixels(record: PhotoRecord) -> list[Path]:
        path = record.result.path
        with PhotoMemory(printable(path), allowed_bytes(max_pixels)) as memory:
            rgb = read_reduced(path, None, max_pixels=max_pixels, memory=memory).rgb
            memory.take(min(_COPIES * rgb.nbytes, memory.limit_bytes))
            return write(replace(record.result, photo=rgb))

    return write_from_pixels


def write_photo_sidecar(record: PhotoRecord) -> list[Path]:
    """Write the named faces as an XMP sidecar beside the photo."""
    return _write_sidecar(record, tags=False)


def write_tagged_sidecar(record: PhotoRecord) -> list[Path]:
    """Write the named faces, and their names as keywords, as an XMP sidecar beside the photo."""
    return _write_sidecar(record, tags=True)


def _write_sidecar(record: PhotoRecord, *, tags: bool) -> list[Path]:
    assert record.result.faces is not None
    assert record.size_wh is not None
    sidecar = write_sidecar(record.result.path, record.size_wh, record.result.faces, tags=tags)
    return [] if sidecar is None else [sidecar]


def write_outputs(job: Job, kind: str, write: Writer) -> int:
    """Write the files of one kind for the photos with faces whose result has changed since; in threads.

    Args:
        job: The results.
        kind: Stable name, remembered with the hash of the result that each file shows.
        write: Writes the files of a photo, below the folder of their kind.

    Returns:
        For how many photos that failed. Why is logged; the next run tries again.
    """
    before = job.outputs.of_kind(kind)
    claims = Counter(name for files in before.values() for name in files.names)
    due = [record for record in job.records() if _is_due(job, kind, record, before.get(record.id))]
    failed = 0
    with ThreadPoolExecutor(compute_threads()) as pool:
        for at in range(0, len(due), _CHUNK):
            chunk = due[at : at + _CHUNK]
            photos = [job.remembered_photo(record.id) for record in chunk]
            written = dict(pool.map(partial(_written, job.folder, kind, write), chunk, photos))
            outputs = {id: files for id, files in written.items() if files is not None}
            claims.update(name for files in outputs.values() for name in files.names)
            kept = {id for id in outputs if _has_replaced(job, kind, before.get(id), claims)}
            job.outputs.remember(kind, {id: outputs[id] for id in kept})
            failed += len(written) - len(kept)
    return failed


def _has_replaced(job: Job, kind: str, old: OutputFiles | None, claims: Counter[str]) -> bool:
    """Remove a photo's outdated pictures; False: one can't be removed, which is logged.

    Args:
        job: The results.
        kind: Of the files.
        old: The photo's files of before.
        claims: How many photos have a file of this name, before and now: one may have the file of another.
    """
    if old is None or kind not in PICTURE_KINDS:
        return True
    claims.subtract(old.names)
    try:
        remove_pictures(job.folder, kind, [name for name in old.names if not claims[name]])
    except FacepipeError as error:
        _log.warning("%s", error)
        return False
    return True


def _is_due(job: Job, kind: str, record: PhotoRecord, files: OutputFiles | None) -> bool:
    if record.result.faces is None:
        return False
    if files is None:
        return len(record.result.faces) > 0
    folder = output_folder(job.folder, kind, record.result.path)
    is_there = all((folder / name).exists() for name in files.names)
    return files.source_hash != source_hash(record) or not is_there


def source_hash(record: PhotoRecord) -> str:
    """Identify the result of a photo: another hash after every change of it."""
    return hashlib.sha256(to_json(record.result).encode()).hexdigest()


def _written(
    job_folder: Path, kind: str, write: Writer, record: PhotoRecord, photo: Remembered
) -> tuple[int, OutputFiles | None]:
    """Write the files of a photo; None where that failed, or the photo is another by now: it is logged."""
    try:
        require_unchanged(photo)
        folder = output_folder(job_folder, kind, record.result.path)
        names = tuple(file.relative_to(folder).as_posix() for file in write(record))
        return record.id, OutputFiles(source_hash(record), names)
    except FacepipeError as error:
        _log.warning("%s", error)
        return record.id, None
