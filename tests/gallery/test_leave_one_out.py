"""Enrolled faces named without themselves: the same as a gallery that lacks each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, templates

from facepipe.core.faces import FloatArray, Match
from facepipe.gallery import Gallery
from facepipe.gallery.leave_one_out import named_without_themselves

NAMES = ("Ada", "Bob", "Eve", "Zoe")
COUNTS = (5, 3, 1, 2)
PEOPLE = np.repeat(np.arange(4), COUNTS)


def crowd(spread: float) -> FloatArray:
    """Faces of `NAMES`; the last of Bob's looks like Ada."""
    vectors = np.concatenate([person_vectors(seed, n, spread) for seed, n in enumerate(COUNTS)])
    vectors[7] = person_vectors(0, 6, spread)[5]
    return vectors


def removed_and_matched(tmp_path: Path, vectors: FloatArray, margin_l2: float) -> list[Match]:
    """Each face matched by a gallery from which it was removed."""
    matches: list[Match] = []
    for row in range(len(vectors)):
        with Gallery.open(tmp_path / f"{row}", ENCODER, create=True) as gallery:
            for person, name in enumerate(NAMES):
                others = [at for at in np.flatnonzero(person == PEOPLE) if at != row]
                if others:
                    gallery.add(name, templates(vectors[others]))
            gallery.set_person_threshold("Ada", 0.8)
            matches += gallery.match(vectors[row : row + 1], threshold_l2=1.0, min_margin_l2=margin_l2)
    return matches


@pytest.mark.parametrize(("spread", "margin_l2"), [(0.05, 0.0), (0.09, 0.3)])
def test_faces_are_named_as_if_they_were_not_enrolled(
    tmp_path: Path, spread: float, margin_l2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = crowd(spread)
    monkeypatch.setattr("facepipe.gallery.leave_one_out._COSINES_AT_ONCE", 4 * len(vectors))
    limits_l2 = np.array([0.8, 1.0, 1.0, 1.0])
    found = named_without_themselves(vectors, PEOPLE, NAMES, limits_l2, min_margin_l2=margin_l2)
    expected = removed_and_matched(tmp_path, vectors, margin_l2)
    assert [match.label for match in found] == [match.label for match in expected]
    assert [match.reason for match in found] == [match.reason for match in expected]
    assert [match.runner_up_name for match in found] == [match.runner_up_name for match in expected]
    assert [m.distance_l2 for m in found] == pytest.approx([m.distance_l2 for m in expected], abs=1e-6)
    assert [m.threshold_l2 for m in found] == [m.threshold_l2 for m in expected]
    assert found[7].runner_up_name or found[7].name == "Ada"


def test_whoever_is_alone_is_nobody() -> None:
    (match,) = named_without_themselves(person_vectors(1, 1), np.zeros(1, np.int64), ["Ada"], np.ones(1))
    assert (match.name, match.distance_l2, match.runner_up_name) == (None, None, None)


def test_nobody_is_there() -> None:
    nothing = np.zeros((0, 128), np.float32)
    assert named_without_themselves(nothing, np.zeros(0, np.int64), [], np.zeros(0)) == ()
