"""Quality of faces: measures, the rules for enrolling and for naming, and the reasons to refuse a face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.align import Alignment, fit_alignments, warp_faces
from facepipe.core.faces import BoolArray, Faces, FloatArray, UInt8Array
from facepipe.pose import HeadPose, head_pose

MEASURED_CROP = ("arcface_112", 112)
"""Landmark template and side in pixels of the crops that are measured."""

_INNER_FACE = (slice(28, 108), slice(24, 88))  # rows and columns from brow to chin: no hair, no background
_BLUR_SIGMA_PX = 1.0
_DIRECTIONS_RAD = np.deg2rad([0.0, 45.0, 90.0, 135.0])


class Reason(Enum):
    """Why a face is not enrolled or not compared. The values are stable codes for reports."""

    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"
    LOW_SCORE = "low_score"
    TOO_SMALL = "too_small"
    TOO_BLURRED = "too_blurred"
    TURNED_AWAY = "turned_away"
    NO_ALIGNMENT = "no_alignment"
    LOOKING_UP_OR_DOWN = "looking_up_or_down"
    TILTED = "tilted"
    TOO_DARK = "too_dark"
    TOO_BRIGHT = "too_bright"
    LOW_CONTRAST = "low_contrast"


@dataclass(frozen=True, slots=True)
class EnrollRules:
    """What a face must have to be enrolled.

    Attributes:
        min_score: Lowest detector confidence, 0..1.
        min_size_px: Lowest shorter side of the box. A strong network's embedding keeps a cosine of 0.88 to
            that of the full-size face at 32 px, of 0.74 at 24 px, of 0.61 at 20 px (80 photos of 20 people).
        min_sharpness: Lowest `sharpness`. 0.20 passes all of 320 press photos of 30 people and of 290 soft
            250-pixel news photos. It refuses all of the former blurred by a Gaussian of 2 crop pixels
            (where the cosine is 0.72), 97% brought up from 20 px, 99% smeared over 11 crop pixels.
        max_misfit: Largest `Alignment.misfit`. 0.08 passes 97% of the main faces of 240 press photos.
        max_yaw_deg: Largest turn to a side. Of 314 press and 1,504 news photos, 91 to 95% have another of
            their person within the naming threshold below 20 degrees, 75 to 94% at 30 to 40, 15 of 17 at 50
            to 60.
        max_pitch_deg: Largest nod. Of the same photos 93 to 94% below 10 degrees, 75 to 93% at 30 to 35, 16
            of 27 at 35 to 40; landmarks gone astray lie beyond.
        max_roll_deg: Largest tilt. Alignment turns faces upright; the shipped detector's landmarks were
            trained on turns of up to 40 degrees.
        min_brightness: Lowest mean gray level of the inner face, 0..255. Darkened to it, a face's embedding
            keeps a cosine of 0.87; the same photos lie at 52..212.
        max_brightness: Largest mean gray level. Overexposed to it, a face's embedding keeps 0.84.
        min_contrast: Lowest standard deviation of the gray levels. Flattened to it, a face's embedding
            keeps 0.88; the same photos lie at 22..81.
        max_rival_size: Another face of at least this share of the largest one's size makes it unclear who
            is meant; smaller ones are background.
    """

    min_score: float = 0.8
    min_size_px: float = 32.0
    min_sharpness: float = 0.20
    max_misfit: float = 0.08
    max_yaw_deg: float = 60.0
    max_pitch_deg: float = 35.0
    max_roll_deg: float = 45.0
    min_brightness: float = 30.0
    max_brightness: float = 215.0
    min_contrast: float = 10.0
    max_rival_size: float = 0.5


@dataclass(frozen=True, slots=True)
class NamingRules:
    """What a face must have to be compared with a gallery; other faces are unknown.

    Attributes:
        min_score: Lowest detector confidence, 0..1.
        min_size_px: Lowest shorter side of the box.
        min_sharpness: Lowest `sharpness`, half of what is asked for enrollment: the shipped encoder knows
            blurred faces. How many photos of enrolled people get their name that way, and how few a wrong
            one, stands in docs/research/experiments.md. Blurrier faces lie near others of their kind.
        max_misfit: Largest `Alignment.misfit`, a turn of about 65 degrees. Of 160 photos of enrolled
            people, three lie between 0.08 and here and are named right; of strangers' faces 32 do, and none
            is named (docs/research/experiments.md).
    """

    min_score: float = 0.8
    min_size_px: float = 24.0
    min_sharpness: float = 0.10
    max_misfit: float = 0.10


@dataclass(frozen=True, slots=True)
class Measures:
    """The quality of a face in figures.

    Attributes:
        score: Its detector confidence, 0..1.
        size_px: Shorter side of its box.
        sharpness: See `sharpness`.
        misfit: See `facepipe.align.Alignment`.
        pose: Angles of the head.
        brightness: Mean gray level of the inner face, 0..255.
        contrast: Standard deviation of those gray levels.
    """

    score: float
    size_px: float
    sharpness: float
    misfit: float
    pose: HeadPose
    brightness: float
    contrast: float

    def is_enrollable(self, rules: EnrollRules | None = None) -> bool:
        """Whether it breaks no rule for enrollment, other faces of its photo left aside."""
        return not _refusals(self, rules or EnrollRules())


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
    """The rows of the faces without a reason against them."""
    return np.array([row for row, reason in enumerate(reasons) if not isinstance(reason, Reason)], np.intp)


def align_or_reject(faces: Faces, rules: NamingRules) -> list[Alignment | Reason]:
    """The alignment of each face to be compared, as far as score, size and pose tell; else why not."""
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason to refuse a photo, and the sentence with the measured and the wanted number."""

    reason: Reason
    sentence: str


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
    face = faces.select([row])
    (alignment,) = fit_alignments(face.landmarks)
    if alignment is None:
        astray = Refusal(Reason.NO_ALIGNMENT, "the face's landmarks determine no alignment")
        return MainFaceAssessment(None, (astray,))
    crops, measured_crops = _wanted_and_measured_crops(photo, [alignment], crop)
    (measures,) = measure(measured_crops, face, [alignment])
    rivals = (faces.sizes_px >= rules.max_rival_size * measures.size_px) & (faces.scores >= rules.min_score)
    rivals[row] = False
    refusals = _refusals(measures, rules, int(rivals.sum()))
    return MainFaceAssessment(MainFace(row, measures, crops[0]), refusals)


