"""What is planted in a gallery (wrong names, two names, few photos) is found, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import ENCODER, person_vectors, template, templates, unit

from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery, Template
from facepipe.gallery.audit import (
    FAR_SHARE,
    NEAR_DUPLICATE_L2,
    Remark,
    audit,
    mutual_distance,
    nearest_own,
    remarks,
    remarks_on_new,
)
from facepipe.gallery.matching import PersonAt

PEOPLE = ("Ada", "Bob", "Eve", "Zoë")


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Four people of five photos about 0.7 apart; different people are about 1.4 apart."""
    with Gallery.open(tmp_path, ENCODER, create=True) as opened:
        for seed, name in enumerate(PEOPLE):
            opened.add(name, templates(person_vectors(seed, 5)))
        yield opened


def more_of(seed: int, count: int) -> FloatArray:
    """Further photos of a person whose first five are enrolled."""
    return person_vectors(seed, 5 + count)[5:]


def test_nothing_is_found_where_all_is_well(gallery: Gallery) -> None:
    found = audit(gallery)
    assert (found.people, found.templates, found.threshold_l2) == (4, 20, ENCODER.threshold_l2)
    assert (found.mislabelled, found.same_people, found.few_photos) == ((), (), ())


def test_a_face_under_a_wrong_name(gallery: Gallery) -> None:
    (planted,) = gallery.add("Ada", [template(more_of(1, 1)[0], "holiday")])
    (suspect,) = audit(gallery).mislabelled
    assert (suspect.template.id, suspect.template.person) == (planted, "Ada")
    assert suspect.template.source == "photos/holiday.jpg"
    assert {remark.remark for remark in suspect.remarks} == {Remark.FAR_FROM_OTHERS, Remark.LOOKS_LIKE_OTHER}
    assert suspect.other is not None
    assert suspect.other.name == "Bob"
    assert suspect.other.distance_l2 < 1 < FAR_SHARE < (suspect.own_l2 or 0)


def test_a_face_under_a_wrong_name_accuses_no_right_one(gallery: Gallery) -> None:
    """Bob's own photo is nearer to its copy under Ada's name than to all others of Bob."""
    bobs = person_vectors(1, 1)[0]
    copy = unit(bobs + 0.1 * person_vectors(70, 1)[0])
    (other,) = gallery.nearest_others("Bob", bobs[None])
    (planted,) = gallery.add("Ada", templates(copy[None]))
    (accusing,) = gallery.nearest_others("Bob", bobs[None])
    assert other is not None
    assert accusing is not None
    assert accusing.distance_l2 < 0.2 < 1 < other.distance_l2
    assert [suspect.template.id for suspect in audit(gallery).mislabelled] == [planted]


def test_a_stranger_under_a_name_is_far_from_the_persons_photos(gallery: Gallery) -> None:
    (planted,) = gallery.add("Eve", templates(person_vectors(99, 1)))
    (suspect,) = audit(gallery).mislabelled
    assert suspect.template.id == planted
    assert [remark.remark for remark in suspect.remarks] == [Remark.FAR_FROM_OTHERS]


def test_the_most_suspicious_come_first(gallery: Gallery) -> None:
    gallery.add("Eve", templates(person_vectors(99, 1)))
    (like_bob,) = gallery.add("Ada", templates(more_of(1, 1)))
    first, _ = audit(gallery).mislabelled
    assert first.template.id == like_bob


def test_one_person_under_two_names(gallery: Gallery) -> None:
    gallery.add("Adaline", templates(more_of(0, 4)))
    found = audit(gallery)
    (couple,) = found.same_people
    assert (couple.first, couple.second) == ("Ada", "Adaline")
    assert couple.distance_l2 < ENCODER.threshold_l2


def test_a_wrong_photo_makes_no_two_people_one(gallery: Gallery) -> None:
    gallery.add("Ada", templates(more_of(1, 1)))
    assert audit(gallery).same_people == ()


def test_people_of_few_photos(gallery: Gallery) -> None:
    gallery.add("Kim", templates(person_vectors(50, 2)))
    gallery.add("Lou", templates(person_vectors(51, 3)))
    assert [(person.name, person.template_count) for person in audit(gallery).few_photos] == [("Kim", 2)]


def test_the_threshold_is_the_callers_or_the_gallerys(gallery: Gallery) -> None:
    gallery.set_threshold(0.3)
    assert audit(gallery).threshold_l2 == 0.3
    assert len(audit(gallery).mislabelled) == 16  # Everybody is far then; the last of a person has no other.
    assert audit(gallery, 1.1).mislabelled == ()


@pytest.mark.parametrize("threshold_l2", [-0.1, 2.001, np.nan, np.inf])
def test_thresholds_that_are_refused(gallery: Gallery, threshold_l2: float) -> None:
    with pytest.raises(UsageError, match=r"expected 0\.\.2"):
        audit(gallery, threshold_l2)


