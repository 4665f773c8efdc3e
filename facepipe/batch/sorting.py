"""Photos into a folder per person: planned first, then carried out, nothing ever replaced."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from facepipe.errors import OutputError
from facepipe.files import atomic_file
from facepipe.outputs import make_folder
from facepipe.pipeline import PhotoResult
from facepipe.xmp import sidecar_path

_LONGEST_NAME = 80
"""Letters of a person's name in a folder's: a name may have 200, which no file system takes."""


class Way(Enum):
    """How photos come into the folders."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Placement:
    """One photo into one person's folder."""

    source: Path
    target: Path


def plan_sorting(results: Iterable[PhotoResult], folder: Path, way: Way) -> Iterator[Placement]:
    """Where photos of named people belong that are not there yet.

    A photo goes to everybody who is named in it. One that is to be moved goes to the person with the largest
    face. A photo of another content and the same file name gets a number: `IMG_1 (2).jpg`.
    """
    names = _FolderNames()
    taken: dict[Path, Path] = {}
    for result in results:
        people = _people(result)
        for name in people[:1] if way is Way.MOVE else people:
            target = _free(folder / names.of(name) / result.path.name, result.path, taken)
            taken[target] = result.path
            if not os.path.lexists(target):
                yield Placement(result.path, target)


def carry_out(placement: Placement, way: Way) -> None:
    """Copy, link or move one photo, and its sidecar with it.

    Raises:
        OutputError: It can't be done; the message begins with the target's name.
    """
    source, target = placement.source, placement.target
    make_folder(target.parent)
    pairs = [(source, target), (sidecar_path(source), sidecar_path(target))]
    try:
        for old, new in pairs:
            if old.exists() and not os.path.lexists(new):
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


class _FolderNames:
    """One folder a person: names that no folder can have are changed, and kept apart."""

    def __init__(self) -> None:
        self._by_name: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._by_name:
            safe = re.sub(r"[^\w .-]", "_", name)[:_LONGEST_NAME].strip(" .") or "_"
            used = {folder.casefold() for folder in self._by_name.values()}
            self._by_name[name] = next(folder for folder in _numbered(safe) if folder.casefold() not in used)
        return self._by_name[name]


def _free(target: Path, source: Path, taken: dict[Path, Path]) -> Path:
    """The first of the numbered names that is free, or is this photo already."""
    for stem in _numbered(target.stem):
        candidate = target.with_name(f"{stem}{target.suffix}")
        other = taken.get(candidate)
        if other is None and os.path.lexists(candidate):
            other = candidate
        if other is None or _is_same(other, source):
            return candidate
    raise AssertionError("numbers do not end")


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name} ({number})"
        number += 1


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:  # a link that leads nowhere, a photo that is gone
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
