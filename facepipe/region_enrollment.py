"""Enrollment of people from the face regions that other programs have written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.enrollment import EnrollReport, Outcome, PersonPhoto, template_of
from facepipe.gallery import Gallery
from facepipe.gallery.audit import Remark, remarks_on_new
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

    Enrolling the same photo again changes nothing, also where its metadata has changed. A mark that
    contradicts another one, or under which no face is found, is refused. So is a face that looks like another
    person of the gallery, or breaks a rule, unless forced.

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
    for photo in photos:
        enrollment = _PhotoEnrollment(pipeline, gallery, photo, rules, force, keep_crops)
        try:
            yield from enrollment.enroll(max_pixels)
        except PhotoError as error:
            for mark in photo.marks:
                yield EnrollReport(PersonPhoto(mark.name, photo.path), Outcome.FAILED, sentence=str(error))


@dataclass(frozen=True, slots=True)
class _PhotoEnrollment:
    """A photo and the arguments of `enroll_marked`."""

    pipeline: FacePipeline
    gallery: Gallery
    photo: MarkedPhoto
    rules: EnrollRules | None
    force: bool
    keep_crops: bool

    def enroll(self, max_pixels: int) -> list[EnrollReport]:
        digest = photo_sha256(self.photo.path)
        known = [self.gallery.has_photo(digest, mark.name) for mark in self.photo.marks]
        reports = list(map(self._report_without_pixels, self.photo.marks, known))
        if None in reports:
            image = read_image(self.photo.path, max_pixels=max_pixels)
            faces = self.pipeline.detect(image)
            rows = self._rows_of_marks(faces, image)
            for at, row in enumerate(rows):
                if reports[at] is None:
                    reports[at] = self._enroll(self.photo.marks[at], digest, image, faces, row)
        return [report for report in reports if report is not None]

    def _report_without_pixels(self, mark: Mark, is_known: bool) -> EnrollReport | None:
        if mark.doubt is not None:
            return self._report(mark, Outcome.REFUSED, (mark.doubt.value,), mark.sentence)
        return self._report(mark, Outcome.KNOWN, (), "enrolled before") if is_known else None

    def _rows_of_marks(self, faces: Faces, image: UInt8Array) -> list[int | None]:
        height, width = image.shape[:2]
        upright = [mark.region.in_upright_frame(self.photo.orientation) for mark in self.photo.marks]
        sides = np.array([region.sides for region in upright]) * (width, height, width, height)
        return rows_of_regions(sides.astype(np.float32), faces.boxes_xyxy)

    def _enroll(
        self, mark: Mark, digest: str, image: UInt8Array, faces: Faces, row: int | None
    ) -> EnrollReport:
        if row is None:
            return self._report(
                mark, Outcome.REFUSED, (Reason.NO_FACE.value,), "no face found where this name stands"
            )
        crop = self.pipeline.encoder.crop
        assessment = assess_face(image, faces, row, self.rules, crop=crop)
        reasons = tuple(refusal.reason.value for refusal in assessment.refusals)
        sentence = "; ".join(refusal.sentence for refusal in assessment.refusals)
        if assessment.face is None or (reasons and not self.force):
            return self._report(mark, Outcome.REFUSED, reasons, sentence)
        template = template_of(
            self.pipeline, self.photo.path, digest, faces, assessment.face, self.keep_crops
        )
        if self._is_same_face_stored(mark.name, template.embedding):
            return self._report(mark, Outcome.KNOWN, (), "enrolled before, from the same pixels")
        warnings = remarks_on_new(self.gallery, mark.name, template.embedding)
        others = [warning for warning in warnings if warning.remark is Remark.LOOKS_LIKE_OTHER]
        if others and not self.force:
            said = f"{others[0]}: a wrong name, or one person under two names; --force enrolls it"
            return self._report(mark, Outcome.REFUSED, (others[0].remark.value,), said)
        self.gallery.add(mark.name, [template])
        return EnrollReport(self._person(mark), Outcome.ENROLLED, reasons, sentence, warnings)

    def _is_same_face_stored(self, name: str, embedding: FloatArray) -> bool:
        if not self.gallery.knows(name):
            return False
        distances = np.linalg.norm(self.gallery.vectors(name) - embedding, axis=1)
        return bool(distances.min(initial=np.inf) <= SAME_PIXELS_L2)

    def _report(self, mark: Mark, outcome: Outcome, reasons: Sequence[str], sentence: str) -> EnrollReport:
        return EnrollReport(self._person(mark), outcome, tuple(reasons), sentence)

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
