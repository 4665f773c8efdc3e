"""What the tests of detector, pipeline and command line share: photos to try things on, and broken ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.reading import write_image

FACE_XYXY = np.array([180, 60, 270, 176], np.float32)
"""The astronaut's face, roughly."""

SURE = 0.8
"""Score of what is surely a face: who counts faces must not depend on a weight's rare false alarms."""


def iou(first: FloatArray, second: FloatArray) -> FloatArray:
    """(n, m): how far boxes (n, 4) and (m, 4) overlap."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    shares: FloatArray = inter / (areas[0][:, None] + areas[1][None, :] - inter)
    return shares


def faces_at(*boxes: tuple[float, float, float, float], scores: tuple[float, ...] | None = None) -> Faces:
    """Faces with the usual layout of landmarks inside these boxes."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    layout = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]], np.float32)
    sides = corners[:, None, 2:] - corners[:, None, :2]
    confidences = np.array(scores or [0.99] * len(boxes), np.float32)
    return Faces(corners, confidences, corners[:, None, :2] + layout * sides)


def shifted(image: UInt8Array, right: int) -> UInt8Array:
    """The photo moved to the right over black: another file with the same face."""
    moved = np.zeros_like(image)
    moved[:, right:] = image[:, : image.shape[1] - right]
    return moved


def side_by_side(image: UInt8Array) -> UInt8Array:
    """The same person twice in a photo."""
    return np.ascontiguousarray(np.concatenate([image, image[:, ::-1]], axis=1))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_broken_photos(folder: Path, good: UInt8Array) -> Iterator[tuple[Path, str]]:
    """Files that can't be read as photos, each with a word of the reason that must be told."""
    write_image(folder / "whole.jpg", good)
    whole = (folder / "whole.jpg").read_bytes()
    contents = {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (whole[: len(whole) // 3], "cut off"),
        "text.jpg": (b"Dear diary, this is no photo.", "not a photo"),
        "bomb.png": (png_header(30_000, 30_000), "pixels"),
    }
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        yield folder / name, reason
    yield folder / "missing.jpg", "no such file"


def noise(rng_seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise: a photo without faces."""
    return np.random.default_rng(rng_seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