def test_without_a_measured_threshold_one_must_be_given(tmp_path: Path) -> None:
    unmeasured = replace(ENCODER, threshold_l2=0.0)
    with Gallery.open(tmp_path, unmeasured, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
        with pytest.raises(UsageError, match="--threshold"):
            audit(gallery)
        assert audit(gallery, 1.0).mislabelled == ()
        assert remarks_on_new(gallery, "Ada", person_vectors(2, 1)[0]) == ()


def test_an_audit_sees_one_state_whoever_writes_meanwhile(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds to a person whose faces were just listed, and removes one who was."""
    with Gallery.open(gallery.path, ENCODER) as other:
        listed = gallery.templates

        def list_and_be_overtaken(name: str) -> list[Template]:
            found = listed(name)
            if other.knows("Zoë"):
                other.add("Ada", templates(more_of(0, 1)))
                other.remove("Zoë")
            return found

        monkeypatch.setattr(
            "facepipe.gallery.storage.sqlite.database.BUSY_TIMEOUT_S", 0.1
        )  # The audit is in the way of wiping.
        monkeypatch.setattr(gallery, "templates", list_and_be_overtaken)
        found = audit(gallery)
    assert (found.people, found.templates, found.mislabelled) == (4, 20, ())
    assert [person.name for person in gallery.people()] == ["Ada", "Bob", "Eve"]


def test_an_empty_gallery_and_one_of_one(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        assert audit(gallery).people == 0
        gallery.add("Ada", templates(person_vectors(1, 1)))
        found = audit(gallery)
    assert (found.mislabelled, found.same_people) == ((), ())
    assert [person.name for person in found.few_photos] == ["Ada"]


def test_findings_as_json(gallery: Gallery) -> None:
    gallery.add("Ada", [template(more_of(1, 1)[0], "holiday")])
    record = audit(gallery).to_dict()
    assert list(record) == [
        *("threshold_l2", "people", "templates", "mislabelled", "same_people", "few_photos"),
        "similar_names",
    ]
    (suspect,) = record["mislabelled"]
    assert suspect["template"]["source"] == "photos/holiday.jpg"
    assert [remark["code"] for remark in suspect["remarks"]] == ["far_from_others", "looks_like_other"]
    assert suspect["remarks"][1]["sentence"].startswith("looks like Bob (0.")


# A face that is to be enrolled


@pytest.mark.parametrize(
    ("own_l2", "other_l2", "expected"),
    [
        (None, None, []),
        (None, 1.1, []),
        (None, 0.9, [Remark.LOOKS_LIKE_OTHER]),
        (0.8, 0.9, []),
        (0.95, 0.9, [Remark.LOOKS_LIKE_OTHER]),
        (1.3, 0.9, [Remark.FAR_FROM_OTHERS, Remark.LOOKS_LIKE_OTHER]),
        (1.3, 1.1, [Remark.FAR_FROM_OTHERS]),
        (1.1, 1.05, []),
        (NEAR_DUPLICATE_L2, 1.4, [Remark.NEAR_DUPLICATE]),
        (0.0, 0.0, [Remark.NEAR_DUPLICATE, Remark.LOOKS_LIKE_OTHER]),
    ],
)
def test_what_is_odd_about_a_face(
    own_l2: float | None, other_l2: float | None, expected: list[Remark]
) -> None:
    other = None if other_l2 is None else PersonAt("Bob", other_l2)
    found = remarks(own_l2, other, threshold_l2=1.0)
    assert [remark.remark for remark in found] == expected
    for remark in found:
        assert (remark.name == "Bob") == (remark.remark is Remark.LOOKS_LIKE_OTHER)


def test_a_new_face_is_held_against_its_name_and_everybody_else(gallery: Gallery) -> None:
    bobs = more_of(1, 1)[0]
    assert remarks_on_new(gallery, "Bob", bobs) == ()
    (new_name,) = remarks_on_new(gallery, "Robert", bobs)
    assert (new_name.remark, new_name.name) == (Remark.LOOKS_LIKE_OTHER, "Bob")
    assert {remark.remark for remark in remarks_on_new(gallery, "Ada", bobs)} == {
        Remark.FAR_FROM_OTHERS,
        Remark.LOOKS_LIKE_OTHER,
    }
    copy = unit(person_vectors(1, 5)[3] + 0.01 * person_vectors(77, 1)[0])
    assert [remark.remark for remark in remarks_on_new(gallery, "Bob", copy)] == [Remark.NEAR_DUPLICATE]


def test_the_codes_are_stable() -> None:
    assert {remark.value for remark in Remark} == {
        "near_duplicate",
        "far_from_others",
        "looks_like_other",
        "similar_name",
    }


# Distances


def test_distance_to_the_nearest_other_face_of_the_same_person() -> None:
    angles = np.array([0.0, 0.2, 1.0])
    vectors = np.zeros((3, 128), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    expected = [2 * np.sin(0.1), 2 * np.sin(0.1), 2 * np.sin(0.4)]
    assert nearest_own(vectors) == pytest.approx(expected, abs=1e-6)
    assert nearest_own(vectors[:1]) == [None]
    assert nearest_own(vectors[:0]) == []


def test_mutual_distance_by_hand() -> None:
    """From a at 0: to 0.6; from b at 0.6 and 1.0: to 0."""
    angles = np.array([0.0, 0.6, 1.0])
    vectors = np.zeros((3, 128), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    near, far = 2 * np.sin(0.3), 2 * np.sin(0.5)
    expected = (near + (near + far) / 2) / 2
    assert mutual_distance(vectors[:1], vectors[1:]) == pytest.approx(expected, abs=1e-6)
    assert mutual_distance(vectors[1:], vectors[:1]) == pytest.approx(expected, abs=1e-6)
