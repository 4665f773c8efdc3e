"""Main faces of photos: found and aligned once, and encoded once per kind of damage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from facepipe.align import MARGINS, cut
from facepipe.core.errors import DataError, LandmarkError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.images.reading import read_image
from facepipe.pipeline import FacePipeline
from facepipe.quality import central_face

Item = TypeVar("Item")
Watch = Callable[[Sequence[Item]], Iterable[Item]]
"""Passes the items on, one by one, as they are worked on: a progress bar."""


@dataclass(frozen=True, slots=True, eq=False)
class MainFaces:
    """The aligned main faces of photos; photos without a face have no row.

    Attributes:
        keys: Of the photos, n.
        crops: RGB uint8 (n, size, size, 3), aligned.
        eye_distances_px: float32 (n,), between the eyes in the photo; NaN where only the crop is known.
    """

    keys: tuple[str, ...]
    crops: UInt8Array
    eye_distances_px: FloatArray

    def vectors(
        self, encoder: FaceEncoder, damage: Callable[[UInt8Array], UInt8Array] | None = None
    ) -> dict[str, FloatArray]:
        """Return the embeddings by key, of the crops or of each after `damage`."""
        crops = self.crops
        if damage and len(crops):
            crops = np.stack([damage(crop) for crop in crops])
        return dict(zip(self.keys, encoder.encode(crops), strict=True))


def find_main_faces(
    pipeline: FacePipeline, photos: Mapping[str, Path], watch: Watch[str] = iter, turned_deg: float = 0
) -> MainFaces:
    """Find and align the main face of each photo, which may be rotated first.

    Raises:
        PhotoError: A photo can't be read.
    """
    found: list[tuple[str, UInt8Array, float]] = []
    for key in watch(list(photos)):
        photo = read_image(photos[key])
        photo = turned(photo, turned_deg) if turned_deg else photo
        faces = central_face(pipeline.detect(photo), photo.shape[1], photo.shape[0])
        try:
            for crop, landmarks in zip(pipeline.encoder.align(photo, faces), faces.landmarks, strict=True):
                found.append((key, crop, float(np.linalg.norm(landmarks[0] - landmarks[1]))))
        except LandmarkError:
            continue  # Landmarks that fit no face are as good as none.
    return _collected(pipeline.encoder, found)


def read_crops(encoder: FaceEncoder, photos: Mapping[str, Path], watch: Watch[str] = iter) -> MainFaces:
    """Read photos as aligned crops, as the trainer does.

    One of the encoder's input size is the alignment's frame itself; a larger one has the margin around it
    that its template is trained with.

    Raises:
        DataError: A photo is not square.
    """
    margin = MARGINS[encoder.embedding.alignment]
    found: list[tuple[str, UInt8Array, float]] = []
    for key in watch(list(photos)):
        crop = read_image(photos[key])
        if crop.shape[0] != crop.shape[1]:
            raise DataError(
                f"{photos[key]}: expected an aligned square crop, got {crop.shape[1]}x{crop.shape[0]} pixels"
            )
        found.append((key, cut(crop, encoder.input_size_px, margin), np.nan))
    return _collected(encoder, found)


def turned(photo: UInt8Array, angle_deg: float) -> UInt8Array:
    """Rotate a photo about its centre, counter-clockwise, on a larger black canvas."""
    height, width = photo.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle_deg, 1.0)
    cos, sin = np.abs(matrix[0, :2])
    wide, high = round(width * cos + height * sin), round(width * sin + height * cos)
    matrix[:, 2] += ((wide - width) / 2, (high - height) / 2)
    return np.asarray(cv2.warpAffine(photo, matrix, (wide, high), flags=cv2.INTER_LINEAR), np.uint8)


def _collected(encoder: FaceEncoder, found: Sequence[tuple[str, UInt8Array, float]]) -> MainFaces:
    size = encoder.input_size_px
    crops = np.stack([np.zeros((size, size, 3), np.uint8), *(crop for _, crop, _ in found)])[1:]
    return MainFaces(
        tuple(key for key, _, _ in found), crops, np.array([eyes for _, _, eyes in found], np.float32)
    )
