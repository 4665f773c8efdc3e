"""Archives of photos with known truth, made of folders of people's photos, some side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.images.reading import PHOTO_SUFFIXES, read_image

PHOTOS, _TRUTH = "photos", "truth.json"
TILE_HEIGHT_PX = 320
_MIN_MAIN_SIZE = 0.5
"""Smaller faces, as a share of the largest face of a tile, are people in the background."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A photo of one person, pasted into a photo of the archive.

    Attributes:
        person: Who is in the middle; unique.
        left_px: Where it begins.
        right_px: Where it ends.
    """

    person: str
    left_px: int
    right_px: int


def write_archive(
    roots: Sequence[Path], folder: Path, photo_count: int, person_count: int, seed: int
) -> None:
    """Write photos as JPEG, and `truth.json`, which says whose tiles they are made of, to a new folder.

    Raises:
        UsageError: There is no photo below the roots.
    """
    plan = plan_archive(photos_by_person(roots), photo_count, person_count, seed)
    truth = {}
    photos = folder / PHOTOS
    photos.mkdir(parents=True)
    for number, tiles in enumerate(plan):
        picture, places = paste(tiles)
        name = f"{number:05d}.jpg"
        cv2.imwrite(str(photos / name), picture[..., ::-1])
        truth[name] = [asdict(place) for place in places]
    (folder / _TRUTH).write_text(json.dumps(truth))


def read_truth(folder: Path) -> dict[str, list[Tile]]:
    """Return the tiles of each photo of an archive, by file name."""
    stored = json.loads((folder / _TRUTH).read_text())
    return {name: [Tile(**tile) for tile in tiles] for name, tiles in stored.items()}


def photos_by_person(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """Photos of `ROOT/PERSON/PHOTO`, by person; the same folder name under two roots is one person.

    Raises:
        UsageError: There is none.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        for photo in sorted(root.glob("*/*")):
            if photo.suffix.lower() in PHOTO_SUFFIXES:
                found[photo.parent.name].append(photo)
    if not found:
        raise UsageError(f"{', '.join(map(str, roots))}: no photo found as FOLDER/PERSON/PHOTO")
    return dict(found)


def plan_archive(
    people: dict[str, list[Path]], photo_count: int, person_count: int, seed: int
) -> list[list[tuple[str, Path]]]:
    """Choose what each photo of an archive shows: people side by side, nobody twice in a photo.

    The `person_count` people of most photos come with all of them, others with one photo each: strangers, at
    most half as many as there are photos.

    Returns:
        (person, photo) of each tile, by photo; fewer than `photo_count` where there are not enough.
    """
    random = np.random.default_rng(seed)
    names = [list(people)[row] for row in random.permutation(len(people))]
    names.sort(key=lambda name: -len(people[name]))
    tiles = [(name, photo) for name in names[:person_count] for photo in people[name]]
    tiles += [(name, people[name][0]) for name in names[person_count : person_count + photo_count // 2]]
    tiles = [tiles[row] for row in random.permutation(len(tiles))]
    sizes = _tile_counts(min(photo_count, len(tiles)), len(tiles), random)
    return list(_dealt(tiles, sizes))


def _tile_counts(photo_count: int, tile_count: int, random: np.random.Generator) -> list[int]:
    """How many tiles each photo has: one, and the rest by chance."""
    rest = random.integers(photo_count, size=tile_count - photo_count)
    return [int(count) for count in 1 + np.bincount(rest, minlength=photo_count)]


def _dealt(tiles: list[tuple[str, Path]], sizes: Sequence[int]) -> Iterator[list[tuple[str, Path]]]:
    waiting = list(tiles)
    for size in sizes:
        photo: list[tuple[str, Path]] = []
        for _ in range(min(size, len(waiting))):
            shown = {person for person, _ in photo}
            at = next((at for at, (person, _) in enumerate(waiting) if person not in shown), None)
            if at is not None:
                photo.append(waiting.pop(at))
        if photo:
            yield photo


def paste(tiles: Sequence[tuple[str, Path]]) -> tuple[UInt8Array, list[Tile]]:
    """Return photos of people side by side, RGB uint8 (H, W, 3), all of one height, and where each is."""
    pictures = [_scaled(read_image(photo)) for _, photo in tiles]
    edges = np.cumsum([0, *(picture.shape[1] for picture in pictures)]).tolist()
    places = [
        Tile(person, left, right) for (person, _), left, right in zip(tiles, edges, edges[1:], strict=False)
    ]
    return np.concatenate(pictures, axis=1), places


def _scaled(picture: UInt8Array) -> UInt8Array:
    height, width = picture.shape[:2]
    size = (max(1, round(width * TILE_HEIGHT_PX / height)), TILE_HEIGHT_PX)
    method = cv2.INTER_AREA if height > TILE_HEIGHT_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)


def true_names(boxes_xyxy: FloatArray, tiles: Sequence[Tile]) -> list[str | None]:
    """Return who the faces of a photo are, boxes (n, 4); None: people in the background.

    The person of a tile is, of its large faces, the one nearest to its middle.
    """
    names: list[str | None] = [None] * len(boxes_xyxy)
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    heights = boxes[:, 3] - boxes[:, 1]
    for tile in tiles:
        rows = np.flatnonzero((middles[:, 0] >= tile.left_px) & (middles[:, 0] < tile.right_px))
        if len(rows):
            large = rows[heights[rows] >= _MIN_MAIN_SIZE * heights[rows].max()]
            middle = np.array([(tile.left_px + tile.right_px) / 2, TILE_HEIGHT_PX / 2])
            names[large[np.argmin(np.linalg.norm(middles[large] - middle, axis=1))]] = tile.person
    return names
