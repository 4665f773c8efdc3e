"""Detect, align, encode and name the faces of a photo."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from facepipe.align import fit_alignments
from facepipe.core.errors import DataError, LandmarkError, PhotoError, UsageError, WeightsError, one_line
from facepipe.core.face_ids import new_face_ids
from facepipe.core.faces import Faces, FloatArray, Match, UInt8Array
from facepipe.core.paths import AnyPath, each_path
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.address import PostgresAddress
from facepipe.gallery.impostors import ImpostorModel
from facepipe.gallery.models import require_threshold
from facepipe.gallery.ranking import PersonDistance
from facepipe.images.photo_input import Photo, as_rgb
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256, read_image
from facepipe.quality import accepted_rows, assess
from facepipe.quality_rules import NamingRules, Reason
from facepipe.runtime.engines import RuntimeChoice, choose_runtime
from facepipe.weights.cards import WeightCard
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, load_card

_MUCH_REDUCED = 1 / 3


class PhotoWarning(Enum):
    """What is to be known of a photo's result. The values are stable codes for reports."""

    MUCH_REDUCED = "much_reduced"


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """One photo of a stream: its faces, or why it could not be processed.

    Attributes:
        path: The file.
        photo: RGB uint8 (h, w, 3), upright; None after an error.
        faces: As far as the pipeline went; None after an error.
        error: A sentence that names the file; None where all went well.
        scale: How large the photo was analyzed: the share of each side, up to 1.
    """

    path: Path
    photo: UInt8Array | None = None
    faces: Faces | None = None
    error: str | None = None
    scale: float = 1.0

    @property
    def warnings(self) -> tuple[PhotoWarning, ...]:
        """What is to be known of the result; nothing after an error."""
        found_nothing = self.faces is not None and not len(self.faces)
        return (PhotoWarning.MUCH_REDUCED,) if found_nothing and self.scale < _MUCH_REDUCED else ()

    @property
    def hint(self) -> str:
        """The warnings in words; empty without any."""
        if not self.warnings:
            return ""
        percent = round(100 * self.scale)
        return (
            f"analyzed at {percent}% of its size; --original-size or a larger --max-side finds smaller ones"
        )

    def without_photo(self) -> PhotoResult:
        """Return the same without its pixels, for keeping many."""
        return replace(self, photo=None)


@dataclass(frozen=True, slots=True)
class NamingOptions:
    """How faces are named by a gallery; see `Gallery.match`.

    Attributes:
        threshold_l2: Largest distance at which a face is named; None: the gallery's, or else the encoder's.
        min_margin_l2: By how much farther than the nearest person the next must be: a face between two
            people is nobody's.
        one_person_per_photo: Whether a person is given to one face at most.
        person_distance: What the distance to a person is.
    """

    threshold_l2: float | None = None
    min_margin_l2: float = 0.08
    one_person_per_photo: bool = True
    person_distance: PersonDistance = PersonDistance.NEAREST_OR_MEAN


