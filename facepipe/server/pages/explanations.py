"""Why a face has its name, or has none, in words."""

from __future__ import annotations

from facepipe.batch.decisions import Verdict
from facepipe.core.faces import Match
from facepipe.gallery.matching import Doubt
from facepipe.library.models import LibraryFace
from facepipe.quality_rules import Reason

_NOT_COMPARED = {
    Reason.LOW_SCORE: "it is hardly a face",
    Reason.TOO_SMALL: "it is too small",
    Reason.TOO_BLURRED: "it is too blurred",
    Reason.TURNED_AWAY: "it is turned away too far",
    Reason.NO_ALIGNMENT: "its eyes, nose and mouth were not found",
    Reason.LOOKING_UP_OR_DOWN: "it looks up or down too far",
    Reason.TILTED: "it is tilted too far",
    Reason.TOO_DARK: "it is too dark",
    Reason.TOO_BRIGHT: "it is too bright",
    Reason.LOW_CONTRAST: "it has too little contrast",
    Reason.DRAWN: "its box was drawn by hand, and no face was found in it",
}


def explain(face: LibraryFace) -> str:
    """Return why a face is named as it is, or not named: what was decided, or what the gallery found."""
    return " ".join(part for part in (_decided(face) or _found(face.match), _excluded(face)) if part)


def _decided(face: LibraryFace) -> str | None:
    decision = face.decision
    match decision and decision.verdict:
        case Verdict.IS:
            return f"You said that this is {face.name}."
        case Verdict.NOT_A_FACE:
            return "You said that this is not a face."
        case Verdict.IGNORE:
            return "You asked not to be asked about this face."
    return None


def _excluded(face: LibraryFace) -> str | None:
    names = sorted(face.decision.not_names) if face.decision else []
    return f"You said that this is not {' or '.join(names)}." if names else None


def _found(match: Match) -> str:
    if match.name is not None:
        return _named(match)
    reason = match.reason
    if reason == Doubt.BETWEEN_PEOPLE.value:
        return (
            f"It may be {_with_distance(match.candidate_name, match.distance_l2)} or "
            f"{_with_distance(match.runner_up_name, match.runner_up_distance_l2)}: both are about as near."
        )
    if reason == Doubt.TAKEN.value:
        return (
            f"It is near {_with_distance(match.candidate_name, match.distance_l2)}, but another face of this "
            "photo is nearer, and a person is in a photo once."
        )
    if reason in {known.value for known in _NOT_COMPARED}:
        return f"It was not compared: {_NOT_COMPARED[Reason(reason)]}."
    return _nobody_near(match)


def _named(match: Match) -> str:
    sentence = (
        f"Its distance to {_with_distance(match.name, match.distance_l2)} is below the threshold of "
        f"{match.threshold_l2:.2f}."
    )
    if match.runner_up_name is None:
        return sentence
    runner_up = _with_distance(match.runner_up_name, match.runner_up_distance_l2)
    return f"{sentence} The next person is {runner_up}."


def _nobody_near(match: Match) -> str:
    if match.distance_l2 is None:
        return "There is nobody yet to compare it with."
    return (
        f"Nobody is near enough: the nearest person is at a distance of {match.distance_l2:.2f}, and names "
        f"are given up to {match.threshold_l2:.2f}."
    )


def _with_distance(name: str | None, distance_l2: float | None) -> str:
    shown = name or "somebody"
    return shown if distance_l2 is None else f"{shown} ({distance_l2:.2f})"
