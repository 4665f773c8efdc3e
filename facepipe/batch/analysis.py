"""Looking at photos, one stage after the other: every stage is a pure function of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from facepipe.align import Alignment
from facepipe.batch.models import PREVIEW
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.decoding import ReducedPhoto
from facepipe.images.decoding_memory import PhotoMemory, allowed_bytes
from facepipe.images.face_crops import cut_face
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256, printable, read_reduced, scaled_down
from facepipe.pipeline import FacePipeline
from facepipe.quality import NamingRules, Reason, align_or_reject, assess

_MAX_CROP_SCALE = 1.0
"""Crop pixels per pixel of a reduced photo beyond which the photo is read again in full: a face would be
enlarged. Up to there reduced decoding moves vectors by 0.05 in the median at any scale (docs/batch.md)."""
_SHARE_OF_PIXELS = 2
"""All photos of a batch together take the memory that one of `max_pixels` / 2 may: by default 956 MB, so that
a batch stays below 1.5 GB whatever the photos are."""
_HALF = 0.5
_PREVIEW_PX, _PREVIEW_WEBP = 224, {"quality": 40, "method": 4}
_THUMBNAIL_PX, _THUMBNAIL_WEBP = 96, {"quality": 50, "method": 4}
"""A report of many photos is as large as their pictures: half of what quality 60 and method 0 give (256 px
previews), for about 4 ms a photo."""


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """How photos are looked at; the results depend on it.

    Attributes:
        rules: Which faces are compared.
        max_pixels: Larger photos fail, and those that take more memory than all photos may together, which is
            what `read_image` allows of half as many pixels.
        reduce: Decode large JPEGs at a fraction of their size where that leaves enough pixels.
    """

    rules: NamingRules = field(default_factory=NamingRules)
    max_pixels: int = DEFAULT_MAX_PIXELS
    reduce: bool = True


@dataclass(frozen=True, slots=True)
class Opened:
    """A photo file that was read.

    Attributes:
        sha256: Of the file's bytes.
        photo: Its pixels.
        memory: Counts what they take, until it is released.
    """

    sha256: str
    photo: ReducedPhoto
    memory: PhotoMemory


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is left of a photo when its pixels are gone.

    Attributes:
        faces: In pixels of the whole photo, without vectors, with `enrollable`.
        reasons: Why each is not compared, or None.
        crops: uint8 (m, S, S, 3) of those that are.
        pictures: See `facepipe.batch.models.PhotoAnalysis`.
    """

    faces: Faces
    reasons: tuple[Reason | None, ...]
    crops: UInt8Array
    pictures: dict[int, bytes]


class PhotoAnalyzer:
    """The stages of looking at photos, over a pipeline's networks. Threads may share it.

    Args:
        pipeline: Detector and encoder.
        options: See `AnalysisOptions`.
    """

    def __init__(self, pipeline: FacePipeline, options: AnalysisOptions | None = None) -> None:
        self._detector, self._encoder = pipeline.detector, pipeline.encoder
        self.options = options or AnalysisOptions()

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._encoder.embedding.dimensions

    def memory(self, path: Path) -> PhotoMemory:
        """What is to count the memory of a photo."""
        return PhotoMemory(printable(path), allowed_bytes(self._most_at_once))

    @property
    def _most_at_once(self) -> int:
        return self.options.max_pixels // _SHARE_OF_PIXELS

    def open(self, path: Path, memory: PhotoMemory | None = None) -> Opened:
        """Read a file, no larger than the detector needs.

        Args:
            path: The file.
            memory: Of `memory(path)`; None: a new one.

        Raises:
            PhotoError: It can't be read.
            MemoryBusyError: See `PhotoMemory`.
        """
        needed = self._detector.options.scale_of if self.options.reduce else None
        memory = memory or self.memory(path)
        photo = read_reduced(path, needed, max_pixels=self.options.max_pixels, memory=memory)
        return Opened(photo_sha256(path), photo, memory)

    def input_size_wh(self, opened: Opened) -> tuple[int, int]:
        """What the detector sees of it: photos of equal sizes are detected together."""
        return self._detector.input_size_wh(opened.photo.rgb)

    def detect(self, group: Sequence[Opened]) -> list[Faces]:
        """The faces of several photos, in pixels of the whole photos."""
        photos = [opened.photo for opened in group]
        return self._detector.detect_batch(
            [photo.rgb for photo in photos], [photo.full_size_wh for photo in photos]
        )

    def choose(self, path: Path, opened: Opened, faces: Faces) -> Chosen:
        """Crops of the faces to be compared, and pictures for people; reads the file again where needed.

        Raises:
            PhotoError: It is gone.
            MemoryBusyError: See `PhotoMemory`; `choose_again` does it later.
        """
        photo, alignments = opened.photo, align_or_reject(faces, self.options.rules)
        if photo.reduction > 1 and self._are_too_small(photo, alignments):
            return self.choose_again(path, opened.memory, faces, alignments)
        return self._chosen(photo, faces, alignments)

    def choose_again(
        self,
        path: Path,
        memory: PhotoMemory,
        faces: Faces,
        alignments: Sequence[Alignment | Reason] | None = None,
    ) -> Chosen:
        """`choose` from the file, with as many pixels as memory allows: all, or half as many a side.

        Raises:
            PhotoError: It is gone.
            MemoryBusyError: See `PhotoMemory`.
        """
        photo = read_reduced(
            path,
            lambda size_wh: 1.0 if size_wh[0] * size_wh[1] <= self._most_at_once else _HALF,
            max_pixels=self.options.max_pixels,
            memory=memory,
        )
        return self._chosen(photo, faces, alignments)

    def _chosen(
        self, photo: ReducedPhoto, faces: Faces, alignments: Sequence[Alignment | Reason] | None
    ) -> Chosen:
        assessment = assess(
            photo.rgb,
            faces,
            self.options.rules,
            crop=self._encoder.crop,
            alignments=alignments,
            reduction=photo.reduction,
        )
        faces = faces.with_enrollable(assessment.enrollable)
        return Chosen(faces, assessment.reasons, assessment.crops, _pictures(photo, faces))

    def encode(self, crops: UInt8Array) -> FloatArray:
        """float32 (m, d): the vectors of crops, of one photo or many."""
        return self._encoder.encode(crops)

    def _are_too_small(self, photo: ReducedPhoto, alignments: Sequence[Alignment | Reason]) -> bool:
        """Whether a face to be compared would be enlarged."""
        found = [alignment for alignment in alignments if isinstance(alignment, Alignment)]
        scales = [
            alignment.in_reduced_copy(photo.reduction).scale(*self._encoder.crop) for alignment in found
        ]
        return any(scale > _MAX_CROP_SCALE for scale in scales)


def _pictures(photo: ReducedPhoto, faces: Faces) -> dict[int, bytes]:
    """A thumbnail of every face and a preview of the photo; nothing where it has no face."""
    if not len(faces):
        return {}
    boxes = faces.boxes_xyxy / np.float32(photo.reduction)
    thumbnails = {
        row: _webp(cut_face(photo.rgb, box), _THUMBNAIL_PX, _THUMBNAIL_WEBP) for row, box in enumerate(boxes)
    }
    return {PREVIEW: _webp(photo.rgb, _PREVIEW_PX, _PREVIEW_WEBP), **thumbnails}


def _webp(rgb: UInt8Array, longest_px: int, options: dict[str, int]) -> bytes:
    height, width = rgb.shape[:2]
    scale = min(1.0, longest_px / max(width, height))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(scaled_down(rgb, size_wh))).save(stream, "WEBP", **options)
    return stream.getvalue()
