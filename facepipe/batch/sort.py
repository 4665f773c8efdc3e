"""Transfer of photos into a folder per person: planned first, and nothing is ever replaced."""

from __future__ import annotations

import filecmp
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from facepipe.batch.job import Job
from facepipe.batch.models import PhotoRecord
from facepipe.batch.planning import Remembered, require_unchanged
from facepipe.core.errors import OutputError, PhotoError
from facepipe.core.file_names import file_name_of, with_ending
from facepipe.core.files import atomic_path, sweep_once, sync_folder
from facepipe.core.paths import is_inside
from facepipe.images.reading import photo_sha256
from facepipe.pipeline import PhotoResult
from facepipe.reports.pictures import make_folder
from facepipe.xmp.sidecars import sidecar_path


class TransferMode(Enum):
    """How photos come into the folders."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Placement:
    """One photo into one person's folder.

    Attributes:
        source: The photo.
        target: Where it belongs.
        is_done: Whether it is there already.
        analyzed: The photo as it was analyzed; None: a move that was killed, which only goes on.
    """

    source: Path
    target: Path
    is_done: bool
    analyzed: Remembered | None = None


def plan_sorting(job: Job, folder: Path, mode: TransferMode) -> Iterator[Placement]:
    """Where the photos of named people belong.

    A photo goes to everybody who is named in it. One that is to be moved goes to the person with the largest
    face. A photo of another content and the same file name gets a number: `IMG_1 (2).jpg`. A photo that is
    gone is compared by the hash that the job has: it may have been moved before.
    """
    taken: dict[Path, Path] = {}
    for record in job.records():
        photo, people = record.result.path, _people(record.result)
        for name in people[:1] if mode is TransferMode.MOVE else people:
            sweep_once(folder / file_name_of(name))
            target = _free(folder / file_name_of(name) / photo.name, record, job, taken)
            is_done = target in taken or os.path.lexists(target)
            yield Placement(photo, target, is_done, job.remembered_photo(record.id))
            if os.path.lexists(photo):
                taken[target] = photo


def require_source(placement: Placement) -> None:
    """Check that there is a photo to be sorted, the one that was analyzed.

    Raises:
        PhotoError: It is gone, or another one by now.
    """
    if not os.path.exists(placement.source):
        raise PhotoError(f"{placement.source}: no such file; run the batch again where the photo is now")
    if placement.analyzed is not None:
        require_unchanged(placement.analyzed)


def transfer(placement: Placement, mode: TransferMode, job: Job) -> None:
    """Copy, link or move one photo, and its sidecar with it: both or neither.

    Raises:
        PhotoError: The photo is gone, or another one by now.
        OutputError: It can't be done; the message begins with the target's name.
    """
    require_source(placement)
    source, target = placement.source, placement.target
    make_folder(target.parent)
    try:
        if mode is TransferMode.MOVE:
            _move(source, target, job)
        else:
            _put(source, target, _copy if mode is TransferMode.COPY else _link)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{target}: can't {mode.value} {source} there ({reason})") from error


def finish_move(job: Job, folder: Path) -> Placement | None:
    """Finish or undo the move into `folder` in which a process was killed.

    Returns:
        The move, where it was finished.

    Raises:
        OutputError: What it left can't be removed; or it led into another folder: whoever wrote the job file
            may have named any.
    """
    paths = job.unfinished_move()
    if paths is None:
        return None
    source, target = paths
    if not is_inside(target.parent, folder):
        raise OutputError(
            f"{source}: an earlier sort was killed while it moved this photo to {target}: finish that first, "
            f"by sorting into the same folder again"
        )
    try:
        has_arrived = _has_arrived(source, target)
        if has_arrived:
            _remove_moved(source, target)
        elif not os.path.lexists(target) and _is_same_file(sidecar_path(source), sidecar_path(target)):
            sidecar_path(target).unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{target}: the move of {source} can't be finished ({reason})") from error
    job.end_move()
    return Placement(source, target, is_done=True) if has_arrived else None


def _people(result: PhotoResult) -> list[str]:
    """Who is named in it, the largest face first."""
    if result.faces is None or result.faces.matches is None:
        return []
    by_size = sorted(range(len(result.faces)), key=lambda row: -float(result.faces.sizes_px[row]))  # type: ignore[union-attr]
    names = [result.faces.matches[row].name for row in by_size]
    return list(dict.fromkeys(name for name in names if name is not None))


def _free(target: Path, record: PhotoRecord, job: Job, taken: dict[Path, Path]) -> Path:
    """Return the first numbered name that is free for the photo and its sidecar, or is this photo already."""
    sidecar = sidecar_path(record.result.path)
    for candidate in _numbered(target):
        other = candidate if os.path.lexists(candidate) else taken.get(candidate)
        if other is None or not os.path.lexists(other):
            there = sidecar_path(candidate)
            if not os.path.lexists(there) or _is_same_file(sidecar, there):
                return candidate
        elif _is_same(other, record, job):
            return candidate
    raise AssertionError("numbers do not end")


def _numbered(target: Path) -> Iterator[Path]:
    """Yield the name, then names with a number that leave room for that of a sidecar."""
    yield target
    room = sidecar_path(Path("_")).name.removeprefix("_")
    for number in itertools.count(2):
        name = with_ending(target.stem, f" ({number}){target.suffix}{room}")
        yield target.with_name(name.removesuffix(room))


def _is_same(other: Path, record: PhotoRecord, job: Job) -> bool:
    """Whether a file has the content of the photo, or had it: a photo that is gone is known by its hash."""
    photo = record.result.path
    if os.path.exists(photo):
        return _is_same_file(photo, other)
    try:
        return photo_sha256(other) == job.faces.sha256(record.id)
    except (OSError, PhotoError):  # a link that leads nowhere
        return False


def _is_same_file(one: Path, other: Path) -> bool:
    """Return whether two files are one, or have the same content; False where one is missing."""
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


# One photo with its sidecar


def _pair(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return the old and new names of a photo and its sidecar."""
    return [(source, target), (sidecar_path(source), sidecar_path(target))]


