"""Aligned face crops, decoded once into a memory-mapped file, and the people in them."""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.training.engine.pixels import cached_pictures
from facepipe.training.recognition.sources import FaceSource

NOBODY = -1
"""Person of a crop without a label."""


class DecodedCrops:
    """The crops of one source: a file of pixels in `cache_folder`, made once and used ever after.

    Attributes:
        key: Changes whenever the source does.
        names: Of the crops.
        people: Labels; empty where unknown.

    Raises:
        DataError, PhotoError: See the source; or it has no faces, or the disk is full.
    """

    def __init__(self, source: FaceSource, cache_folder: Path) -> None:
        self.key = hashlib.sha256("\n".join(source.signatures()).encode()).hexdigest()[:16]
        self._pictures, lines = cached_pictures(
            cache_folder / f"faces-{self.key}.pixels", lambda: _pictures(source), _size_hw
        )
        crops = [_Crop(*line) for line in lines]
        self.names = [crop.name for crop in crops]
        self.people = [crop.person for crop in crops]

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (side, side, 3) of one crop; not to be changed."""
        return self._pictures[index]


class _Crop(NamedTuple):
    """A line of the cache's table of contents."""

    name: str
    person: str
    side_px: int


def _pictures(source: FaceSource) -> Iterator[tuple[UInt8Array, _Crop]]:
    count = 0
    for count, face in enumerate(source.faces(), 1):  # noqa: B007
        yield face.pixels, _Crop(face.name, face.person, face.pixels.shape[0])
    if not count:
        raise DataError(f"{source}: holds no faces to train on")


def _size_hw(line: _Crop) -> tuple[int, int]:
    side = _Crop(*line).side_px  # JSON gives lists
    return side, side


class FaceCrops:
    """The crops of several sources in one row, with numbered people.

    Args:
        sources: At least one; folders of one name are one person in all of them.
        cache_folder: For decoded pixels.
        same_person: Pairs of labels that are one person.

    Attributes:
        parts: One for each source.
        names: Of the crops.
        people: int64 (n,): who each crop shows, counted from 0 in the labels' order; `NOBODY` where unknown.
        people_count: How many people there are.

    Raises:
        DataError, PhotoError: See `DecodedCrops`.
    """

    def __init__(
        self, sources: Sequence[FaceSource], cache_folder: Path, same_person: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.parts = [DecodedCrops(source, cache_folder) for source in sources]
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.names = [name for part in self.parts for name in part.names]
        labels = [person for part in self.parts for person in part.people]
        self.people = number_people(labels, same_person)
        self.people_count = int(self.people.max(initial=NOBODY)) + 1

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (side, side, 3) of one crop; not to be changed."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part].pixels(index - int(self._starts[part]))

    def split(self, held_out_share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices of the crops to train on and of those held out: the names decide, so it never changes."""
        places = np.array([zlib.crc32(name.encode()) / 2**32 for name in self.names])
        held_out = places < held_out_share
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def read_same_person(path: Path) -> list[tuple[str, str]]:
    """Pairs of labels that are one person: the first two columns of a CSV file with a heading.

    Raises:
        DataError: Missing, or a line has fewer than two columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.reader(stream))[1:]
    except OSError as error:
        raise DataError(f"{path}: can't read this list of same people: {error}") from error
    if short := [number for number, line in enumerate(lines, start=2) if len(line) < 2]:
        raise DataError(f"{path}: line {short[0]} does not name two people")
    return [(line[0], line[1]) for line in lines]


def number_people(labels: Sequence[str], same_person: Iterable[tuple[str, str]]) -> npt.NDArray[np.int64]:
    """Numbers from 0 for people, one for all labels of the same person; `NOBODY` for empty labels."""
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        while label in parent:
            label = parent[label]
        return label

    for a, b in same_person:
        if root(a) != root(b):
            parent[root(a)] = root(b)
    merged = [root(label) for label in labels]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(label for label in merged if label))}
    return np.array([numbers.get(label, NOBODY) for label in merged], np.int64)
