"""Encoders, people and templates as the gallery has them, and the checks of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from numbers import Real

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import FloatArray
from facepipe.gallery.address import GalleryAddress
from facepipe.gallery.impostors import DEFAULT_FPIR, FARTHEST_L2, ImpostorModel

UNIT_LENGTH_TOLERANCE = 1e-3
"""Largest | |v| - 1 | of a stored or queried vector: float32 rounding is 1e-6, half precision 5e-4."""

SOURCE_LENGTH_MAX = 4096
"""Characters of a photo's path: Linux allows as many bytes."""

CROP_BYTES_MAX = 1 << 20
"""Of the encoded picture of one face: a crop of 112 x 112 pixels has some 20 KB as PNG."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """The encoder that a gallery's embeddings come from; those of another can't be compared with them.

    Attributes:
        name: Of the weight, for people to read.
        fingerprint: Another one whenever the embeddings would be others.
        dimensions: Length of an embedding.
        threshold_l2: Default largest Euclidean distance at which a face is named; 0: not measured.
        impostors: How near strangers come, so that the default can depend on the gallery's size; None: not
            measured. Not stored in galleries: the encoder's present card decides.
        earlier_fingerprint: Of the same encoder, in galleries that are older than its `fingerprint`; None:
            there is no other.
    """

    name: str
    fingerprint: str
    dimensions: int
    threshold_l2: float
    impostors: ImpostorModel | None = None
    earlier_fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.fingerprint or self.dimensions < 1:
            raise GalleryError(f"an encoder needs a name, a fingerprint and dimensions >= 1, got {self}")
        require_threshold(self.threshold_l2)

    def makes_same_vectors_as(self, other: EncoderIdentity) -> bool:
        """Return whether embeddings of both may be compared."""
        return self.dimensions == other.dimensions and (
            self.fingerprint in (other.fingerprint, other.earlier_fingerprint)
            or self.earlier_fingerprint == other.fingerprint
        )

    def default_threshold_l2(self, templates: int, people: int) -> float:
        """Largest distance at which a face is named in a gallery of this size; 0: none was measured.

        A face is compared with each template, and with the mean of each person who has several. The number of
        comparisons is bounded by the two counts, and they are taken for independent, also those with one
        person: docs/research/experiments.md has the measurements.
        """
        if self.impostors is None:
            return self.threshold_l2
        means = max(0, min(people, templates - people))
        return self.impostors.threshold_l2(DEFAULT_FPIR, templates + means)

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint}, {self.dimensions}-d)"


@dataclass(frozen=True, slots=True, eq=False)
class NewTemplate:
    """A face to be enrolled.

    Attributes:
        embedding: float32 (d,), unit length.
        source: Path of the photo, as the user would recognise it.
        box_xyxy: The face in pixels of the upright photo: left, top, right, bottom.
        quality: Any finite number, larger is better.
        photo_sha256: Content hash of the photo file, 64 lower-case hex digits.
        added_at: ISO 8601 time; None: the time of adding, in UTC.
        crop: The face as an encoded picture (PNG, WebP or JPEG), stored as it is; None: not to be kept.

    Raises:
        GalleryError: A field is of another form.
    """

    embedding: FloatArray
    source: str | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    quality: float | None = None
    photo_sha256: str | None = None
    added_at: str | None = None
    crop: bytes | None = None

    def __post_init__(self) -> None:
        if self.box_xyxy is not None and not (len(self.box_xyxy) == 4 and np.isfinite(self.box_xyxy).all()):
            raise GalleryError(f"expected box_xyxy of four finite numbers, got {self.box_xyxy}")
        if self.quality is not None and not np.isfinite(self.quality):
            raise GalleryError(f"expected a finite quality, got {self.quality}")
        if self.photo_sha256 is not None and not _SHA256.fullmatch(self.photo_sha256):
            raise GalleryError(f"expected photo_sha256 of 64 hex digits, got {self.photo_sha256!r:.80}")
        if self.added_at is not None:
            _require_time(self.added_at)
        if self.source is not None and not (
            len(self.source) <= SOURCE_LENGTH_MAX and "\0" not in self.source
        ):
            raise GalleryError(
                f"expected a source of at most {SOURCE_LENGTH_MAX} characters without a zero byte, "
                f"got {len(self.source)} of them"
            )
        if self.crop is not None and not 0 < len(self.crop) <= CROP_BYTES_MAX:
            raise GalleryError(f"expected a crop of at most {CROP_BYTES_MAX} bytes, got {len(self.crop)}")


@dataclass(frozen=True, slots=True)
class Template:
    """An enrolled face, without its embedding.

    Attributes:
        id: Explicit, never used again after removal.
        person: Name.
        source: Path of the photo.
        box_xyxy: The face in pixels of the upright photo.
        quality: As given when it was added.
        photo_sha256: Content hash of the photo file.
        added_at: ISO 8601, UTC.
    """

    id: int
    person: str
    source: str | None
    box_xyxy: tuple[float, float, float, float] | None
    quality: float | None
    photo_sha256: str | None
    added_at: str

    def as_new_template(self, embedding: FloatArray, crop: bytes | None) -> NewTemplate:
        """Return the same face with its embedding and picture, to be stored elsewhere."""
        return NewTemplate(
            embedding, self.source, self.box_xyxy, self.quality, self.photo_sha256, self.added_at, crop
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnknownFace:
    """A face remembered without a name, until it is given one or forgotten.

    Attributes:
        id: Explicit, never used again after removal; not to be confused with a template's.
        embedding: float32 (d,), unit length.
        source: Path of the photo.
        box_xyxy: The face in pixels of the upright photo.
        quality: As given when it was added.
        photo_sha256: Content hash of the photo file.
        added_at: ISO 8601, UTC.
    """

    id: int
    embedding: FloatArray
    source: str | None
    box_xyxy: tuple[float, float, float, float] | None
    quality: float | None
    photo_sha256: str | None
    added_at: str

    def as_new_template(self, crop: bytes | None) -> NewTemplate:
        """Return the same face, to be enrolled."""
        return NewTemplate(
            self.embedding, self.source, self.box_xyxy, self.quality, self.photo_sha256, self.added_at, crop
        )


@dataclass(frozen=True, slots=True)
class Person:
    """An enrolled person.

    Attributes:
        name: Unique in the gallery.
        template_count: At least 1.
        first_added_at: ISO 8601, UTC.
        last_added_at: ISO 8601, UTC.
        threshold_l2: Largest distance at which a face gets this name; None: the gallery's.
    """

    name: str
    template_count: int
    first_added_at: str
    last_added_at: str
    threshold_l2: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PersonContents:
    """The templates and the threshold of one person, without ids."""

    templates: Sequence[NewTemplate]
    threshold_l2: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """Everything that one gallery may give to another, without ids.

    Attributes:
        people: By name.
        unknown: Faces without a name.
        threshold_l2: The gallery's own.
    """

    people: Mapping[str, PersonContents]
    unknown: Sequence[NewTemplate] = ()
    threshold_l2: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a gallery.

    Attributes:
        code: Stable, for programs: database, checksum, reference, vector, name, threshold, duplicate,
            encoder, key, index or lost.
        message: For people.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """A gallery in figures.

    Attributes:
        path: The folder or the address of the database.
        encoder: Whose embeddings are stored, with the threshold in use.
        schema_version: Of the tables.
        generation: Number of changes so far.
        people: How many.
        templates: How many, of all people.
        unknown_faces: How many remembered without a name.
        threshold_l2: The gallery's own; None: the encoder's applies.
        size_bytes: Of all the gallery's files, or its tables in the database.
        read_only: The file or its folder may not be written.
        encrypted: Names, paths, vectors and pictures are ciphertext.
        index_is_current: The index file fits the truth, or there is none by design (encrypted); where it
            doesn't, the next use brings it up to date.
    """

    path: GalleryAddress
    encoder: EncoderIdentity
    schema_version: int
    generation: int
    people: int
    templates: int
    unknown_faces: int
    threshold_l2: float | None
    size_bytes: int
    read_only: bool
    encrypted: bool
    index_is_current: bool


def require_vectors(vectors: npt.NDArray[np.generic], dimensions: int, what: str) -> None:
    """Check that `vectors` is float32 (n, dimensions), finite, each of unit length.

    Raises:
        GalleryError: It is not; the message begins with `what` and names the first bad row.
    """
    if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != dimensions:
        raise GalleryError(
            f"{what}: expected float32 vectors (n, {dimensions}), got {vectors.dtype} {vectors.shape}"
        )
    floats = vectors.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", floats, floats))
    # Written so that NaN and infinity count as bad too.
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_LENGTH_TOLERANCE))
    if len(bad):
        raise GalleryError(
            f"{what}: vector {bad[0]} has length {lengths[bad[0]]:.4g}, expected 1 (normalise it first)"
        )


def is_threshold(value: object) -> bool:
    """Return whether a value is a distance that two unit vectors can have: a number in 0..2."""
    return isinstance(value, Real) and 0 <= float(value) <= FARTHEST_L2


def require_threshold(threshold_l2: float, what: str = "threshold") -> None:
    """Check a distance limit.

    Raises:
        UsageError: It is not within 0..2; the message begins with `what`.
    """
    if not is_threshold(threshold_l2):
        raise UsageError(f"{what}: expected 0..2, the distances of unit vectors, got {threshold_l2}")


def _require_time(text: str) -> None:
    try:
        if not text.isascii():  # Python takes any sign between date and time, even one that is no character
            raise ValueError("not ASCII")
        datetime.fromisoformat(text)
    except ValueError as error:
        raise GalleryError(f"expected an ISO 8601 time, got {text!r:.80}") from error
