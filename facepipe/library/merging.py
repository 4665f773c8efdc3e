"""One job of several: of the shares of several machines, or of batches of several folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.job import Job
from facepipe.batch.job_schema import CHECKED_COLUMNS, PANORAMAS_DUE, is_noted, note
from facepipe.batch.models import Counts
from facepipe.batch.naming import Naming, options_to_dict
from facepipe.batch.output_files import PICTURE_KINDS, names_of, names_to_text, picture_folder
from facepipe.batch.results import ResultOptions, write_results
from facepipe.batch.seal import SEALED_COLUMNS
from facepipe.batch.shards import Shard
from facepipe.core.errors import OutputError, unwritable
from facepipe.core.files import make_private_folder, sync_folder, temporary_folder
from facepipe.core.paths import is_inside
from facepipe.gallery import Gallery
from facepipe.gallery.address import GalleryAddress
from facepipe.library.library import Library, open_gallery
from facepipe.library.merge_requirements import (
    common_naming,
    common_settings,
    is_one_whole,
    is_same_gallery,
    missing_shards,
    require_finished,
    require_new_folder,
    require_room,
    shards_of,
)
from facepipe.library.storage import MAX_STEPS, LibraryTables, PersonDisplay
from facepipe.pipeline import NamingOptions

_PHOTO_COLUMNS = tuple(CHECKED_COLUMNS["photos"].split(", ")[1:])
"""All but the id, which is given anew."""
_STATE_RANKS = {"waiting": 0, "failed": 1, "done": 2}
_CHUNK = 512
"""Photos in a transaction."""


class _Photo(NamedTuple):
    """A photo of one of the jobs. Of several with the same path the one of the highest rank is taken.

    Attributes:
        rank: Whether it is of the last command, how far it is, and when the file and a decision were made.
        first_job: The first job that has this path among the photos of its last command.
        place: There.
        job: Whose row it is.
        id: Of the row.
    """

    rank: tuple[bool, int, int, str]
    first_job: int
    place: int
    job: int
    id: int

    @property
    def is_left_out(self) -> bool:
        """Whether it is not among the photos of the last command."""
        return not self.rank[0]


ShowProgress = Callable[[Sequence[_Photo]], Iterable[_Photo]]
"""Yields what it gets, and shows how far that is."""


@dataclass(frozen=True, slots=True)
class MergeSummary:
    """What came of it.

    Attributes:
        counts: Photos and faces of the new job.
        decisions: How many decisions of people it holds.
        missing: Shares of the photos that none of the jobs has; empty where these are no shares of one whole.
        unwritten: How many files of results could not be written; why is logged.
    """

    counts: Counts
    decisions: int
    missing: tuple[Shard, ...]
    unwritten: int


def merge_jobs(
    folders: Sequence[Path],
    out: Path,
    gallery: GalleryAddress | None = None,
    *,
    secret: bytes | None = None,
    show: ShowProgress = lambda photos: photos,
) -> MergeSummary:
    """Make one job of several, with the results that one batch gives over all their photos.

    The jobs stay as they are. The new one appears when it is complete, with records and report. Shares of one
    whole are put in the order that one batch has; photos of other jobs follow each other, job by job. A path
    that several jobs hold is taken once: analyzed rather than failed or waiting, and the newer file. Of
    decisions about one face the newest holds. Faces that the gallery would name otherwise now are named
    again, and unknown faces are grouped anew over all photos.

    Args:
        folders: Of the jobs, their --out.
        out: Of the new one; must not exist, or be empty.
        gallery: That names the faces; None: that of the jobs.
        secret: The key of jobs and gallery, where they are encrypted; None: that of the environment.
        show: Shows progress.

    Raises:
        UsageError: A folder holds no job or is given twice, the jobs were made with different settings, or
            `out` is not empty.
        OutputError: A job is damaged or in use, or there is not enough room.
        GalleryError: The gallery does not fit the jobs, or the key is wrong.
    """
    require_new_folder(folders, out)
    with ExitStack() as stack:
        jobs = [stack.enter_context(Job(folder, secret=secret)) for folder in folders]
        require_finished(jobs)
        settings, (address, options) = common_settings(jobs), common_naming(jobs, gallery)
        opened = stack.enter_context(open_gallery(address, jobs[0], secret))
        require_room(folders, out)
        make_private_folder(out.parent)
        new = stack.enter_context(temporary_folder(out.parent))
        with Job(new, create=True, secret=secret) as job:
            if opened.info().encrypted or any(each.file.seal.is_encrypting for each in jobs):
                job.require_encryption()
            job.require_settings(settings, again=False)
            job.remember_naming(address, options_to_dict(options))
            _copy_photos(jobs, job, show)
            decisions = _copy_decisions(jobs, job, address)
        if decisions:
            with Library.open(new, address, secret=secret) as library:
                library.name_everything()  # confirmed faces become templates of the gallery
        summary = _write(new, opened, options, jobs, secret)
        _publish(new, out)
    return summary


def _write(
    folder: Path, gallery: Gallery, options: NamingOptions, jobs: Sequence[Job], secret: bytes | None
) -> MergeSummary:
    reports = [job.outputs.report_options() for job in jobs]
    wanted = ResultOptions(paths=all(report is None or report.paths for report in reports))
    naming = Naming(gallery, options)
    with Job(folder, secret=secret) as job:
        job.faces.name_again(naming, naming.key, gallery.encoder.dimensions)
        unwritten = write_results(job, naming.group_within_l2, wanted)
        return MergeSummary(job.counts(), len(job.decisions), missing_shards(shards_of(jobs)), unwritten)


def _publish(folder: Path, out: Path) -> None:
    try:
        if out.exists():
            out.rmdir()
        folder.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise OutputError(f"{out}: can't be made ({error.strerror}); choose another --out") from error


# Photos


def _copy_photos(jobs: Sequence[Job], target: Job, show: ShowProgress) -> None:
    """Copy rows, pictures and files of the photos, in transactions of some hundred."""
    photos, places = _chosen(jobs), count()
    if any(is_noted(job.file.database, PANORAMAS_DUE) for job in jobs):
        with target.file.changing() as database:
            note(database, PANORAMAS_DUE)
    root = _common_folder([job for job in jobs if job.photos()])
    shown = iter(show(photos))
    while chunk := list(islice(shown, _CHUNK)):
        with target.file.changing():
            for photo in chunk:
                _copy_photo(jobs[photo.job], photo, target, None if photo.is_left_out else next(places), root)


def _chosen(jobs: Sequence[Job]) -> list[_Photo]:
    """Each path once, in the order of the new job; photos that are not of the last commands at the end."""
    found: dict[bytes, _Photo] = {}
    for number, job in enumerate(jobs):
        for path, photo in _photos_of(job, number):
            before = found.get(path)
            if before is None or (before.is_left_out and not photo.is_left_out):
                found[path] = photo
            elif photo.rank > before.rank:
                found[path] = photo._replace(first_job=before.first_job, place=before.place)
    if is_one_whole(shards_of(jobs)):
        return sorted(found.values(), key=lambda photo: (photo.is_left_out, photo.place, photo.first_job))
    return sorted(found.values(), key=lambda photo: (photo.is_left_out, photo.first_job, photo.place))


def _photos_of(job: Job, number: int) -> Iterator[tuple[bytes, _Photo]]:
    decided: dict[str, str] = {}
    for stored in job.decisions:
        sha256, decided_at = stored.decision.photo_sha256, stored.decision.decided_at
        decided[sha256] = max(decided.get(sha256, ""), decided_at)
    opened = job.file.seal.open
    rows = job.file.database.execute(
        "SELECT id, path, place, state, mtime_ns, sha256 FROM photos ORDER BY id"
    )
    for id, path, place, state, mtime_ns, sha256 in rows:
        decided_at = decided.get(opened("sha256", sha256), "") if decided else ""
        rank = place is not None, _STATE_RANKS[state], mtime_ns, decided_at
        yield opened("path", path), _Photo(rank, number, place or 0, number, id)


def _copy_photo(source: Job, photo: _Photo, target: Job, place: int | None, root: Path | None) -> None:
    query = f"SELECT {', '.join(_PHOTO_COLUMNS)} FROM photos WHERE id = ?"
    row = source.file.database.execute(query, (photo.id,)).fetchone()
    values = _resealed("photos", dict(zip(_PHOTO_COLUMNS, row, strict=True)), source, target)
    id = _insert(target, "photos", values | {"place": place})
    query = "SELECT face, webp FROM pictures WHERE photo_id = ?"
    for face, webp in source.file.database.execute(query, (photo.id,)):
        picture = _resealed("pictures", {"webp": webp}, source, target)
        _insert(target, "pictures", {"photo_id": id, "face": face} | picture)
    query = "SELECT kind, made_of, files FROM products WHERE photo_id = ?"
    for kind, made_of, files in source.file.database.execute(query, (photo.id,)):
        names = names_of(source.file.seal.open("files", files))
        if kind in PICTURE_KINDS and place is not None and root is not None:
            path = source.file.seal.open_path(row[_PHOTO_COLUMNS.index("path")])
            copied = _copy_pictures(source.folder, target.folder, kind, names, path.parent.relative_to(root))
        else:
            copied = None if kind in PICTURE_KINDS else names
        if copied is not None:
            sealed = target.file.seal.seal("files", names_to_text(copied))
            product = {"kind": kind, "photo_id": id, "made_of": made_of, "files": sealed}
            _insert(target, "products", product)


def _common_folder(jobs: Sequence[Job]) -> Path | None:
    """Return the folder that pictures are laid out below; None: there is none, as on several drives."""
    parents = {os.path.abspath(photo.parent) for job in jobs for photo in job.photos()}
    try:
        return Path(os.path.commonpath(parents)) if parents else None
    except ValueError:
        return None


def _copy_pictures(
    source: Path, target: Path, kind: str, names: Iterable[str], below: Path
) -> tuple[str, ...] | None:
    """Copy picture files to where one batch over all photos has them; None: one is not there any more."""
    copied = []
    for name in names:
        file, new_name = picture_folder(source, kind) / name, (below / Path(name).name).as_posix()
        if not is_inside(file, source / kind) or not file.is_file():
            return None
        new = picture_folder(target, kind) / new_name
        try:
            make_private_folder(new.parent)
            shutil.copyfile(file, new)
        except OSError as error:
            raise unwritable(new, error) from error
        copied.append(new_name)
    return tuple(copied)


def _resealed(table: str, row: Mapping[str, Any], source: Job, target: Job) -> dict[str, Any]:
    """Return a row's values as the other job stores them."""
    sealed, opened, seal = SEALED_COLUMNS[table], source.file.seal.open, target.file.seal.seal
    return {key: seal(key, opened(key, value)) if key in sealed else value for key, value in row.items()}


