"""Requests and answers of the API; the forms of docs/results.md where that has them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from facepipe.core.faces import Faces, MatchStatus
from facepipe.gallery import Person, Template
from facepipe.gallery.audit import FaceRemark
from facepipe.gallery.matching import PersonAt
from facepipe.gallery.names import NAME_LENGTH_MAX
from facepipe.reports.records import face_record

Box = Annotated[
    list[float],
    Meta(min_length=4, max_length=4, description="Left, top, right, bottom in pixels of the upright photo."),
]
Distance = Annotated[
    float, Meta(description="Euclidean distance of unit vectors, 0 (alike) to 2.", ge=0, le=2)
]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX, examples=["Ada Lovelace"])]
Landmarks = Annotated[
    list[list[float]],
    Meta(description="Left eye, right eye, nose, left and right corner of the mouth."),
]


class RunnerUp(Struct, frozen=True):
    """The next nearest other person."""

    name: str
    distance_l2: float


class FaceRecord(Struct, frozen=True, kw_only=True):
    """A face of a photo: where it is, whose it is, and why it has that name or none."""

    box_xyxy: Box
    score: float
    landmarks: Landmarks
    name: str | None = None
    distance_l2: float | None = None
    threshold_l2: float | None = None
    runner_up: RunnerUp | None = None
    status: MatchStatus | None = None
    candidate: str | None = None
    reason: str | None = None


class EncodedFace(FaceRecord, frozen=True, kw_only=True):
    """A face with its embedding; null where its landmarks determine no alignment."""

    embedding: list[float] | None


class PhotoFaces(Struct, frozen=True):
    """The faces of a photo, most confident first."""

    photo: str
    error: str | None
    faces: list[FaceRecord]
    warnings: list[str]


class PhotoEmbeddings(Struct, frozen=True):
    """The faces of a photo with their embeddings."""

    photo: str
    error: str | None
    faces: list[EncodedFace]
    warnings: list[str]
    encoder: str


class NearPerson(Struct, frozen=True):
    """A person at a distance."""

    name: str
    distance_l2: float


class SearchedFace(Struct, frozen=True):
    """A face and the people nearest to it; nobody where it is not good enough to be compared."""

    box_xyxy: Box
    score: float
    reason: str | None
    people: list[NearPerson]


class PhotoSearch(Struct, frozen=True):
    """The faces of a photo, most confident first, each with the people nearest to it."""

    faces: list[SearchedFace]


class Verification(Struct, frozen=True):
    """Whether two photos show one person; see docs/results.md, `verify --json`."""

    photos: list[str]
    same_person: bool
    distance_l2: float
    threshold_l2: float
    strangers_share: float | None
    boxes_xyxy: list[Box]
    comparisons: int


class PersonRecord(Struct, frozen=True):
    """A person of the gallery."""

    name: str
    photos: int
    first_added_at: str
    last_added_at: str
    threshold_l2: float | None

    @classmethod
    def of(cls, person: Person) -> PersonRecord:
        """Return what is told of a person."""
        return cls(
            person.name,
            person.template_count,
            person.first_added_at,
            person.last_added_at,
            person.threshold_l2,
        )


class PeoplePage(Struct, frozen=True):
    """Some of the people, by name, and how many there are in all."""

    total: int
    people: list[PersonRecord]


class PersonPhoto(Struct, frozen=True):
    """An enrolled face of a person."""

    id: int
    added_at: str
    box_xyxy: Box | None
    sharpness: float | None
    photo_sha256: str | None

    @classmethod
    def of(cls, template: Template) -> PersonPhoto:
        """Return what is told of a template."""
        return cls(
            template.id,
            template.added_at,
            template.box_xyxy and list(template.box_xyxy),
            template.quality,
            template.photo_sha256,
        )


class PersonDetails(PersonRecord, frozen=True):
    """A person and their enrolled faces, oldest first."""

    faces: list[PersonPhoto]


class EnrollmentWarning(Struct, frozen=True):
    """What is odd about an enrolled face beside the gallery's others; `name` is the person it looks like."""

    code: str
    name: str | None
    distance_l2: float | None
    sentence: str

    @classmethod
    def of(cls, remark: FaceRemark) -> EnrollmentWarning:
        """Return what is told of a remark."""
        return msgspec.convert(remark.to_dict(), cls)


class Enrollment(Struct, frozen=True):
    """What became of a photo of a person; see docs/results.md, `enroll --json`."""

    name: str
    outcome: Literal["enrolled", "known"]
    id: int | None
    reasons: list[str]
    sentence: str
    warnings: list[EnrollmentWarning]


class PersonChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a person; what is left out stays."""

    name: Name | UnsetType = UNSET
    threshold_l2: Distance | UnsetType | None = UNSET


class Merge(Struct, frozen=True, forbid_unknown_fields=True):
    """Who gets a person's faces."""

    into: Name


class Erased(Struct, frozen=True):
    """How many faces were erased, or changed hands."""

    faces: int


class Thresholds(Struct, frozen=True):
    """Largest distances at which a face is named."""

    applied_l2: float | None
    gallery_l2: float | None
    min_margin_l2: float
    people: dict[str, float]


class ThresholdChange(Struct, frozen=True, forbid_unknown_fields=True):
    """The gallery's own threshold; null: the encoder's, which depends on the gallery's size."""

    gallery_l2: Distance | None


class GalleryFigures(Struct, frozen=True):
    """The gallery in figures."""

    encoder: str
    dimensions: int
    people: int
    faces: int
    unknown_faces: int
    generation: int
    threshold_l2: float | None
    size_bytes: int
    read_only: bool
    encrypted: bool


class Job(Struct, frozen=True):
    """A batch in one of the server's library folders; counts are null while they are not known.

    At work, another process has it: a batch, or the page.
    """

    name: str
    state: Literal["working", "idle", "unreadable"]
    photos: int | None = None
    done: int | None = None
    failed: int | None = None
    faces: int | None = None


class Jobs(Struct, frozen=True):
    """The batches that the server was started with."""

    jobs: list[Job]


def face_records(faces: Faces) -> list[FaceRecord]:
    """Return the faces of a photo as records."""
    return [msgspec.convert(face_record(faces, row), FaceRecord) for row in range(len(faces))]


def near_people(people: list[PersonAt]) -> list[NearPerson]:
    """Return people with rounded distances."""
    return [NearPerson(person.name, round(person.distance_l2, 4)) for person in people]
