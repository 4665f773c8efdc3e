"""What a photo is on its way through a batch, and what the job file holds of it.

A `PhotoTask` is read into an `OpenedPhoto`; its faces are a `PhotoAnalysis`, which gains columns until it is
saved (or a `FailedPhoto` is), and comes back as a `PhotoRecord`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from facepipe.align import Alignment
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.decoding import ReducedPhoto
from facepipe.images.decoding_memory import PhotoMemory
from facepipe.images.reading import PhotoSource
from facepipe.pipeline import PhotoResult
from facepipe.quality_rules import Reason

PREVIEW = -1
"""Number of the picture that shows the whole photo; the others have their face's."""


@dataclass(frozen=True, slots=True)
class PhotoTask:
    """A photo to be analyzed.

    Attributes:
        id: Its row in the job file.
        path: Where it is.
        content: Bytes of its file, for a machine that can't read it; None: it is read from its path.
    """

    id: int
    path: Path
    content: bytes | None = field(default=None, repr=False)

    @property
    def source(self) -> PhotoSource:
        """What it is read from."""
        return self.path if self.content is None else self.content


@dataclass(frozen=True, slots=True, eq=False)
class OpenedPhoto:
    """A photo file that was read.

    Attributes:
        task: Which it is.
        sha256: Of the file's bytes.
        photo: Its pixels.
        memory: Counts what they take, until it is released.
    """

    task: PhotoTask
    sha256: str
    photo: ReducedPhoto
    memory: PhotoMemory


def _no_crops() -> UInt8Array:
    return np.zeros((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class PhotoAnalysis:
    """The faces of a photo without its pixels: found, then cropped, encoded and named.

    Attributes:
        task: Which photo it is.
        sha256: Of the file's bytes.
        size_wh: Width and height of the upright photo in pixels.
        faces: In pixels of the whole photo; with `enrollable` once they are cropped, embeddings (rows of NaN
            where a face is not to be compared) once they are encoded, and matches once they are named.
        alignments: Of `align_or_reject`, for the crops.
        reasons: Why each face is not to be compared; None where it is. Empty before they are cropped.
        crops: uint8 (m, S, S, 3) of the faces to be compared, until they are encoded.
        pictures: JPEGs: of each face by its row, of the photo under `PREVIEW`.
        taken_at: When the photo was taken; see `facepipe.images.pixels.taken_at`.
    """

    task: PhotoTask
    sha256: str
    size_wh: tuple[int, int]
    faces: Faces
    alignments: tuple[Alignment | Reason, ...] = ()
    reasons: tuple[Reason | None, ...] = ()
    crops: UInt8Array = field(default_factory=_no_crops)
    pictures: dict[int, bytes] = field(default_factory=dict)
    taken_at: str | None = None


@dataclass(frozen=True, slots=True)
class FailedPhoto:
    """A photo that could not be analyzed.

    Attributes:
        task: Which it is.
        error: A sentence that names the file.
        is_temporary: The error may pass without a change of the file: the next command tries again.
    """

    task: PhotoTask
    error: str
    is_temporary: bool = False


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """The result of a photo as the job file has it.

    Attributes:
        id: Row in the job file.
        result: Its faces with names, or the error.
        size_wh: Width and height of the upright photo; None after an error.
    """

    id: int
    result: PhotoResult
    size_wh: tuple[int, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class UnknownFaceRow:
    """A face near nobody that enrollment would take: its photo, its row there, and its embedding (d,)."""

    face_id: str
    photo_id: int
    photo_sha256: str
    row: int
    embedding: FloatArray


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Files written for one photo's result.

    Attributes:
        source_hash: Identifies that result; see `facepipe.batch.results.source_hash`.
        names: Of the files, relative to the folder of their kind; see `facepipe.batch.output_files`. Empty
            where there was nothing to write.
    """

    source_hash: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How the report is written.

    Attributes:
        group_within_l2: Unknown faces within this Euclidean distance are shown as one person's; see
            `facepipe.gallery.clustering.group_faces`.
        paths: Name the photos by their paths below their common folder, and link to them, relative to the
            report. Else they have numbers only.
    """

    group_within_l2: float
    paths: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Photos of the last command by state, and the faces of those that are done.

    Attributes:
        newly_failed: Those of the failed whose errors no earlier command has reported.
    """

    waiting: int
    done: int
    failed: int
    newly_failed: int
    faces: int
    known: int

    @property
    def total(self) -> int:
        """All photos."""
        return self.waiting + self.done + self.failed


@dataclass(frozen=True, slots=True)
class KnownFace:
    """A face that a photo had when it was analyzed before."""

    id: str
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class StoredFaces:
    """The n faces of a photo.

    Attributes:
        faces: With embeddings, matches and `enrollable`.
        reasons: Why each is not compared; None where it is.
        ids: Of the faces.
    """

    faces: Faces
    reasons: tuple[Reason | None, ...]
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnalyzedPhoto:
    """A photo of the command that has been dealt with, with its faces as they are stored.

    Attributes:
        id: Row in the job file.
        path: Where it is.
        sha256: Of its content; None after an error.
        size_wh: Width and height of the upright photo; None after an error.
        taken_at: When it was taken; see `facepipe.images.pixels.taken_at`.
        error: Why it could not be analyzed.
        faces: None after an error.
    """

    id: int
    path: Path
    sha256: str | None
    size_wh: tuple[int, int] | None
    taken_at: str | None
    error: str | None
    faces: StoredFaces | None
