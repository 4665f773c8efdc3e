"""What passes between a batch and its job file: tasks, what came of them, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from facepipe.core.faces import Faces, FloatArray
from facepipe.pipeline import PhotoResult
from facepipe.quality import Reason

PREVIEW = -1
"""Number of the picture that shows the whole photo; the others have their face's."""


@dataclass(frozen=True, slots=True)
class Task:
    """A photo to be looked at; `id` is its row in the job file."""

    id: int
    path: Path


@dataclass(frozen=True, slots=True)
class PhotoAnalysis:
    """What looking at a photo gave: all that naming and telling need, without the pixels.

    Attributes:
        sha256: Of the file.
        size_wh: Width and height of the upright photo in pixels.
        faces: With `enrollable` and vectors, rows of NaN where a face is not to be compared.
        reasons: Why a face is not to be compared; None where it is.
        pictures: WebP files: of each face by its row, of the photo under `PREVIEW`.
    """

    sha256: str
    size_wh: tuple[int, int]
    faces: Faces
    reasons: tuple[Reason | None, ...]
    pictures: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task that has ended: with a look, or with an error that names the file.

    Attributes:
        passing: The error may pass without a change of the file: the next command looks again.
    """

    task: Task
    look: PhotoAnalysis | None = None
    error: str | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A photo of the last command that has been dealt with.

    Attributes:
        id: Row in the job file.
        result: Its faces with names, or the error.
        size_wh: Width and height of the upright photo; None after an error.
    """

    id: int
    result: PhotoResult
    size_wh: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Stranger:
    """A face near nobody that enrolment would take: its photo, its row there, and its vector (d,)."""

    photo_id: int
    photo_sha256: str
    face: int
    vector: FloatArray


@dataclass(frozen=True, slots=True)
class Product:
    """Files made of one photo's result.

    Attributes:
        made_of: Names that result.
        names: Of the files, relative to the folder of their kind; see `facepipe.batch.products`. None where
            there was nothing to make.
    """

    made_of: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How the report was last written; see `facepipe.batch.page.write_report`."""

    group_within_l2: float
    paths: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Photos of the last command by state, and the faces of those that are done.

    Attributes:
        newly_failed: Those of the failed whose errors no earlier command has told.
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
