"""What is asked of a photo: its faces, their embeddings, or the one face to be enrolled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.images.decoding import ReducedPhoto
from facepipe.quality import (
    MainFaceAssessment,
    accepted_rows,
    align_or_reject,
    assess,
    assess_main_face,
    needed_scale,
)
from facepipe.quality_rules import EnrollRules, NamingRules, Reason

EVERY_FACE = NamingRules(min_score=0.0, min_size_px=0.0, min_sharpness=0.0, max_misfit=np.inf)
"""Rules that only faces break whose landmarks determine no alignment."""


@dataclass(frozen=True, slots=True, eq=False)
class AnalyzedPhoto:
    """What was found in a photo.

    Attributes:
        faces: In pixels of the whole photo; with embeddings where they were asked for.
        scale: How large it was analyzed: the share of each side, up to 1.
        reasons: Why each face was not encoded; None where it was. Empty where none was to be.
        main: The face to be enrolled, where it was asked for; its embedding is the only one.
    """

    faces: Faces
    scale: float
    reasons: tuple[Reason | None, ...] = ()
    main: MainFaceAssessment | None = None


Finish = Callable[[FloatArray], AnalyzedPhoto]
"""Makes the result from the embeddings of the crops."""


class PhotoTask(Protocol):
    """What is asked of a photo."""

    @property
    def may_reduce(self) -> bool:
        """Whether a large JPEG may be decoded at a fraction of its size."""

    def needed_scale(self, faces: Faces, encoder: FaceEncoder) -> float:
        """Return the share of a photo's sides, 0..1, at which no crop enlarges a face."""

    def cut(
        self, photo: ReducedPhoto, faces: Faces, scale: float, encoder: FaceEncoder
    ) -> tuple[UInt8Array, Finish]:
        """Return the crops to be encoded, RGB uint8 (m, S, S, 3), and what makes the result from them."""


@dataclass(frozen=True, slots=True)
class FindFaces:
    """Boxes, scores and landmarks."""

    may_reduce: bool = True

    def needed_scale(self, faces: Faces, encoder: FaceEncoder) -> float:
        """See `PhotoTask`."""
        return 0.0

    def cut(
        self, photo: ReducedPhoto, faces: Faces, scale: float, encoder: FaceEncoder
    ) -> tuple[UInt8Array, Finish]:
        """See `PhotoTask`."""
        return _no_crops(encoder), lambda _: AnalyzedPhoto(faces, scale)


@dataclass(frozen=True, slots=True)
class EncodeFaces:
    """The faces, and the embeddings of those that keep the rules.

    As in a batch, a large JPEG is decoded at a fraction of its size where that leaves enough pixels.
    """

    rules: NamingRules
    may_reduce: bool = True

    def needed_scale(self, faces: Faces, encoder: FaceEncoder) -> float:
        """See `PhotoTask`."""
        return needed_scale(align_or_reject(faces, self.rules), encoder.crop)

    def cut(
        self, photo: ReducedPhoto, faces: Faces, scale: float, encoder: FaceEncoder
    ) -> tuple[UInt8Array, Finish]:
        """See `PhotoTask`."""
        found = assess(photo.rgb, faces, self.rules, crop=encoder.crop, reduction=photo.reduction)
        measured = faces.with_enrollable(found.enrollable)

        def finish(embeddings: FloatArray) -> AnalyzedPhoto:
            encoded = measured.with_embeddings(embeddings, accepted_rows(found.reasons))
            return AnalyzedPhoto(encoded, scale, found.reasons)

        return found.crops, finish


@dataclass(frozen=True, slots=True)
class EncodeMainFace:
    """The face that a photo is of, measured for enrollment, and its embedding."""

    rules: EnrollRules
    may_reduce: bool = False

    def needed_scale(self, faces: Faces, encoder: FaceEncoder) -> float:
        """See `PhotoTask`."""
        return 1.0

    def cut(
        self, photo: ReducedPhoto, faces: Faces, scale: float, encoder: FaceEncoder
    ) -> tuple[UInt8Array, Finish]:
        """See `PhotoTask`."""
        main = assess_main_face(photo.rgb, faces, self.rules, crop=encoder.crop)
        crops = _no_crops(encoder) if main.face is None else main.face.crop[None]
        rows = np.array([] if main.face is None else [main.face.row], np.intp)

        def finish(embeddings: FloatArray) -> AnalyzedPhoto:
            return AnalyzedPhoto(faces.with_embeddings(embeddings, rows), scale, main=main)

        return crops, finish


def _no_crops(encoder: FaceEncoder) -> UInt8Array:
    size = encoder.input_size_px
    return np.zeros((0, size, size, 3), np.uint8)
