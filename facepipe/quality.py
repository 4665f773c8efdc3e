"""Is a face good enough to be learned, or compared? Measures, thresholds and the reasons to refuse."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.align import align_faces, alignable, template_misfit
from facepipe.core.errors import LandmarkError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.pose import HeadPose, head_pose

MEASURED_TEMPLATE = "arcface_112"
"""Landmark template of the crops that are measured, at the template's own size."""

MEASURED_PX = 112
_INNER_FACE = (slice(28, 108), slice(24, 88))  # rows and columns from brow to chin: no hair, no background
_BLUR_SIGMA_PX = 1.0
_DIRECTIONS_RAD = np.deg2rad([0.0, 45.0, 90.0, 135.0])


class Reason(Enum):
    """Why a face is not learned or not compared. The values are stable codes for reports."""

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
        min_score: Least detector confidence, 0..1.
        min_size_px: Least shorter side of the box. A strong network's vector keeps a cosine of 0.88 to that
            of the full-size face at 32 px, of 0.74 at 24 px, of 0.61 at 20 px (80 photos of 20 people).
        min_sharpness: Least `sharpness`. 0.20 passes all of 320 press photos of 30 people and of 290 soft
            250-pixel news photos. It refuses all of the former blurred by a Gaussian of 2 crop pixels
            (where the cosine is 0.72), 97% brought up from 20 px, 99% smeared over 11 crop pixels.
        max_misfit: Largest `template_misfit`. 0.08 passes 97% of the main faces of 240 press photos.
        max_yaw_deg: Largest turn to a side. Of 314 press and 1,504 news photos, 91 to 95% have another of
            their person within the naming threshold below 20 degrees, 75 to 94% at 30 to 40, 15 of 17 at 50
            to 60.
        max_pitch_deg: Largest nod. Of the same photos 93 to 94% below 10 degrees, 75 to 93% at 30 to 35, 16
            of 27 at 35 to 40; landmarks gone astray lie beyond.
        max_roll_deg: Largest tilt. Alignment turns faces upright; the shipped detector's landmarks were
            trained on turns of up to 40 degrees.
        min_brightness: Least mean gray level of the inner face, 0..255. Darkened to it, a face's vector keeps
            a cosine of 0.87; the same photos lie at 52..212.
        max_brightness: Largest mean gray level. Overexposed to it, a face's vector keeps 0.84.
        min_contrast: Least standard deviation of the gray levels. Flattened to it, a face's vector keeps
            0.88; the same photos lie at 22..81.
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
    """What a face must have to be compared with a gallery, and to be named; other faces are unknown.

    Attributes:
        min_score: Least detector confidence, 0..1.
        min_size_px: Least shorter side of the box.
        min_sharpness: Least `sharpness`, half of what is asked for enrolment: the shipped encoder knows
            blurred faces. How many photos of enrolled people get their name that way, and how few a wrong
            one, stands in docs/research/experiments.md. Blurrier faces lie near others of their kind.
        max_misfit: Largest `template_misfit`, a turn of about 65 degrees. Of 160 photos of enrolled
            people, three lie between 0.08 and here and are named right; of strangers' faces 32 do, and none
            is named (docs/research/experiments.md).
        min_margin_l2: By how much farther than the nearest person the next must be: a face between two
            people is nobody's.
    """

    min_score: float = 0.8
    min_size_px: float = 24.0
    min_sharpness: float = 0.10
    max_misfit: float = 0.10
    min_margin_l2: float = 0.08


@dataclass(frozen=True, slots=True)
class Measures:
    """A face in figures.

    Attributes:
        score: Its detector confidence, 0..1.
        size_px: Shorter side of its box.
        sharpness: See `sharpness`.
        misfit: See `facepipe.align.template_misfit`.
        pose: Which way it looks.
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

    def good_to_enroll(self, rules: EnrollRules | None = None) -> bool:
        """Whether it breaks no rule for enrolment, other faces of its photo left aside."""
        return not _refusals(self, 0, rules or EnrollRules())


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason to refuse a photo, and the sentence with the measured and the wanted number."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What `assess` found.

    Attributes:
        face: Row of the face to be enrolled, the largest of those that the detector is sure of (the largest
            of all where it is sure of none); None where the photo has no face that can be aligned.
        measures: Of that face; None without one.
        refusals: Every rule it breaks; empty when it is good to enrol.
    """

    face: int | None
    measures: Measures | None
    refusals: tuple[Refusal, ...]


def assess(image: UInt8Array, faces: Faces, rules: EnrollRules | None = None) -> Assessment:
    """Measure the face that a photo is of against the rules for enrolment.

    Args:
        image: RGB uint8 (H, W, 3), the full photo.
        faces: All the faces found in it.
        rules: What the face must have; the defaults of `EnrollRules` when None.
    """
    rules = rules or EnrollRules()
    if not len(faces):
        return Assessment(None, None, (Refusal(Reason.NO_FACE, "no face found"),))
    face = _principal(faces, rules.min_score)
    chosen = faces.select([face])
    if not alignable(chosen.landmarks).all():
        astray = Refusal(Reason.NO_ALIGNMENT, "the face's landmarks determine no alignment")
        return Assessment(None, None, (astray,))
    (measures,) = measure(align_faces(image, chosen.landmarks, MEASURED_TEMPLATE), chosen)
    rivals = (faces.sizes_px >= rules.max_rival_size * measures.size_px) & (faces.scores >= rules.min_score)
    rivals[face] = False
    return Assessment(face, measures, _refusals(measures, int(rivals.sum()), rules))


