"""Aligned face crops as pixels: decoded once into a memory-mapped file, and who they show."""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facepipe.errors import DataError
from facepipe.faces import UInt8Array
from facepipe.files import atomic_file, atomic_write_bytes
from facepipe.images import find_photos, read_image

NOBODY = -1
"""Person of a crop without a label."""


@dataclass(frozen=True, slots=True)
class CropSource:
    """Aligned, square face crops.

    A crop of exactly the network's input size is the alignment's frame itself. A larger one holds the frame
    in its middle 80%, scaled with it; the margin is for shifts and turns.

    Attributes:
        path: A folder of photos, or a tar file of them.
        labelled: Whether the folder a crop lies in says who it shows.
    """

    path: Path
    labelled: bool = False


class _Crop(NamedTuple):
    """A line of the cache's table of contents."""

    name: str
    person: str
    """Empty where unknown."""
    side_px: int


class DecodedCrops:
    """The crops of one source: a file of pixels in `cache_folder`, made once and used ever after.

    Raises:
        DataError: The source is missing, a crop is not square, or the disk is full.
        PhotoError: A crop can't be read.
    """

    def __init__(self, source: CropSource, cache_folder: Path) -> None:
        key = hashlib.sha256("\n".join(_signatures(source)).encode()).hexdigest()[:16]
        self._pixels_path = cache_folder / f"faces-{key}.pixels"
        contents_path = cache_folder / f"faces-{key}.json"
        if not contents_path.is_file():
            _decode_all(source, self._pixels_path, contents_path)
        crops = [_Crop(*line) for line in json.loads(contents_path.read_text(encoding="utf-8"))]
        self.names = [crop.name for crop in crops]
        self.people = [crop.person for crop in crops]
        self._sides = [crop.side_px for crop in crops]
        self._offsets = np.concatenate([[0], np.cumsum([3 * side * side for side in self._sides])])
        self._pixels = np.memmap(self._pixels_path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (side, side, 3) of one crop; not to be changed."""
        side = self._sides[index]
        return self._pixels[self._offsets[index] : self._offsets[index + 1]].reshape(side, side, 3)


class FaceCrops:
    """The crops of several sources in one row, with numbered people.

    Args:
        sources: At least one.
        cache_folder: For decoded pixels.
        same_person: Pairs of labels that are one person.

    Attributes:
        names: Of the crops.
        people: int64 (n,): who each crop shows, counted from 0 in the labels' order; `NOBODY` where unknown.
        people_count: How many people there are.

    Raises:
        DataError, PhotoError: See `DecodedCrops`.
    """

    def __init__(
        self, sources: Sequence[CropSource], cache_folder: Path, same_person: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._parts = [DecodedCrops(source, cache_folder) for source in sources]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.names = [name for part in self._parts for name in part.names]
        labels = [person for part in self._parts for person in part.people]
        self.people = number_people(labels, same_person)
        self.people_count = int(self.people.max(initial=NOBODY)) + 1

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> UInt8Array:
        """RGB uint8 (side, side, 3) of one crop; not to be changed."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].pixels(index - int(self._starts[part]))

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


def _signatures(source: CropSource) -> Iterator[str]:
    """Change whenever the source does."""
    yield f"{source.labelled}"
    for path in [source.path] if _is_tar(source.path) else _photos(source.path):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: training faces are missing: {error}") from error
        yield f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _is_tar(path: Path) -> bool:
    return path.suffix == ".tar"


def _photos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder or tar file of face crops")
    return find_photos([folder])


def _decoded(source: CropSource) -> Iterator[tuple[str, UInt8Array]]:
    """Names, relative to the source and with its own name in front, and pixels."""
    if not _is_tar(source.path):
        for path in _photos(source.path):
            name = path.relative_to(source.path).as_posix()
            yield f"{source.path.name}/{name}", read_image(path)
        return
    try:
        with tarfile.open(source.path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    yield f"{source.path.name}/{member.name}", read_image(stream.read())
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{source.path}: not a readable tar file: {error}") from error


def _decode_all(source: CropSource, pixels_path: Path, contents_path: Path) -> None:
    crops: list[_Crop] = []
    try:
        pixels_path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(pixels_path) as file:
            for name, pixels in _decoded(source):
                height, width = pixels.shape[:2]
                if height != width:
                    raise DataError(f"{name}: expected a square face crop, got {width}x{height} pixels")
                person = PurePosixPath(name).parent.name if source.labelled else ""
                crops.append(_Crop(name, person, height))
                file.write(pixels.tobytes())
        if not crops:
            raise DataError(f"{source.path}: holds no photos")
        atomic_write_bytes(contents_path, json.dumps(crops).encode())
    except OSError as error:
        raise DataError(
            f"{pixels_path.parent}: can't write the cache of decoded faces: {error}; "
            "free some space or name another folder"
        ) from error
