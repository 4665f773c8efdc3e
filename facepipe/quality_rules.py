"""The rules for enrolling and for naming, and the reasons to refuse a face."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from facepipe.pose import HeadPose


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
    DRAWN = "drawn"
    """Its box was drawn by hand, and no landmarks were found in it."""


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
        """Return whether it breaks no rule for enrollment, other faces of its photo left aside."""
        return not refusals(self, rules or EnrollRules())


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason to refuse a photo, and the sentence with the measured and the wanted number."""

    reason: Reason
    sentence: str


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


def refusals(face: Measures, rules: EnrollRules, rival_count: int = 0) -> tuple[Refusal, ...]:
    """Return each reason once."""
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
