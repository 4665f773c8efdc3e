"""Photos and people leave a batch's folder: rows, pictures, records, report, and regions in sidecars.

Files are changed first and rows last: a command that was killed is repeated, and finds what is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from facepipe.batch.job import Job
from facepipe.batch.models import OutputFiles, PhotoRecord
from facepipe.batch.output_files import EMBEDDED_KIND, PICTURE_KINDS, SIDECAR_KINDS, remove_pictures
from facepipe.batch.page import REPORT_FILE, write_report
from facepipe.batch.photo_writing import finish_photo_writes, write_into_photos
from facepipe.batch.planning import is_replaced
from facepipe.batch.results import source_hash, write_photo_sidecar, write_records
from facepipe.core.errors import FacepipeError, OutputError
from facepipe.core.faces import Faces
from facepipe.xmp.sidecars import sidecar_path, write_sidecar

_NOBODY = Faces.empty().with_matches(())


def forget_person(job: Job, names: Collection[str]) -> int:
    """Erase the results of every photo in which somebody of these names is, or may be.

    The photos wait to be analyzed again by the next run. Regions of these
    names leave the sidecars that the job has written; where the photo was
    replaced since its analysis, all regions that facepipe wrote do.

    Returns:
        How many photos.

    Raises:
        OutputError: A file can't be changed or removed; no row is changed.
        PhotoError: A photo with a sidecar can't be read; likewise.
    """
    finish_photo_writes(job, None)
    records = [record for record in job.analyzed() if _is_seen(record, names)]
    with _results_written_anew(job):
        _clean(job, records, lambda record: _others(record, names))
        job.erase([record.id for record in records], forget_photos=False, names=names)
    return len(records)


def forget_photo(job: Job, photo: Path, photo_sha256: str | None) -> int:
    """Erase a photo, found by path or content, and its results; answers how many times it was there.

    Raises:
        OutputError: As `forget_person`.
        PhotoError: As `forget_person`.
    """
    paths = {os.path.abspath(photo), os.path.realpath(photo)}
    ids = [
        task.id
        for task in job.remembered()
        if str(task.path) in paths or (photo_sha256 is not None and job.faces.sha256(task.id) == photo_sha256)
    ]
    with _results_written_anew(job):
        _forget_photos(job, ids)
    return len(ids)


def forget_left_out(job: Job) -> int:
    """Erase all photos that are not among those of the command, and outputs of results of before.

    Returns:
        How many photos.

    Raises:
        OutputError: As `forget_person`.
        PhotoError: As `forget_person`.
    """
    ids = [task.id for task in job.remembered(left_out=True)]
    _forget_photos(job, ids)
    _bring_outputs_up_to_date(job)
    return len(ids)


def _forget_photos(job: Job, ids: Collection[int]) -> None:
    """Erase photos; facepipe's regions leave the sidecars of photos that are gone."""
    chosen = set(ids)
    records = [record for record in job.analyzed() if record.id in chosen]
    _clean(job, records, lambda record: None if os.path.lexists(record.result.path) else _NOBODY)
    job.erase(ids, forget_photos=True)


def _clean(
    job: Job, records: Iterable[PhotoRecord], faces_to_stay: Callable[[PhotoRecord], Faces | None]
) -> None:
    """Remove the pictures of photos, and leave in sidecars and photos only these faces; None: all.

    Those of a photo that was replaced since its analysis keep none: the faces are not in it.
    """
    named: list[PhotoRecord] = []
    for record in records:
        for kind, files in job.outputs.of_photo(record.id).items():
            if kind in PICTURE_KINDS:
                remove_pictures(job.folder, kind, files.names)
                continue
            faces, photo = faces_to_stay(record), record.result.path
            if faces is None or not files.names:
                continue
            if is_replaced(job.remembered_photo(record.id)):
                faces = _NOBODY
            if os.path.exists(sidecar_path(photo)):
                assert record.size_wh is not None
                write_sidecar(photo, record.size_wh, faces)
            if kind == EMBEDDED_KIND and os.path.exists(photo):
                named.append(replace(record, result=replace(record.result, faces=faces)))
    if named:
        write_into_photos(job, named, on_failure=_raise)


def _bring_outputs_up_to_date(job: Job) -> None:
    """Remove pictures that show names of before, which may not be made anew, and rewrite such sidecars."""
    for record in job.records():
        for kind, files in job.outputs.of_photo(record.id).items():
            if files.source_hash == source_hash(record):
                continue
            if kind in PICTURE_KINDS:
                remove_pictures(job.folder, kind, files.names)
                job.outputs.forget(kind, record.id)
            elif kind == EMBEDDED_KIND and record.result.faces is not None:
                write_into_photos(job, [record], on_failure=_raise)
            elif kind in SIDECAR_KINDS and files.names and record.result.faces is not None:
                write_photo_sidecar(record)
                job.outputs.remember(kind, {record.id: OutputFiles(source_hash(record), files.names)})


def _raise(error: FacepipeError) -> None:
    raise error


@contextmanager
def _results_written_anew(job: Job) -> Iterator[None]:
    """Remove records and report, and write them again at the end: where this is killed they are not there."""
    there = [name for name in ("results.jsonl", "faces.csv", REPORT_FILE) if (job.folder / name).exists()]
    for name in there:
        try:
            (job.folder / name).unlink()
        except OSError as error:
            raise OutputError(f"{job.folder / name}: can't be removed ({error.strerror})") from error
    try:
        yield
    finally:
        if "results.jsonl" in there:
            write_records(job, "results.jsonl")
        if "faces.csv" in there:
            write_records(job, "faces.csv")
        report = job.outputs.report_options()
        if REPORT_FILE in there and report is not None:
            write_report(job, report)


def _is_seen(record: PhotoRecord, names: Collection[str]) -> bool:
    assert record.result.faces is not None
    return any(
        match.name in names or match.candidate_name in names for match in record.result.faces.matches or ()
    )


def _others(record: PhotoRecord, names: Collection[str]) -> Faces:
    faces = record.result.faces
    assert faces is not None
    assert faces.matches is not None
    return faces.select([row for row, match in enumerate(faces.matches) if match.name not in names])