def _insert(job: Job, table: str, row: Mapping[str, Any]) -> int:
    marks = ", ".join("?" * len(row))
    statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"
    id = job.file.database.execute(statement, tuple(row.values())).lastrowid
    assert id is not None
    return id


# What people decided


def _copy_decisions(jobs: Sequence[Job], target: Job, address: GalleryAddress) -> int:
    """Copy decisions, how people are shown, and the steps and templates of jobs with the same gallery.

    Returns:
        How many decisions.
    """
    newest: dict[str, StoredDecision] = {}
    for stored in (stored for job in jobs for stored in job.decisions):
        before = newest.get(stored.decision.face_id)
        if before is None or before.decision.decided_at < stored.decision.decided_at:
            newest[stored.decision.face_id] = stored
    with target.file.changing():
        for stored in newest.values():
            target.decisions.put(stored)
        _copy_tables(jobs, target, [job for job in jobs if _has_gallery(job, address)])
        if newest:
            target.faces.leave_for_naming([task.id for task in target.remembered()])
    return len(newest)


def _copy_tables(jobs: Sequence[Job], target: Job, same_gallery: Sequence[Job]) -> None:
    tables = LibraryTables(target)
    displays: dict[str, PersonDisplay] = {}
    for job in reversed(jobs):  # the first one's holds
        displays |= LibraryTables(job).people()
    for name, display in displays.items():
        tables.show_person(name, display)
    templates: dict[str, int] = {}
    for job in reversed(same_gallery):
        templates |= LibraryTables(job).templates()
    tables.set_templates(templates, ())
    columns = ("label", "changes", "made_at", "state")
    query = f"SELECT {', '.join(columns)} FROM steps ORDER BY id"
    steps = [
        _resealed("steps", dict(zip(columns, row, strict=True)), job, target)
        for job in same_gallery
        for row in job.file.database.execute(query)
    ]
    for step in sorted(steps, key=lambda step: str(step["made_at"]))[-MAX_STEPS:]:
        _insert(target, "steps", step)


def _has_gallery(job: Job, address: GalleryAddress) -> bool:
    known = job.naming()
    return known is not None and is_same_gallery(known[0], address)
