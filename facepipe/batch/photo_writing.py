"""Names written into photos themselves, and what knows photos by their content following them.

A photo is replaced by a copy that was verified, in one step. The job remembers the content of both before
that step, so that a killed process is known to have done it or not: `finish_photo_writes`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from facepipe.batch.job import Job
from facepipe.batch.job_writes import PhotoWrite
from facepipe.batch.models import OutputFiles, PhotoRecord
from facepipe.batch.output_files import EMBEDDED_KIND
from facepipe.batch.planning import NO_FILE, file_state, require_content
from facepipe.batch.results import source_hash
from facepipe.core.errors import FacepipeError, OutputError, PhotoError
from facepipe.core.files import sweep_once, sync_folder, temporary_folder
from facepipe.core.processors import compute_threads
from facepipe.gallery import Gallery
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256
from facepipe.xmp.embedding import (
    NotEmbeddableError,
    embedded_copy,
    names_to_write,
    require_embeddable,
)
from facepipe.xmp.exiftool import require_exiftool
from facepipe.xmp.sidecars import write_sidecar

_CHUNK = 16
_LATER_NS = 2_000_000_000
"""The steps of times on FAT file systems."""
_log = logging.getLogger("facepipe")


@dataclass(slots=True)
class _Prepared:
    """What is to become of a photo.

    Attributes:
        records: Of the photo, one for each path.
        names: Files that hold its names afterwards, beside it.
        copy: Verified, to be put in its place; None: it stays as it is.
        write: For the job; None likewise.
        before: The file as it was when it was copied.
        cleanup: Removes what was made for it.
    """

    records: Sequence[PhotoRecord]
    names: tuple[str, ...] = ()
    copy: Path | None = None
    write: PhotoWrite | None = None
    before: os.stat_result | None = None
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def photo(self) -> Path:
        """Path of the photo."""
        return self.records[0].result.path


def write_into_photos(
    job: Job,
    records: Iterable[PhotoRecord] | None = None,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_failure: Callable[[FacepipeError], None] | None = None,
) -> int:
    """Write the names of faces into the photos, and take out those that are no longer theirs.

    A photo whose names have not changed is left alone. One that can't hold names gets a sidecar.

    Args:
        job: Knows the photos; its rows follow their new content.
        records: With the faces to be named; None: those of the job.
        max_pixels: Larger photos are not read.
        on_failure: Called for each photo that can't be written; None: that is logged.

    Returns:
        How many can't be.

    Raises:
        UsageError: exiftool is not installed.
    """
    require_exiftool()
    report = on_failure or (lambda error: _log.warning("%s", error))
    files = job.outputs.of_kind(EMBEDDED_KIND)
    due = [
        record
        for record in (job.records() if records is None else records)
        if record.result.faces is not None and _is_due(job, record, files.get(record.id))
    ]
    groups, failed = list(_by_file(due)), 0
    with ThreadPoolExecutor(compute_threads()) as pool:
        for at in range(0, len(groups), _CHUNK):
            chunk = groups[at : at + _CHUNK]
            contents = [job.faces.sha256(group[0].id) for group in chunk]
            with ExitStack() as cleanup:
                found = list(pool.map(partial(_prepared_or_error, max_pixels=max_pixels), chunk, contents))
                ready = [each for each in found if isinstance(each, _Prepared)]
                for prepared in ready:
                    cleanup.enter_context(prepared.cleanup)
                errors = [each for each in found if isinstance(each, FacepipeError)]
                errors += _put_in_place(job, ready)
            for error in errors:
                report(error)
            failed += len(errors)
    return failed


def _is_due(job: Job, record: PhotoRecord, files: OutputFiles | None) -> bool:
    if files is None:
        return len(record.result.faces or ()) > 0
    is_there = all((record.result.path.parent / name).exists() for name in files.names)
    return files.source_hash != _hash_of(job, record) or not is_there


def _hash_of(job: Job, record: PhotoRecord) -> str:
    """Identifies the faces of a photo and its content: another program may take the names out."""
    return hashlib.sha256(f"{source_hash(record)} {job.faces.sha256(record.id)}".encode()).hexdigest()


def _by_file(records: Iterable[PhotoRecord]) -> Iterator[list[PhotoRecord]]:
    """Bring the records together that are of one file, to which links may lead."""
    groups: dict[str, list[PhotoRecord]] = {}
    for record in records:
        groups.setdefault(os.path.realpath(record.result.path), []).append(record)
    yield from groups.values()


# One photo: in threads


def _prepared_or_error(
    records: Sequence[PhotoRecord], sha256: str | None, max_pixels: int
) -> _Prepared | FacepipeError:
    try:
        return _prepare(records, sha256, max_pixels)
    except FacepipeError as error:
        return error
    except OSError as error:
        photo = records[0].result.path
        return OutputError(f"{photo}: names are not embedded ({error.strerror or error}); make room there")


def _prepare(records: Sequence[PhotoRecord], sha256: str | None, max_pixels: int) -> _Prepared:
    record = records[0]
    photo, faces, size_wh = record.result.path, record.result.faces, record.size_wh
    assert faces is not None
    assert size_wh is not None
    assert sha256 is not None
    target = Path(os.path.realpath(photo, strict=True))
    sweep_once(target.parent)
    try:
        change = names_to_write(photo, size_wh, faces, max_pixels=max_pixels)
        if change is None:
            is_named = any(match.name is not None for match in faces.matches or ())
            return _Prepared(records, (photo.name,) if is_named else ())
        require_embeddable(photo)
    except NotEmbeddableError as error:
        require_content(photo, sha256)
        sidecar = write_sidecar(photo, size_wh, faces, tags=True)
        if sidecar is not None:
            _log.warning("%s; they are in its sidecar", error)
        return _Prepared(records, () if sidecar is None else (sidecar.name,))
    before = os.stat(target)
    _require_replaceable(photo, target, before)
    prepared = _Prepared(records, (photo.name,) if change.is_named else (), before=before)
    try:
        folder = prepared.cleanup.enter_context(temporary_folder(target.parent))
        require_content(photo, sha256)
        prepared.copy = embedded_copy(target, change, folder, max_pixels=max_pixels)
        _make_alike(prepared.copy, target, before)
        _sync(prepared.copy)
        ids = tuple(each.id for each in records)
        new = photo_sha256(prepared.copy)
        prepared.write = PhotoWrite(ids, sha256, new, file_state(prepared.copy))
    except BaseException:
        prepared.cleanup.close()
        raise
    return prepared


def _require_replaceable(photo: Path, target: Path, status: os.stat_result) -> None:
    """Check that nothing is lost where a file takes the place of this one."""
    if status.st_nlink > 1:
        raise OutputError(
            f"{photo}: names are not embedded: the file has {status.st_nlink} names (hard links), and the "
            "others would go on without the change; make a copy of it, or use --xmp"
        )
    if not (stat.S_IMODE(status.st_mode) & stat.S_IWUSR and os.access(target, os.W_OK)):
        raise OutputError(
            f"{photo}: names are not embedded: the file is read-only; make it writable, or use --xmp"
        )
    if not os.access(target.parent, os.W_OK):
        raise OutputError(
            f"{photo}: names are not embedded: its folder is read-only; make it writable, or use --xmp"
        )


def _make_alike(copy: Path, target: Path, status: os.stat_result) -> None:
    """Give a copy the permissions, owner, extended attributes and time of a photo.

    Where it has the same size, its time is later by two seconds: programs that make backups tell by these.
    """
    shutil.copystat(target, copy)
    made = os.stat(copy)
    if sys.platform != "win32" and (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.chown(copy, status.st_uid, status.st_gid)
        except PermissionError as error:
            raise OutputError(
                f"{target}: names are not embedded: the file belongs to another user or group, and would be "
                "yours afterwards; run facepipe as its owner, or use --xmp"
            ) from error
        os.chmod(copy, stat.S_IMODE(status.st_mode))
    later_ns = _LATER_NS if made.st_size == status.st_size else 0
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns + later_ns))


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


# Photos in their places: in the thread of the job


def _put_in_place(job: Job, ready: Sequence[_Prepared]) -> list[FacepipeError]:
    """Replace photos by their copies; the job knows before, and its rows follow. Returns what failed."""
    writes = [prepared.write for prepared in ready if prepared.write is not None]
    if writes:
        with job.file.changing():
            job.writes.begin(writes)
    done, errors = [], []
    for prepared in ready:
        try:
            _replace(prepared)
            done.append(prepared)
        except FacepipeError as error:
            errors.append(error)
    for folder in {Path(os.path.realpath(prepared.photo)).parent for prepared in done if prepared.write}:
        sync_folder(folder)
    _follow(job, writes, [prepared.write for prepared in done if prepared.write is not None])
    for prepared in ready:
        prepared.cleanup.close()  # before this is remembered: what a killed process leaves is found next time
    for prepared in done:
        outputs = {
            record.id: OutputFiles(_hash_of(job, record), _names_beside(prepared, record))
            for record in prepared.records
        }
        job.outputs.remember(EMBEDDED_KIND, outputs)
    return errors


def _names_beside(prepared: _Prepared, record: PhotoRecord) -> tuple[str, ...]:
    """Names of the files as the path of a record has them."""
    name, ending = record.result.path.name, len(prepared.photo.name)
    return tuple(f"{name}{own[ending:]}" for own in prepared.names)


def _replace(prepared: _Prepared) -> None:
    if prepared.copy is None:
        return
    target = Path(os.path.realpath(prepared.photo))
    try:
        if _identity(os.stat(target)) != _identity(prepared.before):
            raise OutputError(
                f"{prepared.photo}: names are not embedded: another program has changed it; run "
                "`facepipe batch` again"
            )
        prepared.copy.replace(target)
    except OSError as error:
        raise OutputError(f"{prepared.photo}: can't be replaced ({error.strerror})") from error


def _identity(status: os.stat_result | None) -> tuple[int, ...]:
    assert status is not None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _follow(job: Job, begun: Iterable[PhotoWrite], written: Sequence[PhotoWrite]) -> None:
    """Bring the rows of photos up to date that were replaced, in one transaction; the others stay."""
    done = {write.photo_ids for write in written}
    try:
        with job.file.changing():
            for write in written:
                job.faces.note_written(write.photo_ids, write.sha256_before, write.sha256)
                job.writes.end(write)
            for write in begun:
                if write.photo_ids not in done:
                    job.writes.cancel(write)
    except BaseException:
        job.decisions.read()
        raise


def finish_photo_writes(job: Job, gallery: Gallery | None) -> None:
    """Bring rows up to date of photos that a killed process has replaced, and tell the gallery.

    Args:
        job: Knows the photos.
        gallery: Whose templates are known by the content of their photos; None: it is told later.
    """
    unfinished = job.writes.unfinished()
    if unfinished:
        _finish_unfinished(job, unfinished)
    written = job.writes.written()
    if written and gallery is not None:
        gallery.change_photos(_last_contents(job, written))
        with job.file.changing():
            job.writes.forget_written()


def _finish_unfinished(job: Job, unfinished: Sequence[PhotoWrite]) -> None:
    """Find out which photos were replaced. Those that can't be read now are left for another time."""
    paths = {task.id: task.path for task in job.remembered()}
    known = [write for write in unfinished if write.photo_ids[0] in paths]
    contents = {write.photo_ids: _content(paths[write.photo_ids[0]]) for write in known}
    absent = [write for write in known if contents[write.photo_ids] is None]
    replaced = [write for write in known if contents[write.photo_ids] == write.sha256]
    _follow(job, [write for write in unfinished if write not in absent], replaced)
    for write in known:
        sweep_once(Path(os.path.realpath(paths[write.photo_ids[0]])).parent)


def _last_contents(job: Job, written: Iterable[PhotoWrite]) -> dict[str, str]:
    """By content of which no photo is any more, the content that such photos have now."""
    later = {write.sha256_before: write.sha256 for write in written}
    last = {}
    for before in later:
        now, seen = before, {before}
        while (following := later.get(now)) is not None and following not in seen:
            now = following
            seen.add(now)
        if now != before and not job.faces.has_photo(before):
            last[before] = now
    return last


def _content(photo: Path) -> str | None:
    """Content hash of a file; None where it can't be read now."""
    if file_state(photo) == NO_FILE:
        return None
    try:
        return photo_sha256(photo)
    except PhotoError:
        return None