def _put(source: Path, target: Path, put: Callable[[Path, Path], None]) -> list[Path]:
    """Put both files there, or neither; the sidecar first, so that no photo is there without it.

    Returns:
        The new files.
    """
    new_files: list[Path] = []
    try:
        for old, new in reversed(_pair(source, target)):
            if os.path.exists(old) and not os.path.lexists(new):  # else a killed process has put it there
                put(old, new)
                new_files.append(new)
    except BaseException:
        _remove(new_files)
        raise
    return new_files


def _move(source: Path, target: Path, job: Job) -> None:
    """Put both files there, then remove the old ones, the photo last; the job knows about it meanwhile."""
    job.begin_move(source, target)
    new_files: list[Path] = []
    try:
        new_files = _put(source, target, _link_or_copy)
        sync_folder(target.parent)
        for old, _ in reversed(_pair(source, target)):
            if os.path.exists(old):
                old.unlink()
    except OSError:
        for old, new in _pair(source, target):
            if os.path.lexists(new) and not os.path.lexists(old):
                _link_or_copy(new, old)
        _remove(new_files)
        job.end_move()
        raise
    job.end_move()


def _remove_moved(source: Path, target: Path) -> None:
    """Remove a photo that has arrived, and its sidecar."""
    for old, new in _pair(source, target):
        if os.path.lexists(old) and _is_same_file(old, new):
            old.unlink()
    with suppress(FileNotFoundError):
        sync_folder(source.parent)


def _has_arrived(source: Path, target: Path) -> bool:
    """Return whether a photo that was being moved is at its new place already."""
    old_place = os.path.join(os.path.realpath(source.parent), source.name)
    if not os.path.exists(target) or os.path.realpath(target) == old_place:
        return False
    return not os.path.lexists(source) or _is_same_file(source, target)


def _remove(files: list[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target, replace=False) as temporary:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(os.path.abspath(source))


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; on another file system a copy. A link is made anew: it may be relative."""
    if source.is_symlink():
        leads_to = os.readlink(source)
        if not os.path.isabs(leads_to):
            leads_to = os.path.relpath(os.path.realpath(source), os.path.realpath(target.parent))
        target.symlink_to(leads_to)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        _copy(source, target)