def _wanted_and_measured_crops(
    photo: UInt8Array, alignments: Sequence[Alignment], crop: tuple[str, int]
) -> tuple[UInt8Array, UInt8Array]:
    """The crops that are wanted, and those that are measured: the same, where they may be."""
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
    """The quality of n faces in figures.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), warped as `MEASURED_CROP` says.
        faces: The same n, in pixels of the photo.
        alignments: Theirs, in the same pixels.
    """
    return [
        _measure(crop, faces.select([row]), alignment)
        for row, (crop, alignment) in enumerate(zip(crops, alignments, strict=True))
    ]


def sharpness(crops: UInt8Array) -> FloatArray:
    """How much fine detail faces have, whatever their contrast and size in the photo.

    A further slight blur takes much gradient energy from a sharp crop and little from a blurred one: the
    share it takes from the inner face, in that of four directions where it takes least, is the measure.
    Smearing by motion blurs one direction only. Sharp faces lie at 0.27..0.54, middle 0.40.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), warped as `MEASURED_CROP` says.

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
    cos, sin = np.cos(_DIRECTIONS_RAD), np.sin(_DIRECTIONS_RAD)
    xx, xy, yy = (slope_x**2).mean(), (slope_x * slope_y).mean(), (slope_y**2).mean()
    energy: npt.NDArray[np.float64] = cos**2 * xx + 2 * cos * sin * xy + sin**2 * yy
    return energy


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


@dataclass(frozen=True, slots=True)
class _Limit:
    """One rule for one measured number."""

    reason: Reason
    words: str
    value: float
    minimum: float = -np.inf
    maximum: float = np.inf
    form: str = ".0f"
    unit: str = ""

    def refusal(self) -> Refusal | None:
        if self.minimum <= self.value <= self.maximum:
            return None
        wanted = f"at least {self._formatted(self.minimum)}"
        if self.value > self.maximum:
            wanted = f"at most {self._formatted(self.maximum)}"
        return Refusal(self.reason, f"{self.words} {self._formatted(self.value)}, {wanted} wanted")

    def _formatted(self, value: float) -> str:
        return f"{value:{self.form}}{self.unit}"


def _refusals(face: Measures, rules: EnrollRules, rival_count: int = 0) -> tuple[Refusal, ...]:
    """Each reason once."""
    found: dict[Reason, Refusal] = {}
    if rival_count:
        words = f"{rival_count + 1} faces of similar size; crop the photo to one person"
        found[Reason.SEVERAL_FACES] = Refusal(Reason.SEVERAL_FACES, words)
    for limit in _limits(face, rules):
        if refusal := limit.refusal():
            found.setdefault(limit.reason, refusal)
    return tuple(found.values())


def _limits(face: Measures, rules: EnrollRules) -> tuple[_Limit, ...]:
    yaw, pitch, roll = abs(face.pose.yaw_deg), abs(face.pose.pitch_deg), abs(face.pose.roll_deg)
    looking = f"looking {'down' if face.pose.pitch_deg > 0 else 'up'}:"
    degrees, light = " degrees", " of 255"
    return (
        _Limit(Reason.LOW_SCORE, "hardly looks like a face: score", face.score, rules.min_score, form=".2f"),
        _Limit(Reason.TOO_SMALL, "face too small:", face.size_px, rules.min_size_px, unit=" px"),
        _Limit(
            Reason.TOO_BLURRED, "face too blurred: sharpness", face.sharpness, rules.min_sharpness, form=".2f"
        ),
        _Limit(
            Reason.TURNED_AWAY, "face turned away: misfit", face.misfit, maximum=rules.max_misfit, form=".2f"
        ),
        _Limit(Reason.TURNED_AWAY, "face turned away:", yaw, maximum=rules.max_yaw_deg, unit=degrees),
        _Limit(Reason.LOOKING_UP_OR_DOWN, looking, pitch, maximum=rules.max_pitch_deg, unit=degrees),
        _Limit(Reason.TILTED, "head tilted:", roll, maximum=rules.max_roll_deg, unit=degrees),
        _Limit(Reason.TOO_DARK, "face too dark:", face.brightness, rules.min_brightness, unit=light),
        _Limit(
            Reason.TOO_BRIGHT, "face too bright:", face.brightness, maximum=rules.max_brightness, unit=light
        ),
        _Limit(Reason.LOW_CONTRAST, "face of little contrast:", face.contrast, rules.min_contrast),
    )