class FacePipeline:
    """Finds, encodes and names faces. Load once, use for many photos; `with` closes the gallery.

    Threads may share one pipeline with its detector, encoder and gallery: any method may be called at any
    time, and answers are those of one thread; only `close` must come last. Forked processes may not share it:
    each loads its own.

    Args:
        detector: Finds the faces.
        encoder: Encodes them.
        gallery: Names them; None where nobody is to be named.
    """

    def __init__(self, detector: FaceDetector, encoder: FaceEncoder, gallery: Gallery | None = None) -> None:
        self.detector, self.encoder, self.gallery = detector, encoder, gallery

    @classmethod
    def load(
        cls,
        gallery: str | Path | PostgresAddress | None = None,
        *,
        create_gallery: bool = False,
        detector_weights: str = DEFAULT_DETECTOR,
        encoder_weights: str = DEFAULT_ENCODER,
        options: DetectorOptions | None = None,
        runtime: RuntimeChoice | None = None,
    ) -> Self:
        """Open the networks and, where one is given, the gallery.

        Args:
            gallery: Folder of the gallery, or a PostgreSQL URL.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the gallery."""
        if self.gallery is not None:
            self.gallery.close()

    def detect(self, photo: Photo) -> Faces:
        """Find the faces of a photo; takes and raises what `FaceDetector.detect` does."""
        return self.detector.detect(photo)

    def embed(self, photo: Photo) -> Faces:
        """Find the faces of a photo and encode them; a row of NaN where landmarks determine no alignment.

        Takes and raises what `detect` does.
        """
        photo = as_rgb(photo)
        faces = self.detector.detect(photo)
        alignments = fit_alignments(faces.landmarks)
        rows = np.flatnonzero([alignment is not None for alignment in alignments])
        crops = self.encoder.warp(photo, list(filter(None, alignments)))
        return faces.with_embeddings(self.encoder.encode(crops), rows)

    def embed_comparable(self, photo: UInt8Array, rules: NamingRules | None = None) -> Faces:
        """Return the faces of a photo that are good enough to be compared, with their embeddings.

        Args:
            photo: RGB uint8 (h, w, 3).
            rules: What such a face must have; the defaults of `NamingRules` when None.
        """
        faces = self.detector.detect(photo)
        assessment = assess(photo, faces, rules, crop=self.encoder.crop)
        accepted = faces.with_enrollable(assessment.enrollable).select(accepted_rows(assessment.reasons))
        return accepted.with_embeddings(self.encoder.encode(assessment.crops))

    def identify(
        self,
        photo: Photo,
        *,
        options: NamingOptions | None = None,
        rules: NamingRules | None = None,
        **earlier: Any,
    ) -> Faces:
        """Find the faces of a photo, encode those that are good enough to be compared, and name them.

        The others (see `NamingRules`) are unknown, without a distance, and their embeddings are rows of NaN.

        Args:
            photo: RGB uint8 (h, w, 3); or a Pillow image, a path, or the bytes of a file.
            options: How they are named; the defaults of `NamingOptions` when None.
            rules: Which are compared at all; the defaults of `NamingRules` when None.
            **earlier: Fields of `NamingOptions`, as earlier versions took them.

        Raises:
            UsageError: No photo, no gallery, a threshold outside 0..2, or neither one nor a default.
            PhotoError: Its file can't be read.
        """
        options = _naming_options(options, earlier)
        self.threshold_l2(options.threshold_l2)
        photo = as_rgb(photo)
        faces = self.detector.detect(photo)
        assessment = assess(photo, faces, rules, crop=self.encoder.crop)
        faces = faces.with_enrollable(assessment.enrollable)
        faces = faces.with_embeddings(
            self.encoder.encode(assessment.crops), accepted_rows(assessment.reasons)
        )
        return faces.with_matches(self.name(faces, assessment.reasons, options))

    def name(
        self, faces: Faces, reasons: Sequence[Reason | None], options: NamingOptions | None = None
    ) -> list[Match]:
        """Match the embeddings of faces with the gallery; those with a reason against it are not compared.

        Raises:
            UsageError: As `identify`.
        """
        return name_photos(self.require_gallery(), [(faces, reasons)], options or NamingOptions())[0]

    def identify_files(
        self,
        paths: AnyPath | Iterable[AnyPath],
        *,
        options: NamingOptions | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **earlier: Any,
    ) -> Iterator[PhotoResult]:
        """`identify` files, or a single one, in order; a photo that fails is reported and passed over.

        Raises:
            UsageError: As `identify`, before the first photo.
        """
        options = _naming_options(options, earlier)
        options = replace(options, threshold_l2=self.threshold_l2(options.threshold_l2))
        identify = partial(self.identify, options=options)
        return process_files(paths, identify, max_pixels, self.detector.options.scale_of)

    def threshold_l2(self, asked_l2: float | None = None) -> float:
        """Largest distance at which a face is named, for people without a threshold of their own.

        Raises:
            UsageError: No gallery, a threshold outside 0..2, or neither a threshold nor a default one.
        """
        return threshold_of(self.require_gallery(), asked_l2)

    def require_gallery(self) -> Gallery:
        """Return the gallery.

        Raises:
            UsageError: There is none.
        """
        if self.gallery is None:
            raise UsageError(
                "this pipeline was opened without a gallery: give its folder or URL to name faces"
            )
        return self.gallery


def threshold_of(gallery: Gallery, asked_l2: float | None) -> float:
    """Largest distance at which a gallery names a face, for people without a threshold of their own.

    Raises:
        UsageError: A threshold outside 0..2, or neither a threshold nor a default one.
    """
    threshold_l2 = gallery.default_threshold_l2 if asked_l2 is None else asked_l2
    if threshold_l2 is None:
        raise UsageError(f"{gallery.encoder.name} has no measured threshold: give one (--threshold)")
    require_threshold(threshold_l2)
    return threshold_l2


