"""Photos into a folder per person: planned first, then carried out, nothing ever replaced."""

from __future__ import annotations

import filecmp
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from facepipe.batch.job import Job, Record
from facepipe.errors import OutputError, PhotoError
from facepipe.file_names import file_name_of, with_ending
from facepipe.files import atomic_file
from facepipe.images import photo_sha256
from facepipe.outputs import make_folder
from facepipe.pipeline import PhotoResult
from facepipe.xmp import sidecar_path


class Way(Enum):
    """How photos come into the folders."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Placement:
    """One photo into one person's folder; `is_done` where it is there already."""

    source: Path
    target: Path
    is_done: bool


def plan_sorting(job: Job, folder: Path, way: Way) -> Iterator[Placement]:
    """Where the photos of named people belong.

    A photo goes to everybody who is named in it. One that is to be moved goes to the person with the largest
    face. A photo of another content and the same file name gets a number: `IMG_1 (2).jpg`. A photo that is
    gone is compared by the hash that the job has: it may have been moved before.
    """
    taken: dict[Path, Path] = {}
    for record in job.records():
        photo, people = record.result.path, _people(record.result)
        for name in people[:1] if way is Way.MOVE else people:
            target = _free(folder / file_name_of(name) / photo.name, record, job, taken)
            yield Placement(photo, target, is_done=target in taken or os.path.lexists(target))
            if os.path.lexists(photo):
                taken[target] = photo


def require_source(placement: Placement) -> None:
    """Check that there is a photo to be sorted.

    Raises:
        PhotoError: It is gone.
    """
    if not os.path.exists(placement.source):
        raise PhotoError(f"{placement.source}: no such file; run the batch again where the photo is now")


def carry_out(placement: Placement, way: Way) -> None:
    """Copy, link or move one photo, and its sidecar with it.

    Raises:
        PhotoError: The photo is gone.
        OutputError: It can't be done; the message begins with the target's name.
    """
    require_source(placement)
    source, target = placement.source, placement.target
    make_folder(target.parent)
    pairs = [(source, target), (sidecar_path(source), sidecar_path(target))]
    try:
        for old, new in pairs:
            if os.path.exists(old) and not os.path.lexists(new):
                _WAYS[way](old, new)
    except OSError as error:
        raise OutputError(f"{target}: can't {way.value} {source} there ({error.strerror})") from error


def _people(result: PhotoResult) -> list[str]:
    """Who is named in it, the largest face first."""
    if result.faces is None or result.faces.matches is None:
        return []
    by_size = sorted(range(len(result.faces)), key=lambda row: -float(result.faces.sizes_px[row]))  # type: ignore[union-attr]
    names = [result.faces.matches[row].name for row in by_size]
    return list(dict.fromkeys(name for name in names if name is not None))


def _free(target: Path, record: Record, job: Job, taken: dict[Path, Path]) -> Path:
    """The first of the numbered names that is free, or is this photo already."""
    for candidate in _numbered(target):
        other = candidate if os.path.lexists(candidate) else taken.get(candidate)
        if other is None or not os.path.lexists(other) or _is_same(other, record, job):
            return candidate
    raise AssertionError("numbers do not end")


def _numbered(target: Path) -> Iterator[Path]:
    yield target
    for number in itertools.count(2):
        yield target.with_name(with_ending(target.stem, f" ({number}){target.suffix}"))


def _is_same(other: Path, record: Record, job: Job) -> bool:
    """Whether a file has the content of the photo, or had it: a photo that is gone is known by its hash."""
    photo = record.result.path
    try:
        if os.path.exists(photo):
            return os.path.samefile(photo, other) or filecmp.cmp(photo, other, shallow=False)
        return photo_sha256(other) == job.sha256(record.id)
    except (OSError, PhotoError):  # a link that leads nowhere
        return False


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as stream, atomic_file(target) as copy:
        shutil.copyfileobj(stream, copy)
    shutil.copystat(source, target)


def _move(source: Path, target: Path) -> None:
    """On one file system a rename; else a whole copy first, then the source goes."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)
    source.unlink()


_WAYS: dict[Way, Callable[[Path, Path], None]] = {
    Way.COPY: _copy,
    Way.LINK: lambda source, target: target.symlink_to(source),
    Way.MOVE: _move,
}
