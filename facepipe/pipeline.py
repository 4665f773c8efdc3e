"""The whole way of a photo: detect, align, encode, match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.errors import LandmarkError, PhotoError, UsageError, WeightsError
from facepipe.faces import Faces, Match, UInt8Array
from facepipe.images import DEFAULT_MAX_PIXELS, read_image
from facepipe.quality import NamingRules, recognisable
from facepipe.runtime import RuntimeChoice, choose_runtime
from gallery import EncoderIdentity, Gallery
from weights.card import WeightCard
from weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """One photo of a stream: its faces, or why it could not be processed.

    Attributes:
        path: The file.
        photo: RGB uint8 (h, w, 3), upright; None after an error.
        faces: As far as the pipeline went; None after an error.
        error: A sentence that names the file; None where all went well.
    """

    path: Path
    photo: UInt8Array | None = None
    faces: Faces | None = None
    error: str | None = None

    def without_photo(self) -> PhotoResult:
        """The same without its pixels, for keeping many."""
        return replace(self, photo=None)


class FacePipeline:
    """Finds, encodes and names faces. Load once, use for many photos; `with` closes the gallery.

    Args:
        detector: Finds the faces.
        encoder: Turns them into vectors.
        gallery: Names the vectors; None where nobody is to be named.
    """

    def __init__(self, detector: FaceDetector, encoder: FaceEncoder, gallery: Gallery | None = None) -> None:
        self.detector, self.encoder, self.gallery = detector, encoder, gallery

    @classmethod
    def load(
        cls,
        gallery: str | Path | None = None,
        *,
        create_gallery: bool = False,
        detector_weights: str = DEFAULT_DETECTOR,
        encoder_weights: str = DEFAULT_ENCODER,
        options: DetectorOptions | None = None,
        runtime: RuntimeChoice | None = None,
    ) -> Self:
        """Open the networks and, where a folder is given, the gallery.

        Args:
            gallery: Folder of the gallery.
            create_gallery: Whether a missing gallery is made.
            detector_weights: Name of a weight, or path of a card.
            encoder_weights: Likewise.
            options: What counts as a face.
            runtime: What runs where; `choose_runtime()` by default.

        Raises:
            GalleryError: The gallery is missing, damaged, or of another encoder.
            WeightsError: A weight is unknown or damaged.
        """
        runtime = runtime or choose_runtime()
        encoder = FaceEncoder.load(encoder_weights, runtime)
        detector = FaceDetector.load(detector_weights, options, runtime)
        opened = None
        if gallery is not None:
            opened = Gallery.open(gallery, card_identity(encoder.card), create=create_gallery)
        return cls(detector, encoder, opened)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the gallery."""
        if self.gallery is not None:
            self.gallery.close()

    def detect(self, photo: UInt8Array) -> Faces:
        """The faces of an RGB uint8 photo (h, w, 3)."""
        return self.detector.detect(photo)

    def embed(self, photo: UInt8Array) -> Faces:
        """The faces with their vectors."""
        return self.encoder.embed(photo, self.detector.detect(photo))

    def identify(
        self,
        photo: UInt8Array,
        *,
        threshold_l2: float | None = None,
        one_person_per_photo: bool = True,
        rules: NamingRules | None = None,
    ) -> Faces:
        """The faces with their vectors and what the gallery says of them.

        Faces that are not good enough to be compared (see `NamingRules`) are unknown, without a distance.

        Args:
            photo: RGB uint8 (h, w, 3).
            threshold_l2: Largest distance at which a face is named; None: the encoder's default.
            one_person_per_photo: Whether a person is given to one face at most.
            rules: Which faces are compared at all, and how clear an answer must be.

        Raises:
            UsageError: No gallery, a threshold outside 0..2, or neither a threshold nor a default one.
        """
        gallery = self._require_gallery()
        threshold_l2 = self._threshold(threshold_l2)
        faces = self.embed(photo)
        assert faces.embeddings is not None
        rules = rules or NamingRules()
        compared = np.flatnonzero(recognisable(photo, faces, rules))
        answers = gallery.match(
            faces.embeddings[compared],
            threshold_l2=threshold_l2,
            min_margin_l2=rules.min_margin_l2,
            one_person_per_photo=one_person_per_photo,
        )
        matches = [Match(None, None, threshold_l2)] * len(faces)
        for row, answer in zip(compared, answers, strict=True):
            matches[row] = answer
        return faces.with_matches(matches)

    def identify_files(
        self,
        paths: Iterable[Path],
        *,
        threshold_l2: float | None = None,
        one_person_per_photo: bool = True,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Iterator[PhotoResult]:
        """`identify` for files, one after the other; a photo that fails is reported and passed over.

        Raises:
            UsageError: As `identify`, before the first photo.
        """
        self._require_gallery()
        threshold_l2 = self._threshold(threshold_l2)

        def named(photo: UInt8Array) -> Faces:
            return self.identify(photo, threshold_l2=threshold_l2, one_person_per_photo=one_person_per_photo)

        return process_files(paths, named, max_pixels)

    def _require_gallery(self) -> Gallery:
        if self.gallery is None:
            raise UsageError("this pipeline was opened without a gallery: give its folder to name faces")
        return self.gallery

    def _threshold(self, asked_l2: float | None) -> float:
        threshold_l2 = self.encoder.embedding.threshold_l2 if asked_l2 is None else asked_l2
        if threshold_l2 is None:
            raise UsageError(f"{self.encoder.card.name} has no measured threshold: give one (--threshold)")
        if not 0 <= threshold_l2 <= 2:
            raise UsageError(f"threshold: expected 0..2, the distances of unit vectors, got {threshold_l2}")
        return threshold_l2


def process_files(
    paths: Iterable[Path], step: Callable[[UInt8Array], Faces], max_pixels: int = DEFAULT_MAX_PIXELS
) -> Iterator[PhotoResult]:
    """Read each file and run `step` on it; a photo that fails is reported and passed over."""
    for path in paths:
        try:
            photo = read_image(path, max_pixels=max_pixels)
            result = PhotoResult(path, photo, step(photo))
        except PhotoError as error:
            result = PhotoResult(path, error=str(error))
        except LandmarkError as error:
            result = PhotoResult(path, error=f"{path}: {error}")
        yield result


def card_identity(card: WeightCard) -> EncoderIdentity:
    """What binds a gallery to an encoder. Without a measured threshold nobody is named by default.

    Raises:
        WeightsError: The card is not an encoder's.
    """
    if card.embedding is None:
        raise WeightsError(f"{card.name} is a {card.kind}, not an encoder")
    embedding = card.embedding
    return EncoderIdentity(card.name, card.fingerprint, embedding.dimensions, embedding.threshold_l2 or 0.0)
