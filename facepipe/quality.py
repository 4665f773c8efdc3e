"""Quality of faces: measures, the assessment of a photo's faces, and its main face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.align import Alignment, fit_alignments, warp_faces
from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.pose import head_pose
from facepipe.quality_rules import EnrollRules, Measures, NamingRules, Reason, Refusal, refusals

MEASURED_CROP = ("arcface_112", 112)
"""Landmark template and side in pixels of the crops that are measured."""

_INNER_FACE = (slice(28, 108), slice(24, 88))  # rows and columns from brow to chin: no hair, no background
_BLUR_SIGMA_PX = 1.0
_DIRECTIONS_RAD = np.deg2rad([0.0, 45.0, 90.0, 135.0])
_COS, _SIN = np.cos(_DIRECTIONS_RAD), np.sin(_DIRECTIONS_RAD)


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """Which faces of a photo are good enough to be compared with a gallery, and their crops.

    Attributes:
        reasons: Why each of n faces is not to be compared; None where it is.
        enrollable: bool (n,): which of them break no rule for enrollment either.
        crops: RGB uint8 (m, S, S, 3), aligned, of the m faces to be compared, in their order.
    """

    reasons: tuple[Reason | None, ...]
    enrollable: BoolArray
    crops: UInt8Array


def accepted_rows(reasons: Sequence[object]) -> npt.NDArray[np.intp]:
    """Return the rows of the faces without a reason against them."""
    return np.array([row for row, reason in enumerate(reasons) if not isinstance(reason, Reason)], np.intp)


def needed_scale(alignments: Sequence[Alignment | Reason], crop: tuple[str, int]) -> float:
    """Return the share of a photo's sides, 0..1, at which no face has fewer pixels than its crop.

    A copy of the photo with that share, or more, enlarges no face. Copies that JPEGs are decoded to move
    embeddings by 0.05 in the median, at any share (docs/batch.md).

    Args:
        alignments: As `align_or_reject` gives them; rejected faces need no pixels.
        crop: Landmark template and side in pixels, as `assess` takes them.
    """
    scales = [found.scale(*crop) for found in alignments if isinstance(found, Alignment)]
    return min(1.0, max(scales, default=0.0))


def align_or_reject(faces: Faces, rules: NamingRules) -> list[Alignment | Reason]:
    """Return the alignment of each face to be compared by its score, size and pose; else the reason."""
    return [_align_or_reject(faces.select([row]), rules) for row in range(len(faces))]


def _align_or_reject(face: Faces, rules: NamingRules) -> Alignment | Reason:
    if face.scores[0] < rules.min_score:
        return Reason.LOW_SCORE
    if face.sizes_px[0] < rules.min_size_px:
        return Reason.TOO_SMALL
    (alignment,) = fit_alignments(face.landmarks)
    if alignment is None:
        return Reason.NO_ALIGNMENT
    return Reason.TURNED_AWAY if alignment.misfit > rules.max_misfit else alignment


def assess(
    photo: UInt8Array,
    faces: Faces,
    rules: NamingRules | None = None,
    *,
    crop: tuple[str, int] = MEASURED_CROP,
    alignments: Sequence[Alignment | Reason] | None = None,
    reduction: float = 1.0,
) -> Assessment:
    """Measure the faces of a photo, and select those that are good enough to be compared with a gallery.

    Small and blurred faces, faces turned away, and what is hardly a face, have embeddings near many people's:
    to leave them unknown costs little and avoids most wrong names.

    Args:
        photo: RGB uint8 (H, W, 3), or a reduced copy of it.
        faces: In pixels of the photo itself.
        rules: What a face must have; the defaults of `NamingRules` when None.
        crop: Landmark template and side in pixels of the crops that are wanted.
        alignments: Of `align_or_reject` with the same rules; fitted when None.
        reduction: Pixels of the photo per pixel of the copy.
    """
    rules = rules or NamingRules()
    found = align_or_reject(faces, rules) if alignments is None else alignments
    aligned = [alignment for alignment in found if isinstance(alignment, Alignment)]
    in_copy = [alignment.in_reduced_copy(reduction) for alignment in aligned]
    crops, measured_crops = _wanted_and_measured_crops(photo, in_copy, crop)
    rows = accepted_rows(found)
    measures = measure(measured_crops, faces.select(rows), aligned)
    is_sharp = np.array([face.sharpness >= rules.min_sharpness for face in measures], np.bool_)
    reasons = [reason if isinstance(reason, Reason) else None for reason in found]
    for row in rows[~is_sharp]:
        reasons[row] = Reason.TOO_BLURRED
    enrollable = np.zeros(len(faces), np.bool_)
    enrollable[rows] = [face.is_enrollable() for face in measures]
    return Assessment(tuple(reasons), enrollable, crops[is_sharp])


@dataclass(frozen=True, slots=True, eq=False)
class MainFace:
    """The face that a photo is of, measured.

    Attributes:
        row: Of the face among those of the photo; see `main_face`.
        measures: Its quality.
        crop: RGB uint8 (S, S, 3), aligned.
    """

    row: int
    measures: Measures
    crop: UInt8Array


@dataclass(frozen=True, slots=True, eq=False)
class MainFaceAssessment:
    """The face of a photo that is to be enrolled, and what speaks against it.

    Attributes:
        face: None where the photo has no face that can be aligned.
        refusals: Every rule it breaks; empty when it is good to enroll.
    """

    face: MainFace | None
    refusals: tuple[Refusal, ...]


def assess_main_face(
    photo: UInt8Array,
    faces: Faces,
    rules: EnrollRules | None = None,
    *,
    crop: tuple[str, int] = MEASURED_CROP,
) -> MainFaceAssessment:
    """Measure the main face of a photo against the rules for enrollment.

    Args:
        photo: RGB uint8 (H, W, 3).
        faces: All the faces found in it.
        rules: What the face must have; the defaults of `EnrollRules` when None.
        crop: Landmark template and side in pixels of the crop that is wanted.
    """
    rules = rules or EnrollRules()
    if not len(faces):
        return MainFaceAssessment(None, (Refusal(Reason.NO_FACE, "no face found"),))
    row = main_face(faces, rules.min_score)
    rivals = faces.sizes_px >= rules.max_rival_size * float(faces.sizes_px[row])
    rivals &= faces.scores >= rules.min_score
    rivals[row] = False
    return assess_face(photo, faces, row, rules, crop=crop, rival_count=int(rivals.sum()))


def assess_face(
    photo: UInt8Array,
    faces: Faces,
    row: int,
    rules: EnrollRules | None = None,
    *,
    crop: tuple[str, int] = MEASURED_CROP,
    rival_count: int = 0,
) -> MainFaceAssessment:
    """Measure one of the faces of a photo against the rules for enrollment.

    Args:
        photo: RGB uint8 (H, W, 3).
        faces: All the faces found in it.
        row: Of the face that is meant.
        rules: What the face must have; the defaults of `EnrollRules` when None.
        crop: Landmark template and side in pixels of the crop that is wanted.
        rival_count: Other faces that may be meant as well.
    """
    rules = rules or EnrollRules()
    face = faces.select([row])
    (alignment,) = fit_alignments(face.landmarks)
    if alignment is None:
        astray = Refusal(Reason.NO_ALIGNMENT, "the face's landmarks determine no alignment")
        return MainFaceAssessment(None, (astray,))
    crops, measured_crops = _wanted_and_measured_crops(photo, [alignment], crop)
    (measures,) = measure(measured_crops, face, [alignment])
    found = refusals(measures, rules, rival_count)
    return MainFaceAssessment(MainFace(row, measures, crops[0]), found)


def _wanted_and_measured_crops(
    photo: UInt8Array, alignments: Sequence[Alignment], crop: tuple[str, int]
) -> tuple[UInt8Array, UInt8Array]:
    """Return the crops that are wanted, and those that are measured: the same, where they may be."""
    crops = warp_faces(photo, alignments, *crop)
    return crops, crops if crop == MEASURED_CROP else warp_faces(photo, alignments, *MEASURED_CROP)


def main_face(faces: Faces, min_score: float) -> int:
    """Row of the main face: the largest of those with this score, or of all where none has it."""
    sure = faces.scores >= min_score
    sizes = np.where(sure, faces.sizes_px, 0) if sure.any() else faces.sizes_px
    return int(sizes.argmax())


def central_face(faces: Faces, width_px: int, height_px: int) -> Faces:
    """The one face that a photo of a data set is of: large and near the centre (size less distance)."""
    if not len(faces):
        return faces
    centres = (faces.boxes_xyxy[:, :2] + faces.boxes_xyxy[:, 2:]) / 2
    distance = np.hypot(*(centres - (width_px / 2, height_px / 2)).T)
    return faces.select([int(np.argmax(faces.sizes_px - distance))])


def measure(crops: UInt8Array, faces: Faces, alignments: Sequence[Alignment]) -> list[Measures]:
    """Return the quality of n faces in figures.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), warped to `MEASURED_CROP`.
        faces: The same n, in pixels of the photo.
        alignments: Theirs, in the same pixels.
    """
    return [
        _measure(crop, faces.select([row]), alignment)
        for row, (crop, alignment) in enumerate(zip(crops, alignments, strict=True))
    ]


def sharpness(crops: UInt8Array) -> FloatArray:
    """Return how much fine detail faces have, whatever their contrast and size in the photo.

    A further slight blur takes much gradient energy from a sharp crop and little from a blurred one: the
    share it takes from the inner face, in that of four directions where it takes least, is the measure.
    Smearing by motion blurs one direction only. Sharp faces lie at 0.27..0.54, middle 0.40.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), warped to `MEASURED_CROP`.

    Returns:
        float32 (n,), 0..1; 0 for a crop of one colour.
    """
    _, size_px = MEASURED_CROP
    if crops.shape[1:] != (size_px, size_px, 3):
        raise ValueError(f"expected crops of shape (n, {size_px}, {size_px}, 3), got {crops.shape}")
    return np.array([_detail_lost_to_blur(crop) for crop in crops], dtype=np.float32)


def _detail_lost_to_blur(crop: UInt8Array) -> float:
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    blurred = cv2.GaussianBlur(gray, (0, 0), _BLUR_SIGMA_PX).astype(np.float32)
    before, after = _gradient_energy(gray), _gradient_energy(blurred)
    if before.min() <= 1e-6:
        return 0.0
    return float(np.clip(1 - after / before, 0, 1).min())


def _gradient_energy(gray: FloatArray) -> npt.NDArray[np.float64]:
    """float64 (4,): mean squared slope of the inner face along each of `_DIRECTIONS_RAD`."""
    slope_x = cv2.Sobel(gray, cv2.CV_32F, 1, 0)[_INNER_FACE].astype(np.float64)
    slope_y = cv2.Sobel(gray, cv2.CV_32F, 0, 1)[_INNER_FACE].astype(np.float64)
    xx, xy, yy = np.vdot(slope_x, slope_x), np.vdot(slope_x, slope_y), np.vdot(slope_y, slope_y)
    energy: npt.NDArray[np.float64] = _COS**2 * xx + 2 * _COS * _SIN * xy + _SIN**2 * yy
    return energy / slope_x.size


def _measure(crop: UInt8Array, face: Faces, alignment: Alignment) -> Measures:
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[_INNER_FACE].astype(np.float64)
    return Measures(
        score=float(face.scores[0]),
        size_px=float(face.sizes_px[0]),
        sharpness=float(sharpness(crop[None])[0]),
        misfit=alignment.misfit,
        pose=head_pose(face.landmarks[0]),
        brightness=float(gray.mean()),
        contrast=float(gray.std()),
    )