def measure(crops: UInt8Array, faces: Faces) -> list[Measures]:
    """Faces in figures.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), aligned to `MEASURED_TEMPLATE`.
        faces: The same n, in pixels of the photo.
    """
    return [_measure(crop, faces.select([row])) for row, crop in enumerate(crops)]


def recognisable(image: UInt8Array, faces: Faces, rules: NamingRules | None = None) -> npt.NDArray[np.bool_]:
    """bool (n,): which faces of a photo are good enough to be compared with a gallery.

    Small and blurred faces, faces turned away, and what is hardly a face, have
    vectors near many people's: to leave them unknown costs little and avoids most wrong names.
    """
    rules = rules or NamingRules()
    good = np.array([reason is None for reason in geometric_rejections(faces, rules)], np.bool_)
    crops = align_faces(image, faces.landmarks[good], MEASURED_TEMPLATE)
    good[good] = sharpness(crops) >= rules.min_sharpness
    return good


def geometric_rejections(faces: Faces, rules: NamingRules) -> list[Reason | None]:
    """Why each face is not to be compared, as far as box, score and landmarks tell; None: look at it.

    What is left can be aligned; then `sharpness` of the crops decides.
    """
    return [_reason_by_place(faces.select([row]), rules) for row in range(len(faces))]


def _reason_by_place(face: Faces, rules: NamingRules) -> Reason | None:
    if face.scores[0] < rules.min_score:
        return Reason.LOW_SCORE
    if face.sizes_px[0] < rules.min_size_px:
        return Reason.TOO_SMALL
    try:
        (misfit,) = template_misfit(face.landmarks)
    except LandmarkError:
        return Reason.NO_ALIGNMENT
    return Reason.TURNED_AWAY if misfit > rules.max_misfit else None


def sharpness(crops: UInt8Array) -> FloatArray:
    """How much fine detail faces have, whatever their contrast and size in the photo.

    A further slight blur takes much gradient energy from a sharp crop and little from a blurred one: the
    share it takes from the inner face, in that of four directions where it takes least, is the measure.
    Smearing by motion blurs one direction only. Sharp faces lie at 0.27..0.54, middle 0.40.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), aligned to `MEASURED_TEMPLATE`.

    Returns:
        float32 (n,), 0..1; 0 for a crop of one colour.
    """
    if crops.shape[1:] != (MEASURED_PX, MEASURED_PX, 3):
        raise ValueError(f"expected crops of shape (n, {MEASURED_PX}, {MEASURED_PX}, 3), got {crops.shape}")
    return np.array([_detail_lost_to_blur(crop) for crop in crops], dtype=np.float32)


def _principal(faces: Faces, min_score: float) -> int:
    sure = faces.scores >= min_score
    sizes = np.where(sure, faces.sizes_px, 0) if sure.any() else faces.sizes_px
    return int(sizes.argmax())


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


def _measure(crop: UInt8Array, face: Faces) -> Measures:
    """One face, with its crop at `MEASURED_TEMPLATE`."""
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[_INNER_FACE].astype(np.float64)
    return Measures(
        score=float(face.scores[0]),
        size_px=float(face.sizes_px[0]),
        sharpness=float(sharpness(crop[None])[0]),
        misfit=float(template_misfit(face.landmarks)[0]),
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
    least: float = -np.inf
    most: float = np.inf
    form: str = ".0f"
    unit: str = ""

    def refusal(self) -> Refusal | None:
        if self.least <= self.value <= self.most:
            return None
        wanted = f"at least {self._said(self.least)}"
        if self.value > self.most:
            wanted = f"at most {self._said(self.most)}"
        return Refusal(self.reason, f"{self.words} {self._said(self.value)}, {wanted} wanted")

    def _said(self, value: float) -> str:
        return f"{value:{self.form}}{self.unit}"


def _refusals(face: Measures, rival_count: int, rules: EnrollRules) -> tuple[Refusal, ...]:
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
            Reason.TURNED_AWAY, "face turned away: misfit", face.misfit, most=rules.max_misfit, form=".2f"
        ),
        _Limit(Reason.TURNED_AWAY, "face turned away:", yaw, most=rules.max_yaw_deg, unit=degrees),
        _Limit(Reason.LOOKING_UP_OR_DOWN, looking, pitch, most=rules.max_pitch_deg, unit=degrees),
        _Limit(Reason.TILTED, "head tilted:", roll, most=rules.max_roll_deg, unit=degrees),
        _Limit(Reason.TOO_DARK, "face too dark:", face.brightness, rules.min_brightness, unit=light),
        _Limit(Reason.TOO_BRIGHT, "face too bright:", face.brightness, most=rules.max_brightness, unit=light),
        _Limit(Reason.LOW_CONTRAST, "face of little contrast:", face.contrast, rules.min_contrast),
    )
