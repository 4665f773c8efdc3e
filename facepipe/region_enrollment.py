"""Enrollment of people from the face regions that other programs have written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.enrollment import EnrollReport, Outcome, PersonPhoto, template_of
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.audit import FaceRemark, Remark, remarks_on_new
from facepipe.images.reading import DEFAULT_MAX_PIXELS, photo_sha256, read_image
from facepipe.pipeline import FacePipeline
from facepipe.quality import assess_face
from facepipe.quality_rules import EnrollRules, Reason
from facepipe.xmp.marks import Mark, MarkedPhoto

SAME_FACE_IOU = 0.3
"""A region that overlaps a face so far marks it, wherever their centres are: some mark whole heads."""
SAME_PIXELS_L2 = 0.01
"""Distance of two embeddings of the same pixels at most: they differ by rounding."""


def enroll_marked(
    pipeline: FacePipeline,
    photos: Iterable[MarkedPhoto],
    *,
    rules: EnrollRules | None = None,
    force: bool = False,
    keep_crops: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[EnrollReport]:
    """Store the faces that others have named in photos, one transaction a face; yields a report for each.

    Enrolling the same photos again changes nothing, also where their metadata has changed. A mark that
    contradicts another one, or under which no face is found, is refused. So is a face that breaks a rule, or
    looks like another person of the gallery when all other faces are stored, unless forced.

    Args:
        pipeline: With a gallery.
        photos: Of `facepipe.xmp.marks.read_marks`.
        rules: What a face must have.
        force: Take faces that break rules, and those that look like another person.
        keep_crops: Store the pictures of the faces too.
        max_pixels: Largest photo read.

    Raises:
        UsageError: The pipeline has no gallery.
        GalleryError: The gallery can't be written.
    """
    gallery = pipeline.gallery
    if gallery is None:
        raise UsageError("enrolling needs a gallery")
    doubtful: list[tuple[_Candidate, FaceRemark]] = []
    for photo in photos:
        for found in _MarkedFaces(pipeline, gallery, photo, rules, force, keep_crops).of_photo(max_pixels):
            if isinstance(found, EnrollReport):
                yield found
                continue
            report = _stored(gallery, found, force)
            if isinstance(report, FaceRemark):
                doubtful.append((found, report))
            else:
                yield report
    yield from _settled(gallery, doubtful)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A face that may be stored.

    Attributes:
        person: The photo and the person.
        template: The face.
        reasons: Codes of the rules that it breaks: it is forced.
        sentence: The same for people to read.
    """

    person: PersonPhoto
    template: NewTemplate
    reasons: tuple[str, ...]
    sentence: str


def _stored(gallery: Gallery, face: _Candidate, force: bool) -> EnrollReport | FaceRemark:
    """Store a face. One that looks like another person is not stored: answers the remark."""
    if _is_same_face_stored(gallery, face.person.name, face.template.embedding):
        return EnrollReport(face.person, Outcome.KNOWN, sentence="enrolled before, from the same pixels")
    warnings = remarks_on_new(gallery, face.person.name, face.template.embedding)
    like_other = next((warning for warning in warnings if warning.remark is Remark.LOOKS_LIKE_OTHER), None)
    if like_other is not None and not force:
        return like_other
    gallery.add(face.person.name, [face.template])
    return EnrollReport(face.person, Outcome.ENROLLED, face.reasons, face.sentence, warnings)


def _settled(gallery: Gallery, doubtful: list[tuple[_Candidate, FaceRemark]]) -> Iterator[EnrollReport]:
    """Store those that are nearer to their own person by now, until there are no more; refuse the rest."""
    count = None
    while doubtful and len(doubtful) != count:
        count, left = len(doubtful), []
        for face, _ in doubtful:
            report = _stored(gallery, face, force=False)
            if isinstance(report, FaceRemark):
                left.append((face, report))
            else:
                yield report
        doubtful = left
    for face, like_other in doubtful:
        sentence = f"{like_other}: a wrong name, or one person under two names; --force enrolls it"
        yield EnrollReport(face.person, Outcome.REFUSED, (like_other.remark.value,), sentence)


def _is_same_face_stored(gallery: Gallery, name: str, embedding: FloatArray) -> bool:
    if not gallery.knows(name):
        return False
    distances = np.linalg.norm(gallery.vectors(name) - embedding, axis=1)
    return bool(distances.min(initial=np.inf) <= SAME_PIXELS_L2)


