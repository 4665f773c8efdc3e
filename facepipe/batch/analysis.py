"""Analysis of photos, one stage after the other: every stage is a pure function of its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from facepipe.batch.models import PREVIEW, OpenedPhoto, PhotoAnalysis, PhotoTask
from facepipe.core.faces import Faces
from facepipe.images.decoding import ReducedPhoto
from facepipe.images.decoding_memory import PhotoMemory, allowed_bytes
from facepipe.images.face_crops import face_thumbnail
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256, printable, read_reduced
from facepipe.images.small_pictures import small_jpeg
from facepipe.pipeline import FacePipeline
from facepipe.quality import accepted_rows, align_or_reject, assess, needed_scale
from facepipe.quality_rules import NamingRules

_SHARE_OF_PIXELS = 2
"""All photos of a batch together take the memory that one of `max_pixels` / 2 may: by default 956 MB, so that
a batch stays below 1.5 GB whatever the photos are."""
_HALF = 0.5
_PREVIEW_PX, _PREVIEW_QUALITY = 200, 35


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """How photos are analyzed; the results depend on it.

    Attributes:
        rules: Which faces are compared.
        max_pixels: Larger photos fail, and those that take more memory than all photos may together, which is
            what `read_image` allows of half as many pixels.
        reduce: Decode large JPEGs at a fraction of their size where that leaves enough pixels.
    """

    rules: NamingRules = field(default_factory=NamingRules)
    max_pixels: int = DEFAULT_MAX_PIXELS
    reduce: bool = True


class PhotoAnalyzer:
    """The stages of an analysis, over a pipeline's networks. Threads may share it.

    Args:
        pipeline: Detector and encoder.
        options: See `AnalysisOptions`.
    """

    def __init__(self, pipeline: FacePipeline, options: AnalysisOptions | None = None) -> None:
        self._detector, self._encoder = pipeline.detector, pipeline.encoder
        self.options = options or AnalysisOptions()

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""
        return self._encoder.embedding.dimensions

    def memory(self, path: Path) -> PhotoMemory:
        """Return the counter of a photo's memory."""
        return PhotoMemory(printable(path), allowed_bytes(self._max_pixels_at_once))

    @property
    def _max_pixels_at_once(self) -> int:
        return self.options.max_pixels // _SHARE_OF_PIXELS

    def open(self, task: PhotoTask, memory: PhotoMemory | None = None) -> OpenedPhoto:
        """Read a file, no larger than the detector needs.

        Args:
            task: Which.
            memory: Of `memory(task.path)`; None: a new one.

        Raises:
            PhotoError: It can't be read.
            MemoryBusyError: See `PhotoMemory`.
        """
        needed = self._detector.options.scale_of if self.options.reduce else None
        memory = memory or self.memory(task.path)
        photo = read_reduced(
            task.source, needed, max_pixels=self.options.max_pixels, memory=memory, name=printable(task.path)
        )
        return OpenedPhoto(task, photo_sha256(task.source, printable(task.path)), photo, memory)

    def input_size_wh(self, opened: OpenedPhoto) -> tuple[int, int]:
        """Size of the detector's input for it: photos of equal sizes are detected together."""
        return self._detector.input_size_wh(opened.photo.rgb)

    def detect(self, group: Sequence[OpenedPhoto]) -> list[PhotoAnalysis]:
        """Find the faces of photos, align those that may be compared, and add previews."""
        photos = [opened.photo for opened in group]
        found = self._detector.detect_batch(
            [photo.rgb for photo in photos], [photo.full_size_wh for photo in photos]
        )
        return [
            PhotoAnalysis(
                opened.task,
                opened.sha256,
                opened.photo.full_size_wh,
                faces,
                tuple(align_or_reject(faces, self.options.rules)),
                pictures=_preview(opened.photo, faces),
                taken_at=opened.photo.taken_at,
            )
            for opened, faces in zip(group, found, strict=True)
        ]

    def crop(self, analysis: PhotoAnalysis, photo: ReducedPhoto, memory: PhotoMemory) -> PhotoAnalysis:
        """Add crops of the faces to be compared, and thumbnails of all; reads the file again where needed.

        Raises:
            PhotoError: It is gone.
            MemoryBusyError: See `PhotoMemory`; `crop_again` does it later.
        """
        if needed_scale(analysis.alignments, self._encoder.crop) * photo.reduction > 1:
            return self.crop_again(analysis, memory)
        return self._cropped(analysis, photo)

    def crop_again(self, analysis: PhotoAnalysis, memory: PhotoMemory) -> PhotoAnalysis:
        """`crop` from the file, with the pixels that the faces need, and fewer where memory is short.

        Raises:
            PhotoError: It is gone.
            MemoryBusyError: See `PhotoMemory`.
        """
        scale = needed_scale(analysis.alignments, self._encoder.crop)
        photo = read_reduced(
            analysis.task.source,
            lambda size_wh: min(scale, 1.0 if size_wh[0] * size_wh[1] <= self._max_pixels_at_once else _HALF),
            max_pixels=self.options.max_pixels,
            memory=memory,
            name=printable(analysis.task.path),
        )
        return self._cropped(analysis, photo)

    def _cropped(self, analysis: PhotoAnalysis, photo: ReducedPhoto) -> PhotoAnalysis:
        assessment = assess(
            photo.rgb,
            analysis.faces,
            self.options.rules,
            crop=self._encoder.crop,
            alignments=analysis.alignments,
            reduction=photo.reduction,
        )
        return replace(
            analysis,
            faces=analysis.faces.with_enrollable(assessment.enrollable),
            reasons=assessment.reasons,
            crops=assessment.crops,
            pictures=analysis.pictures | _thumbnails(photo, analysis.faces),
        )

    def encode(self, group: Sequence[PhotoAnalysis]) -> list[PhotoAnalysis]:
        """Encode the faces of several photos together; their crops go."""
        embeddings = self._encoder.encode(np.concatenate([analysis.crops for analysis in group]))
        ends = np.cumsum([len(analysis.crops) for analysis in group])
        return [
            replace(
                analysis,
                faces=analysis.faces.with_embeddings(own, accepted_rows(analysis.reasons)),
                crops=analysis.crops[:0],
            )
            for analysis, own in zip(group, np.split(embeddings, ends[:-1]), strict=True)
        ]


def _preview(photo: ReducedPhoto, faces: Faces) -> dict[int, bytes]:
    """Return a small picture of the photo, from the copy the detector sees; nothing where it has no face."""
    return {PREVIEW: small_jpeg(photo.rgb, _PREVIEW_PX, _PREVIEW_QUALITY)} if len(faces) else {}


def _thumbnails(photo: ReducedPhoto, faces: Faces) -> dict[int, bytes]:
    """Return a picture of every face by its row."""
    boxes = faces.boxes_xyxy / np.float32(photo.reduction)
    return {row: face_thumbnail(photo.rgb, box) for row, box in enumerate(boxes)}
