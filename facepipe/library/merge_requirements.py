"""Which jobs can become one: what is required of them and of the place of the new one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.job_schema import NOT_OF_ANALYSIS
from facepipe.batch.naming import options_of
from facepipe.batch.output_files import PICTURE_KINDS
from facepipe.batch.shards import Shard
from facepipe.core.errors import OutputError, UsageError
from facepipe.gallery.address import GalleryAddress
from facepipe.library.storage import LibraryTables, StepState
from facepipe.pipeline import NamingOptions

_JOB_SHARE = 2
"""Room for the job file, a report with its pictures as base64, and records, in sizes of the job files."""
_MB = 1_000_000


def require_new_folder(folders: Sequence[Path], out: Path) -> None:
    """Require that each job is given once, and that there is nothing at `out` but perhaps an empty folder.

    Raises:
        UsageError: It is not so.
    """
    real = [os.path.realpath(folder) for folder in folders]
    for folder in folders:
        if real.count(os.path.realpath(folder)) > 1:
            raise UsageError(f"{folder}: is given twice; name each job once")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: is there already; choose a new folder for --out")


def require_finished(jobs: Iterable[Job]) -> None:
    """Require that no killed process has left something to be done in a job.

    Raises:
        UsageError: One has; the message says which command finishes it.
    """
    for job in jobs:
        if job.unfinished_move() is not None:
            raise UsageError(
                f"{job.folder}: a photo's move was killed halfway; run its `facepipe sort` again"
            )
        if job.writes.unfinished() or job.writes.written():
            raise UsageError(
                f"{job.folder}: writing names into photos was killed; `facepipe batch` with "
                "this --out finishes that"
            )
        if LibraryTables(job).steps(1, [StepState.DOING, StepState.UNDOING]):
            raise UsageError(
                f"{job.folder}: a change of people was killed; `facepipe review` of it finishes that"
            )


def common_settings(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what the analysis depended on.

    Raises:
        UsageError: The jobs differ in it, or one has not begun.
    """
    first, *others = [_analysis_settings(job) for job in jobs]
    for job, settings in zip(jobs, (first, *others), strict=True):
        if not settings:
            raise UsageError(f"{job.folder}: its batch has not begun; run it first")
        different = [key for key in sorted(first | settings) if first.get(key) != settings.get(key)]
        if different:
            told = ", ".join(f"{key} {settings.get(key)} ({first.get(key)})" for key in different)
            raise UsageError(
                f"{job.folder}: its photos were analyzed with other settings than those of {jobs[0].folder}: "
                f"{told}; run one of the batches with the settings of the other and --again"
            )
    return first


def _analysis_settings(job: Job) -> dict[str, Any]:
    rows = job.file.database.execute("SELECT key, value FROM settings")
    return {key: json.loads(value) for key, value in rows if key not in NOT_OF_ANALYSIS}


def common_naming(
    jobs: Sequence[Job], gallery: GalleryAddress | None
) -> tuple[GalleryAddress, NamingOptions]:
    """Return the gallery that names the faces, and how.

    Raises:
        UsageError: The jobs differ, and which of them holds is not said.
    """
    known = [(job, naming) for job in jobs for naming in [job.naming()] if naming is not None]
    if not known and gallery is None:
        raise UsageError(f"{jobs[0].folder}: remembers no gallery; name one with --gallery")
    if not known:
        return gallery or Path(), NamingOptions()
    first, (address, options) = known[0]
    for job, (other, other_options) in known:
        if gallery is None and not is_same_gallery(other, address):
            raise UsageError(
                f"{job.folder}: its faces were named by {other}, those of {first.folder} by {address}; say "
                "with --gallery which one names them all"
            )
        if other_options != options:
            raise UsageError(
                f"{job.folder}: its faces were named otherwise ({json.dumps(other_options)}) than those of "
                f"{first.folder} ({json.dumps(options)}); run one of them with the options of the other"
            )
    return gallery or address, options_of(options)


def is_same_gallery(one: GalleryAddress, other: GalleryAddress) -> bool:
    """Return whether two paths lead to one gallery, or two URLs are the same but for a password."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one == other or os.path.realpath(one) == os.path.realpath(other)
    return _place(one) == _place(other)


def _place(address: GalleryAddress) -> object:
    if isinstance(address, Path):
        return address
    known = address.without_password()
    return known.conninfo, known.schema


def require_room(folders: Sequence[Path], out: Path) -> None:
    """Require room for a job that holds all of these.

    Raises:
        OutputError: There is not enough; the message says how much is needed.
    """
    jobs = sum((folder / JOB_FILE).stat().st_size for folder in folders)
    pictures = sum(file.stat().st_size for folder in folders for file in _picture_files(folder))
    needed = _JOB_SHARE * jobs + pictures
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{out}: needs {needed / _MB:,.0f} MB, and {free / _MB:,.0f} MB are free there; make room, or "
            "choose a place on another disk"
        )


def _picture_files(folder: Path) -> Iterator[Path]:
    for kind in PICTURE_KINDS:
        yield from (file for file in (folder / kind).rglob("*") if file.is_file())


def shards_of(jobs: Sequence[Job]) -> list[Shard | None]:
    """Return which share of photos each job has; None: it is no share."""
    return [job.shard for job in jobs]


def is_one_whole(shards: Sequence[Shard | None]) -> bool:
    """Return whether jobs are shares of the same photos: as many shares, and none twice."""
    known = [shard for shard in shards if shard is not None]
    return len(known) == len(shards) == len(set(known)) and len({shard.count for shard in known}) == 1


def missing_shards(shards: Sequence[Shard | None]) -> tuple[Shard, ...]:
    """Return the shares of the whole that are not among these; none where these are no shares of one."""
    known = {shard for shard in shards if shard is not None}
    if not is_one_whole(shards):
        return ()
    (count,) = {shard.count for shard in known}
    every = (Shard(number, count) for number in range(1, count + 1))
    return tuple(shard for shard in every if shard not in known)