@dataclass(frozen=True, slots=True)
class _MarkedFaces:
    """A photo and the arguments of `enroll_marked`."""

    pipeline: FacePipeline
    gallery: Gallery
    photo: MarkedPhoto
    rules: EnrollRules | None
    force: bool
    keep_crops: bool

    def of_photo(self, max_pixels: int) -> list[EnrollReport | _Candidate]:
        """Return the faces that may be stored, and reports on the marks of others."""
        try:
            return self._found(photo_sha256(self.photo.path), max_pixels)
        except PhotoError as error:
            return [self._report(mark, Outcome.FAILED, str(error)) for mark in self.photo.marks]

    def _found(self, digest: str, max_pixels: int) -> list[EnrollReport | _Candidate]:
        settled = [self._without_pixels(mark, digest) for mark in self.photo.marks]
        if None not in settled:
            return [report for report in settled if report is not None]
        image = read_image(self.photo.path, max_pixels=max_pixels)
        faces = self.pipeline.detect(image)
        return [
            self._of_face(mark, digest, image, faces, row) if report is None else report
            for mark, report, row in zip(
                self.photo.marks, settled, self._rows_of_marks(faces, image), strict=True
            )
        ]

    def _without_pixels(self, mark: Mark, digest: str) -> EnrollReport | None:
        if mark.doubt is not None:
            return self._report(mark, Outcome.REFUSED, mark.sentence, mark.doubt.value)
        if self.gallery.has_photo(digest, mark.name):
            return self._report(mark, Outcome.KNOWN, "enrolled before")
        return None

    def _rows_of_marks(self, faces: Faces, image: UInt8Array) -> list[int | None]:
        height, width = image.shape[:2]
        upright = [mark.region.in_upright_frame(self.photo.orientation) for mark in self.photo.marks]
        sides = np.array([region.sides for region in upright]) * (width, height, width, height)
        return rows_of_regions(sides.astype(np.float32), faces.boxes_xyxy)

    def _of_face(
        self, mark: Mark, digest: str, image: UInt8Array, faces: Faces, row: int | None
    ) -> EnrollReport | _Candidate:
        if row is None:
            where = "no face found where this name stands"
            return self._report(mark, Outcome.REFUSED, where, Reason.NO_FACE.value)
        assessment = assess_face(image, faces, row, self.rules, crop=self.pipeline.encoder.crop)
        reasons = tuple(refusal.reason.value for refusal in assessment.refusals)
        sentence = "; ".join(refusal.sentence for refusal in assessment.refusals)
        if assessment.face is None or (reasons and not self.force):
            return self._report(mark, Outcome.REFUSED, sentence, *reasons)
        template = template_of(
            self.pipeline, self.photo.path, digest, faces, assessment.face, self.keep_crops
        )
        return _Candidate(self._person(mark), template, reasons, sentence)

    def _report(self, mark: Mark, outcome: Outcome, sentence: str, *reasons: str) -> EnrollReport:
        return EnrollReport(self._person(mark), outcome, reasons, sentence)

    def _person(self, mark: Mark) -> PersonPhoto:
        return PersonPhoto(mark.name, self.photo.path)


def rows_of_regions(regions_xyxy: FloatArray, boxes_xyxy: FloatArray) -> list[int | None]:
    """Return the face that each region marks: the largest overlaps first, a face for one region at most.

    Args:
        regions_xyxy: float32 (r, 4), in pixels of the upright photo; a region may be no number.
        boxes_xyxy: float32 (n, 4), of the faces.

    Returns:
        r rows of faces; None: the region marks none of them.
    """
    regions, faces = regions_xyxy[:, None], boxes_xyxy[None]
    overlaps = np.nan_to_num(iou(regions, boxes_xyxy))
    are_concentric = _is_centre_inside(faces, regions) & _is_centre_inside(regions, faces)
    marks = (overlaps >= SAME_FACE_IOU) | are_concentric
    rows: list[int | None] = [None] * len(regions_xyxy)
    taken = set()
    for region, face in sorted(np.argwhere(marks).tolist(), key=lambda pair: -overlaps[pair[0], pair[1]]):
        if rows[region] is None and face not in taken:
            rows[region] = face
            taken.add(face)
    return rows


def _is_centre_inside(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> BoolArray:
    """Whether the centres of boxes (..., 4) lie in others (..., 4)."""
    centres = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    is_right_below, is_left_above = centres >= others_xyxy[..., :2], centres <= others_xyxy[..., 2:]
    inside: BoolArray = np.all(is_right_below & is_left_above, axis=-1)
    return inside