def name_photos(
    gallery: Gallery, photos: Sequence[tuple[Faces, Sequence[Reason | None]]], options: NamingOptions
) -> list[list[Match]]:
    """Match the faces of several photos with a gallery, at once; see `FacePipeline.name`.

    Args:
        gallery: Open.
        photos: Faces with their embeddings, and why each is not compared; None where it is.
        options: How they are named.
    """
    threshold_l2 = threshold_of(gallery, options.threshold_l2)
    compared = [_embeddings(faces)[accepted_rows(reasons)] for faces, reasons in photos]
    embeddings = np.concatenate([np.zeros((0, gallery.encoder.dimensions), np.float32), *compared])
    matches = iter(
        gallery.match(
            embeddings,
            threshold_l2=threshold_l2,
            min_margin_l2=options.min_margin_l2,
            one_person_per_photo=options.one_person_per_photo,
            person_distance=options.person_distance,
            photos=np.repeat(np.arange(len(photos)), [len(own) for own in compared]),
        )
    )
    return [
        [
            next(matches) if reason is None else Match(None, None, threshold_l2, reason=reason.value)
            for reason in reasons
        ]
        for _, reasons in photos
    ]


def _embeddings(faces: Faces) -> FloatArray:
    assert faces.embeddings is not None
    return faces.embeddings


def _naming_options(options: NamingOptions | None, earlier: dict[str, Any]) -> NamingOptions:
    if earlier:
        warnings.warn(
            f"{', '.join(earlier)}: fields of facepipe.NamingOptions now, given as `options`; these "
            "keywords go with the next version",
            DeprecationWarning,
            stacklevel=3,
        )
    return replace(options or NamingOptions(), **earlier)


def process_files(
    paths: AnyPath | Iterable[AnyPath],
    step: Callable[[UInt8Array], Faces],
    max_pixels: int = DEFAULT_MAX_PIXELS,
    scale_of: Callable[[tuple[int, int]], float] = lambda _: 1.0,
) -> Iterator[PhotoResult]:
    """Read each file and run `step` on it; a photo that fails is reported and passed over.

    Args:
        paths: The files, or one of them.
        step: Finds the faces of an RGB uint8 photo (h, w, 3).
        max_pixels: Larger photos fail.
        scale_of: How large `step` analyzes a photo of a width and height; see `PhotoResult.scale`.
    """
    for path in map(Path, each_path(paths)):
        try:
            photo = read_image(path, max_pixels=max_pixels)
            scale = scale_of((photo.shape[1], photo.shape[0]))
            faces = step(photo)
            faces = faces.with_ids(new_face_ids(photo_sha256(path), faces.boxes_xyxy))
            result = PhotoResult(path, photo, faces, scale=scale)
        except PhotoError as error:
            result = PhotoResult(path, error=str(error))
        except LandmarkError as error:
            result = PhotoResult(path, error=f"{path}: {error}")
        yield result


def known_identity(encoder: EncoderIdentity) -> EncoderIdentity:
    """Return a gallery's encoder with what its card knows of strangers, where such a card is installed."""
    card = installed_card(encoder)
    return encoder if card is None else card_identity(card)


def installed_card(encoder: EncoderIdentity) -> WeightCard | None:
    """Return the card of a gallery's encoder; None: no weight that makes the same vectors is installed."""
    try:
        card = load_card(encoder.name).card
        return card if card_identity(card).makes_same_vectors_as(encoder) else None
    except WeightsError:
        return None


def card_identity(card: WeightCard) -> EncoderIdentity:
    """Return what binds a gallery to an encoder. Without a measured threshold nobody is named by default.

    Raises:
        WeightsError: The card is not an encoder's, or its numbers on strangers are damaged.
    """
    if card.embedding is None:
        raise WeightsError(f"{card.name} is a {card.kind}, not an encoder")
    embedding = card.embedding
    try:
        impostors = ImpostorModel.from_dict(embedding.impostors) if embedding.impostors else None
    except DataError as error:
        raise WeightsError(f"card of {card.name}: {one_line(error)}: install the weight again") from error
    threshold_l2 = embedding.threshold_l2 or 0.0
    return EncoderIdentity(
        card.name,
        card.fingerprint,
        embedding.dimensions,
        threshold_l2,
        impostors,
        card.earlier_fingerprint,
    )
