"""Decisions rule over matches, whatever these are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.overlay import LIKE_REJECTED, with_decisions
from facepipe.core.faces import Match

NAMES = st.sampled_from(["Ada", "Bob", "Eve"])
DISTANCES = st.none() | st.floats(0, 2)


@st.composite
def matches(draw: st.DrawFn) -> Match:
    distance_l2 = draw(DISTANCES)
    if distance_l2 is None:
        return Match(None, None, 1.0, reason="too_small")
    next_l2 = draw(st.none() | st.floats(distance_l2, 2))
    kind = draw(st.sampled_from(["named", "unsure", "unknown"]))
    name = draw(NAMES)
    return Match(
        name if kind == "named" else None,
        distance_l2,
        1.0,
        None if next_l2 is None else draw(NAMES.filter(lambda other: other != name)),
        next_l2,
        name if kind == "unsure" else None,
        {"named": None, "unsure": "between_people", "unknown": "nobody_near"}[kind],
    )


@st.composite
def decisions(draw: st.DrawFn) -> Decision | None:
    verdict = draw(st.none() | st.sampled_from(Verdict))
    name = draw(NAMES) if verdict is Verdict.IS else None
    not_names = draw(st.frozensets(NAMES)) - {name}
    if verdict is None and not not_names:
        return None
    return Decision("0" * 12, "0" * 64, (0, 0, 1, 1), verdict, name, not_names)


@given(st.lists(st.tuples(matches(), decisions()), max_size=6))
def test_no_decision_is_ever_overruled(photo: list[tuple[Match, Decision | None]]) -> None:
    found, decided = [match for match, _ in photo], [decision for _, decision in photo]
    named = with_decisions(found, decided, np.full((len(photo), 4), np.nan, np.float32), {})
    confirmed = {d.name for d in decided if d is not None and d.verdict is Verdict.IS}
    for before, decision, after in zip(found, decided, named, strict=True):
        if decision is None or decision.verdict is None:
            assert after.name not in confirmed
            assert after.name in (before.name, None)
            not_names = frozenset() if decision is None else decision.not_names
            assert not {after.name, after.candidate_name} & not_names
        else:
            assert after.name == decision.name
            assert after.candidate_name is None
        assert (after.distance_l2, after.runner_up_name) == (before.distance_l2, before.runner_up_name)
        assert (after.name is None) == (after.reason is not None)


@pytest.mark.parametrize(("to_rejected_l2", "name"), [(0.3, None), (0.8, "Ada")])
def test_faces_nearer_to_a_rejected_face_than_to_the_person_are_unsure(
    to_rejected_l2: float, name: str | None
) -> None:
    angle = 2 * np.arcsin(to_rejected_l2 / 2)
    face = np.array([[1, 0]], np.float32)
    rejected = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
    match = Match("Ada", 0.5, 1.0)
    (named,) = with_decisions([match], [None], face, {"Ada": rejected, "Bob": face})
    assert named.name == name
    assert (named.candidate_name, named.reason) == ((None, None) if name else ("Ada", LIKE_REJECTED))
