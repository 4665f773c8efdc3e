"""Which threshold would have been right, by what people decided."""

from __future__ import annotations

import numpy as np
import pytest
from gallery_helpers import person_vectors, unit
from question_helpers import THRESHOLD_L2, MadeUpLibrary, library_of

from facepipe.batch.decisions import Verdict
from facepipe.core.faces import FloatArray
from facepipe.gallery.models import Person
from facepipe.library.advice import ThresholdAdvice, right_share, threshold_advice
from facepipe.library.models import Checked


def advise(library: MadeUpLibrary) -> list[ThresholdAdvice]:
    return threshold_advice(library.as_library())


def test_the_share_of_right_names_has_an_interval_that_few_checks_leave_wide() -> None:
    many, few = right_share(Checked(409, 3)), right_share(Checked(5, 0))
    assert many is not None
    assert few is not None
    assert many.value == pytest.approx(409 / 412)
    assert 0.975 < many.low < many.value < many.high < 0.999
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low < 0.5
    assert right_share(Checked(0, 0)) is None
    wrong = right_share(Checked(0, 4))
    assert wrong is not None
    assert wrong.value == 0.0
    assert wrong.low == pytest.approx(0.0)


def test_nothing_decided_gives_no_advice() -> None:
    (overall,) = advise(MadeUpLibrary())
    assert (overall.name, overall.missed, overall.wrong, overall.best_l2) == (None, 0, 0, None)
    assert not overall.is_change_advised


def test_few_decisions_give_no_advice() -> None:
    (overall,) = advise(library_of({"Ada": 6, "Grace": 6}))
    assert overall.best_l2 is None
    assert not overall.is_change_advised


def test_strangers_nearer_than_the_threshold_bring_it_down() -> None:
    library = library_of({"Ada": 30, "Grace": 30}, spread=0.03)
    library.add(_at_distance(_middle(library, 0, 30), 0.9, 20), verdict=Verdict.IGNORE)
    overall, ada = advise(library)
    assert (overall.wrong, overall.missed) == (20, 0)
    assert ada.name == "Ada"
    for advice in (overall, ada):
        assert advice.best_l2 is not None
        assert advice.low_l2 is not None
        assert 0.3 < advice.low_l2 <= advice.best_l2 < 0.9
        assert (advice.best_missed, advice.best_wrong) == (0, 0)
        assert advice.is_change_advised


def test_advice_on_a_person_is_about_their_own_threshold() -> None:
    library = library_of({"Ada": 30}, spread=0.03)
    library.gallery.people = lambda: [Person("Ada", 30, "", "", threshold_l2=0.8)]
    library.add(_at_distance(_middle(library, 0, 30), 0.9, 20), verdict=Verdict.IGNORE)
    overall, ada = advise(library)
    assert (overall.threshold_l2, overall.wrong) == (THRESHOLD_L2, 20)
    assert (ada.threshold_l2, ada.wrong, ada.best_l2) == (0.8, 0, 0.8)


def test_a_threshold_that_suits_the_decisions_is_kept() -> None:
    library = library_of({"Ada": 30}, spread=0.03)
    library.add(_at_distance(_middle(library, 0, 30), 1.25, 20), verdict=Verdict.IGNORE)
    library.add(_at_distance(_middle(library, 0, 30), 0.99, 30), name="Ada", is_confirmed=True)
    overall = advise(library)[0]
    assert (overall.wrong, overall.missed) == (0, 0)
    assert overall.best_l2 == overall.low_l2 == overall.high_l2 == overall.threshold_l2
    assert not overall.is_change_advised


def test_a_rejected_face_counts_only_where_its_nearest_person_was_rejected() -> None:
    library = library_of({"Ada": 12, "Grace": 12}, spread=0.03)
    near_ada = _at_distance(_middle(library, 0, 12), 0.8, 6)
    library.add(near_ada[:3], not_names=["Ada"])
    library.add(near_ada[3:], not_names=["Grace"])
    assert advise(library)[0].wrong == 3


def test_a_face_is_not_compared_with_itself() -> None:
    library = MadeUpLibrary()
    library.add(person_vectors(0, 2, 0.2), name="Ada", is_confirmed=True)  # 1.3 from each other
    assert advise(library)[0].missed == 2
    assert advise(library)[0].threshold_l2 == THRESHOLD_L2


def _middle(library: MadeUpLibrary, start: int, count: int) -> FloatArray:
    return unit(library.embeddings[start : start + count].mean(axis=0))


def _at_distance(middle: FloatArray, distance_l2: float, count: int) -> FloatArray:
    """Unit vectors (count, d) at a distance of another, in random directions."""
    random = np.random.default_rng(round(100 * distance_l2))
    directions = random.normal(size=(count, len(middle)))
    across = unit(directions - np.outer(directions @ middle, middle))
    cosine = 1.0 - distance_l2**2 / 2
    return unit(cosine * middle + np.sqrt(1 - cosine**2) * across)
