"""Why a face has its name, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from facepipe.batch.decisions import Decision, Verdict
from facepipe.core.faces import Match
from facepipe.library.models import LibraryFace
from facepipe.quality_rules import Reason
from facepipe.server.pages.explanations import explain

BOX = (0.0, 0.0, 10.0, 10.0)
NAMED = Match("Ada", 0.5, 1.0, "Ben", 1.2)
FACE = LibraryFace("0" * 12, 1, 0, BOX, 0.9, NAMED, True, 0, None, None)
NOT_COMPARED = [reason for reason in Reason if reason not in (Reason.NO_FACE, Reason.SEVERAL_FACES)]
DECISION = Decision("0" * 12, "f" * 64, BOX)


def test_a_found_name_is_explained_by_its_distances() -> None:
    sentence = explain(FACE)
    assert "Ada (0.50)" in sentence
    assert "Ben (1.20)" in sentence
    assert "1.00" in sentence


@pytest.mark.parametrize("reason", NOT_COMPARED)
def test_every_reason_of_a_face_that_was_not_compared_has_words(reason: Reason) -> None:
    face = replace(FACE, match=Match(None, None, 1.0, reason=reason.value))
    assert explain(face).startswith("It was not compared: it")


def test_doubts_are_told_apart() -> None:
    between = Match(None, 0.9, 1.0, "Ben", 0.92, candidate_name="Ada", reason="between_people")
    taken = Match(None, 0.9, 1.0, candidate_name="Ada", reason="taken")
    nobody = Match(None, 1.3, 1.0, reason="nobody_near")
    sentences = [explain(replace(FACE, match=match)) for match in (between, taken, nobody)]
    assert "Ada (0.90) or Ben (0.92)" in sentences[0]
    assert "another face" in sentences[1]
    assert "1.30" in sentences[2]


def test_what_a_person_decided_comes_first() -> None:
    confirmed = replace(DECISION, verdict=Verdict.IS, name="Ada", not_names=frozenset({"Ben", "Cleo"}))
    sentence = explain(replace(FACE, decision=confirmed))
    assert sentence == "You said that this is Ada. You said that this is not Ben or Cleo."
