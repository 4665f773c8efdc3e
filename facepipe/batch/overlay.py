"""The decisions of people, applied to the matches of a gallery. They are never overruled by a match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from facepipe.batch.decisions import Decision, Verdict
from facepipe.core.faces import FloatArray, Match
from facepipe.gallery.matching import Doubt

LIKE_REJECTED = "like_rejected"
"""Reason of a face that is nearer to a rejected face than to the person whose name it would get."""


def with_decisions(
    matches: Sequence[Match],
    decisions: Sequence[Decision | None],
    embeddings: FloatArray,
    negatives: Mapping[str, FloatArray],
) -> list[Match]:
    """Return the matches of a photo's n faces with what people decided.

    A confirmed face has its name, and no other face of the photo gets that name. A false alarm and an ignored
    face have none. A face that is not somebody does not get that name, and neither do faces that are nearer
    to it than to that person: they are unsure.

    Args:
        matches: Of the gallery, n.
        decisions: About each face, n; None: nothing was decided.
        embeddings: float32 (n, d); rows of NaN where a face was not encoded.
        negatives: By name, the embeddings (k, d) of faces that are not this person.
    """
    confirmed = {decision.name for decision in decisions if decision is not None} - {None}
    return [
        _undecided(match, decision, embedding, confirmed, negatives)
        if decision is None or decision.verdict is None
        else _decided(match, decision)
        for match, decision, embedding in zip(matches, decisions, embeddings, strict=True)
    ]


def _decided(match: Match, decision: Decision) -> Match:
    assert decision.verdict is not None
    if decision.verdict is Verdict.IS:
        return replace(match, name=decision.name, candidate_name=None, reason=None)
    return replace(match, name=None, candidate_name=None, reason=decision.verdict.value)


def _undecided(
    match: Match,
    decision: Decision | None,
    embedding: FloatArray,
    confirmed: set[str | None],
    negatives: Mapping[str, FloatArray],
) -> Match:
    name = match.name or match.candidate_name
    if name is None or match.distance_l2 is None:
        return match
    if decision is not None and name in decision.not_names:
        return _without_rejected(match, decision.not_names)
    if match.name in confirmed:
        return replace(match, name=None, candidate_name=None, reason=Doubt.TAKEN.value)
    if match.name is not None and _nearest_l2(embedding, negatives.get(name)) < match.distance_l2:
        return replace(match, name=None, candidate_name=name, reason=LIKE_REJECTED)
    return match


def _without_rejected(match: Match, not_names: frozenset[str]) -> Match:
    """The next nearest person is a candidate where they are near enough: a second choice is never named."""
    next_l2 = match.runner_up_distance_l2
    is_near = next_l2 is not None and next_l2 <= match.threshold_l2
    candidate = match.runner_up_name if is_near and match.runner_up_name not in not_names else None
    reason = Doubt.NOBODY_NEAR if candidate is None else Doubt.BETWEEN_PEOPLE
    return replace(match, name=None, candidate_name=candidate, reason=reason.value)


def _nearest_l2(embedding: FloatArray, others: FloatArray | None) -> float:
    if others is None or not len(others):
        return np.inf
    return float(np.linalg.norm(others - embedding, axis=1).min())
