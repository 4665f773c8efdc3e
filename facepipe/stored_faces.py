"""The faces of a gallery, encoded again: from their kept crops, or from the photos that they came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from facepipe.align import fit_alignments
from facepipe.core.boxes import iou
from facepipe.core.errors import PhotoError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.gallery import EncoderIdentity, Gallery, Template, UnknownFace
from facepipe.gallery.encoder_change import NewVector
from facepipe.images.face_crops import MAX_CROP_PIXELS, encode_crop
from facepipe.images.finding import find_photos
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256, read_image
from facepipe.pipeline import FacePipeline, installed_card

MIN_OVERLAP_IOU = 0.4
"""Of a stored box with the detected one of the same face: detectors differ in where its edges are."""

_CROPS_AT_ONCE = 32

StoredFace = Template | UnknownFace


class Origin(Enum):
    """What a face was encoded from. The values are stable codes for reports."""

    CROP = "crop"
    PHOTO = "photo"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFace:
    """A stored face, encoded again or not.

    Attributes:
        face: As stored.
        new: Its vector; None where there is nothing to encode.
        origin: What it was encoded from; None likewise.
        problem: Why there is none, as a sentence; empty where there is one.
    """

    face: StoredFace
    new: NewVector | None = None
    origin: Origin | None = None
    problem: str = ""


def encode_stored(
    gallery: Gallery,
    faces: Sequence[StoredFace],
    pipeline: FacePipeline,
    *,
    photos_from: Sequence[Path] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[EncodedFace]:
    """Encode faces of a gallery with the encoder of a pipeline, and yield each as it is done.

    A kept crop is taken where the gallery's encoder and the new one want crops of the same alignment and
    side; else the photo, which must be the same file by its content: of its detected faces, the one that
    overlaps the stored box most.

    Args:
        gallery: That holds them; nothing in it is changed.
        faces: Templates, and faces without a name.
        pipeline: Detector and encoder.
        photos_from: Folders, files and globs where photos that are not at their place any more may be.
        max_pixels: Largest photo read.

    Raises:
        GalleryError: A face is not there any more.
    """
    encoding = _Encoding(gallery, pipeline, photos_from, max_pixels)
    others = []
    for at in range(0, len(faces), _CROPS_AT_ONCE):
        some = [(face, encoding.kept_crop(face)) for face in faces[at : at + _CROPS_AT_ONCE]]
        yield from encoding.from_crops([(face, crop) for face, crop in some if crop is not None])
        others += [face for face, crop in some if crop is None]
    with_photo = []
    for face in others:
        if face.photo_sha256 is None or face.source is None or face.box_xyxy is None:
            yield EncodedFace(face, problem="no crop can be used, and its photo is not known")
        else:
            with_photo.append((face.photo_sha256, face))
    with_photo.sort(key=lambda pair: pair[0])
    for sha256, of_photo in groupby(with_photo, lambda pair: pair[0]):
        yield from encoding.from_photo(sha256, [face for _, face in of_photo])


class _Encoding:
    """The arguments of `encode_stored`."""

    def __init__(
        self, gallery: Gallery, pipeline: FacePipeline, photos_from: Sequence[Path], max_pixels: int
    ) -> None:
        self._gallery, self._detect, self._encoder = gallery, pipeline.detect, pipeline.encoder
        self._photos_from, self._max_pixels = photos_from, max_pixels
        self._crops_are_usable = _crop_form(gallery.encoder) == self._encoder.crop

    def kept_crop(self, face: StoredFace) -> UInt8Array | None:
        """The kept crop of a face, if there is one that the encoder takes as it is."""
        kept = self._crop_of(face) if self._crops_are_usable else None
        if kept is None:
            return None
        try:
            crop = read_image(kept, max_pixels=MAX_CROP_PIXELS)
        except PhotoError:
            return None
        side_px = self._encoder.input_size_px
        return crop if crop.shape == (side_px, side_px, 3) else None

    def from_crops(self, faces: Sequence[tuple[StoredFace, UInt8Array]]) -> Iterator[EncodedFace]:
        """Encode faces with their crops."""
        if faces:
            embeddings = self._encoder.encode(np.stack([crop for _, crop in faces]))
            for (face, _), embedding in zip(faces, embeddings, strict=True):
                yield EncodedFace(face, NewVector(embedding), Origin.CROP)

    def from_photo(self, sha256: str, faces: Sequence[StoredFace]) -> Iterator[EncodedFace]:
        """Encode faces of one photo."""
        try:
            path = self._path_of(sha256, faces)
            photo = read_image(path, max_pixels=self._max_pixels)
        except PhotoError as error:
            yield from (EncodedFace(face, problem=f"no crop can be used, and {error}") for face in faces)
            return
        boxes, crops = self._aligned(photo)
        embeddings = self._encoder.encode(crops)
        for face in faces:
            overlaps = iou(np.array(face.box_xyxy, np.float32), boxes)
            row = int(overlaps.argmax()) if len(overlaps) else 0
            if not len(overlaps) or overlaps[row] < MIN_OVERLAP_IOU:
                problem = f"no crop can be used, and {path}: no face is found at its place"
                yield EncodedFace(face, problem=problem)
                continue
            crop = None if self._crop_of(face) is None else encode_crop(crops[row])
            yield EncodedFace(face, NewVector(embeddings[row], crop), Origin.PHOTO)

    def _aligned(self, photo: UInt8Array) -> tuple[FloatArray, UInt8Array]:
        """Return boxes and crops of the faces of a photo that can be aligned."""
        faces = self._detect(photo)
        alignments = fit_alignments(faces.landmarks)
        rows = [row for row, alignment in enumerate(alignments) if alignment is not None]
        return faces.boxes_xyxy[rows], self._encoder.warp(photo, list(filter(None, alignments)))

    def _path_of(self, sha256: str, faces: Sequence[StoredFace]) -> Path:
        """Find a photo by its content: at its own place or among those of `photos_from`.

        Raises:
            PhotoError: It is gone or changed.
        """
        sources = dict.fromkeys(face.source for face in faces if face.source is not None)
        problems = []
        for source in sources:
            try:
                if photo_sha256(source) == sha256:
                    return Path(source)
                problems.append(f"{source}: is another photo than the one that was enrolled")
            except PhotoError as error:
                problems.append(str(error) if Path(source).exists() else f"{source}: is not there any more")
        if sha256 in self._moved:
            return self._moved[sha256]
        raise PhotoError("; ".join(problems))

    def _crop_of(self, face: StoredFace) -> bytes | None:
        is_named = isinstance(face, Template)
        return self._gallery.crop(face.id) if is_named else self._gallery.unknown_crop(face.id)

    @cached_property
    def _moved(self) -> dict[str, Path]:
        """Photos that may have been moved, by content; read when the first is missed."""
        return dict(_hashes(find_photos(self._photos_from))) if self._photos_from else {}


def _hashes(photos: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for photo in photos:
        try:
            yield photo_sha256(photo), photo
        except PhotoError:
            continue


def _crop_form(encoder: EncoderIdentity) -> tuple[str, int] | None:
    """Template and side of the crops that a gallery keeps; None: its encoder is not installed."""
    card = installed_card(encoder)
    if card is None or card.embedding is None or card.input.size_px is None:
        return None
    return card.embedding.alignment, card.input.size_px
