"""Is a photo good enough to learn a person from? Measures, thresholds and the reasons to refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt

from facepipe.align import align_faces, template_misfit
from facepipe.faces import Faces, FloatArray, UInt8Array

SHARPNESS_TEMPLATE = "arcface_112"
"""Landmark template of the crops that `sharpness` measures, at the template's own size."""

_CROP_PX = 112
_INNER_FACE = (slice(28, 108), slice(24, 88))  # rows and columns from brow to chin: no hair, no background
_BLUR_SIGMA_PX = 1.0
_DIRECTIONS_RAD = np.deg2rad([0.0, 45.0, 90.0, 135.0])


class Reason(Enum):
    """Why a photo is refused for enrolment. The values are stable codes for reports."""

    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"
    LOW_SCORE = "low_score"
    TOO_SMALL = "too_small"
    TOO_BLURRED = "too_blurred"
    TURNED_AWAY = "turned_away"


@dataclass(frozen=True, slots=True)
class EnrolRules:
    """What a face must have to be enrolled.

    Attributes:
        min_score: Least detector confidence, 0..1.
        min_size_px: Least shorter side of the box. A strong network's vector keeps a cosine of 0.88 to that
            of the full-size face at 32 px, of 0.74 at 24 px, of 0.61 at 20 px (80 photos of 20 people).
        min_sharpness: Least `sharpness`. 0.20 passes all of 320 press photos of 30 people and of 290 soft
            250-pixel news photos. It refuses all of the former blurred by a Gaussian of 2 crop pixels
            (where the cosine is 0.72), 97% brought up from 20 px, 99% smeared over 11 crop pixels.
        max_misfit: Largest `template_misfit`; see `NamingRules`.
        max_rival_size: Another face of at least this share of the largest one's size makes it unclear who
            is meant; smaller ones are background.
    """

    min_score: float = 0.8
    min_size_px: float = 32.0
    min_sharpness: float = 0.20
    max_misfit: float = 0.08
    max_rival_size: float = 0.5


@dataclass(frozen=True, slots=True)
class NamingRules:
    """What a face must have to be compared with a gallery, and to be named; other faces are unknown.

    Attributes:
        min_score: Least detector confidence, 0..1.
        min_size_px: Least shorter side of the box.
        min_sharpness: Least `sharpness`; as for enrolment.
        max_misfit: Largest `template_misfit`. 0.08 passes 97% of the main faces of 240 press photos and
            halves wrong names (docs/experiments.md).
        min_margin_l2: By how much farther than the nearest person the next must be: a face between two
            people is nobody's.
    """

    min_score: float = 0.8
    min_size_px: float = 24.0
    min_sharpness: float = 0.20
    max_misfit: float = 0.08
    min_margin_l2: float = 0.08


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason to refuse a photo, and the sentence with the measured and the wanted number."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What `judge` found.

    Attributes:
        face: Row of the face to be enrolled, the largest of those that the detector is sure of (the largest
            of all where it is sure of none); None where the photo has no face.
        size_px: Shorter side of its box; 0 without a face.
        score: Its detector confidence; 0 without a face.
        sharpness: Its `sharpness`; 0 without a face.
        misfit: Its `template_misfit`; 0 without a face.
        refusals: Every rule it breaks; empty when it is good to enrol.
    """

    face: int | None
    size_px: float
    score: float
    sharpness: float
    misfit: float
    refusals: tuple[Refusal, ...]


def judge(image: UInt8Array, faces: Faces, rules: EnrolRules | None = None) -> Judgement:
    """Measure the face that a photo is of against the rules for enrolment.

    Args:
        image: RGB uint8 (H, W, 3), the full photo.
        faces: All the faces found in it.
        rules: What the face must have; the defaults of `EnrolRules` when None.

    Raises:
        LandmarkError: The face's landmarks determine no alignment.
    """
    rules = rules or EnrolRules()
    if not len(faces):
        nobody = Refusal(Reason.NO_FACE, "no face found")
        return Judgement(None, 0.0, 0.0, 0.0, 0.0, (nobody,))
    face = _principal(faces, rules.min_score)
    crops = align_faces(image, faces.landmarks[face : face + 1], SHARPNESS_TEMPLATE)
    measured = Judgement(
        face=face,
        size_px=float(faces.sizes_px[face]),
        score=float(faces.scores[face]),
        sharpness=float(sharpness(crops)[0]),
        misfit=float(template_misfit(faces.landmarks[face : face + 1])[0]),
        refusals=(),
    )
    rivals = (faces.sizes_px >= rules.max_rival_size * measured.size_px) & (faces.scores >= rules.min_score)
    rivals[face] = False
    return replace(measured, refusals=_refusals(measured, int(rivals.sum()), rules))


def recognisable(image: UInt8Array, faces: Faces, rules: NamingRules | None = None) -> npt.NDArray[np.bool_]:
    """bool (n,): which faces of a photo are good enough to be compared with a gallery.

    Small and blurred faces, faces turned away, and what is hardly a face, have
    vectors near many people's: to leave them unknown costs little and avoids most wrong names. Landmarks
    must determine an alignment (else `LandmarkError`).
    """
    rules = rules or NamingRules()
    good = np.asarray((faces.scores >= rules.min_score) & (faces.sizes_px >= rules.min_size_px))
    rows = np.flatnonzero(good)
    landmarks = faces.landmarks[rows]
    sharp = sharpness(align_faces(image, landmarks, SHARPNESS_TEMPLATE)) >= rules.min_sharpness
    good[rows] = sharp & (template_misfit(landmarks) <= rules.max_misfit)
    return good


def sharpness(crops: UInt8Array) -> FloatArray:
    """How much fine detail faces have, whatever their contrast and size in the photo.

    A further slight blur takes much gradient energy from a sharp crop and little from a blurred one: the
    share it takes from the inner face, in that of four directions where it takes least, is the measure.
    Smearing by motion blurs one direction only. Sharp faces lie at 0.27..0.54, middle 0.40.

    Args:
        crops: RGB uint8 (n, 112, 112, 3), aligned to `SHARPNESS_TEMPLATE`.

    Returns:
        float32 (n,), 0..1; 0 for a crop of one colour.
    """
    if crops.shape[1:] != (_CROP_PX, _CROP_PX, 3):
        raise ValueError(f"expected crops of shape (n, {_CROP_PX}, {_CROP_PX}, 3), got {crops.shape}")
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


def _refusals(face: Judgement, rival_count: int, rules: EnrolRules) -> tuple[Refusal, ...]:
    checks = (
        (
            rival_count > 0,
            Reason.SEVERAL_FACES,
            f"{rival_count + 1} faces of similar size; crop the photo to one person",
        ),
        (
            face.score < rules.min_score,
            Reason.LOW_SCORE,
            f"hardly looks like a face: score {face.score:.2f}, at least {rules.min_score:.2f} wanted",
        ),
        (
            face.size_px < rules.min_size_px,
            Reason.TOO_SMALL,
            f"face too small: {face.size_px:.0f} px, at least {rules.min_size_px:.0f} px wanted",
        ),
        (
            face.sharpness < rules.min_sharpness,
            Reason.TOO_BLURRED,
            f"face too blurred: sharpness {face.sharpness:.2f}, at least {rules.min_sharpness:.2f} wanted",
        ),
        (
            face.misfit > rules.max_misfit,
            Reason.TURNED_AWAY,
            f"face turned away: misfit {face.misfit:.2f}, at most {rules.max_misfit:.2f} wanted",
        ),
    )
    return tuple(Refusal(reason, sentence) for broken, reason, sentence in checks if broken)
