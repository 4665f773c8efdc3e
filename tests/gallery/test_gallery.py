"""The gallery's people: added, listed, renamed, merged, removed."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    INDEX_FILES,
    folder_of,
    person_vectors,
    photo_hash,
    template,
    templates,
    unit,
)

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery import EncoderIdentity, Gallery, NewTemplate


@pytest.fixture
def gallery(place: str) -> Iterator[Gallery]:
    with Gallery.open(place, ENCODER, create=True) as gallery:
        yield gallery


def test_what_was_added_is_there_after_reopening(place: str) -> None:
    vectors = person_vectors(1, 3)
    with Gallery.open(place, ENCODER, create=True) as gallery:
        ids = gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(vectors)])
    with Gallery.open(place) as gallery:
        assert [p.name for p in gallery.people()] == ["Ada"]
        stored = gallery.templates("Ada")
        assert [t.id for t in stored] == ids
        assert [t.source for t in stored] == [f"photos/ada{i}.jpg" for i in range(3)]
        assert stored[0].box_xyxy == (1.5, 2.25, 101.0, 1 / 3)
        assert stored[0].quality == 0.1
        assert stored[0].photo_sha256 == photo_hash("ada0")
        assert stored[0].person == "Ada"
        np.testing.assert_array_equal(gallery.vectors("Ada"), vectors)
        assert gallery.encoder == ENCODER


def test_unknown_box_quality_and_source_stay_unknown(gallery: Gallery) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    (stored,) = gallery.templates("Ada")
    assert (stored.source, stored.box_xyxy, stored.quality, stored.photo_sha256) == (None, None, None, None)


@pytest.mark.parametrize("name", ["", "  \t ", "two\nlines", "nul\0", "x" * 201, "\udcff"])
def test_names_that_are_refused(gallery: Gallery, name: str) -> None:
    with pytest.raises(GalleryError, match="name"):
        gallery.add(name, templates(person_vectors(1, 1)))
    assert gallery.people() == []


def test_names_are_one_person_in_every_unicode_spelling(gallery: Gallery) -> None:
    composed, decomposed = (unicodedata.normalize(form, " Zoë Ñuñez ") for form in ("NFC", "NFD"))
    assert composed != decomposed
    gallery.add(composed, templates(person_vectors(1, 1)))
    gallery.add(decomposed, templates(person_vectors(2, 1)))
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Zoë Ñuñez", 2)]
    assert len(gallery.templates(decomposed)) == 2


def test_people_are_listed_as_people_sort_names(gallery: Gallery) -> None:
    for seed, name in enumerate(["bob", "Carl", "Ada", "Zoë", "李雷"]):
        gallery.add(name, templates(person_vectors(seed, seed + 1)))
    assert [p.name for p in gallery.people()] == ["Ada", "bob", "Carl", "Zoë", "李雷"]
    assert [p.template_count for p in gallery.people()] == [3, 1, 2, 4, 5]


GOOD = person_vectors(1, 1)[0]
NAN, INFINITE = GOOD.copy(), GOOD.copy()
NAN[3], INFINITE[3] = np.nan, np.inf


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(GOOD.astype(np.float64), id="float64"),
        pytest.param(GOOD[:64], id="too short"),
        pytest.param(GOOD[None], id="a row too many"),
        pytest.param(GOOD * np.float32(1.01), id="too long"),
        pytest.param(np.zeros(128, np.float32), id="zero"),
        pytest.param(np.full(128, 1e30, np.float32), id="overflowing"),
        pytest.param(NAN, id="NaN"),
        pytest.param(INFINITE, id="infinite"),
    ],
)
def test_bad_vectors_are_refused_and_nothing_of_the_call_is_stored(
    gallery: Gallery, vector: FloatArray
) -> None:
    with pytest.raises(GalleryError, match="expected"):
        gallery.add("Ada", [NewTemplate(GOOD), NewTemplate(vector)])
    assert gallery.people() == []
    if vector.ndim == 1:
        with pytest.raises(GalleryError, match="expected"):
            gallery.match(vector[None])


@pytest.mark.parametrize(
    "fields",
    [
        {"box_xyxy": (1, 2, 3)},
        {"box_xyxy": (1, 2, 3, float("nan"))},
        {"quality": float("inf")},
        {"photo_sha256": "abc"},
        {"photo_sha256": photo_hash("x").upper()},
        {"added_at": "yesterday"},
    ],
)
def test_bad_template_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(GalleryError, match="expected"):
        NewTemplate(GOOD, **fields)


@pytest.mark.parametrize("fields", [("", "f", 128, 1.0), ("n", "", 128, 1.0), ("n", "f", 0, 1.0)])
def test_bad_encoders_are_refused(fields: tuple[str, str, int, float]) -> None:
    with pytest.raises(GalleryError, match="encoder"):
        EncoderIdentity(*fields)


def test_a_source_that_is_no_text_is_stored_readably(gallery: Gallery) -> None:
    gallery.add("Ada", [NewTemplate(GOOD, source=os.fsdecode(b"caf\xe9.jpg"))])
    assert gallery.templates("Ada")[0].source == "caf\\udce9.jpg"


def test_enrolling_again_changes_nothing(gallery: Gallery) -> None:
    vectors = person_vectors(1, 2)
    first = gallery.add("Ada", [template(vectors[0], "beach"), template(vectors[1])])
    generation = gallery.info().generation
    other_runtime = unit(vectors[0] + np.float32(5e-4))  # The same face as another runtime rounds it.
    assert len(first) == 2
    assert gallery.add("Ada", [template(other_runtime, "beach"), template(vectors[1])]) == []
    assert gallery.info().generation == generation
    assert gallery.people()[0].template_count == 2


def test_the_same_vector_twice_in_a_call_is_stored_once(gallery: Gallery) -> None:
    assert (
        len(gallery.add("Ada", [template(GOOD, "p"), template(GOOD, "p"), template(GOOD), template(GOOD)]))
        == 2
    )


def test_another_face_of_the_photo_or_another_person_is_stored(gallery: Gallery) -> None:
    twins = person_vectors(1, 2)
    assert len(gallery.add("Ada", [template(twins[0], "party")])) == 1
    assert len(gallery.add("Ada", [template(twins[1], "party")])) == 1
    assert len(gallery.add("Bob", [template(twins[0], "party")])) == 1


def test_has_photo(gallery: Gallery) -> None:
    gallery.add("Ada", [template(GOOD, "beach")])
    beach = photo_hash("beach")
    assert gallery.has_photo(beach)
    assert gallery.has_photo(beach, "Ada")
    assert not gallery.has_photo(beach, "Bob")
    assert not gallery.has_photo(photo_hash("hills"))


def test_adding_nothing_is_an_error(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="no faces"):
        gallery.add("Ada", [])


def test_ids_are_never_given_again(gallery: Gallery) -> None:
    (first,) = gallery.add("Ada", templates(person_vectors(1, 1)))
    gallery.remove("Ada")
    (second,) = gallery.add("Ada", templates(person_vectors(1, 1)))
    assert second > first


def test_rename(gallery: Gallery) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    gallery.add("Bob", templates(person_vectors(2, 1)))
    assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
    gallery.rename("Ada", "Ada Lovelace")
    assert gallery.match(person_vectors(1, 1))[0].name == "Ada Lovelace"
    with pytest.raises(GalleryError, match="merge"):
        gallery.rename("Ada Lovelace", "Bob")
    with pytest.raises(GalleryError, match="nobody is named 'Ada'"):
        gallery.rename("Ada", "Eve")
    gallery.rename("Bob", " Bob ")
    assert [person.name for person in gallery.people()] == ["Ada Lovelace", "Bob"]


def test_merge_makes_one_person_of_two(gallery: Gallery) -> None:
    ada, same = person_vectors(1, 2), person_vectors(7, 1)[0]
    gallery.add("Ada", [template(ada[0]), template(same, "both")])
    gallery.add("A. Lovelace", [template(ada[1]), template(same, "both")])
    assert gallery.merge("A. Lovelace", "Ada") == 1
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 3)]
    assert gallery.match(ada[1:])[0].name == "Ada"


@pytest.mark.parametrize(("source", "into"), [("Ada", "Ada"), ("Ada", "nobody"), ("nobody", "Ada")])
def test_merges_that_are_refused(gallery: Gallery, source: str, into: str) -> None:
    gallery.add("Ada", templates(person_vectors(1, 1)))
    with pytest.raises(GalleryError):
        gallery.merge(source, into)
    assert gallery.people()[0].template_count == 1


@pytest.mark.parametrize("act", [Gallery.remove, Gallery.templates, Gallery.vectors])
def test_who_is_not_known_is_said(gallery: Gallery, act: Callable[[Gallery, str], object]) -> None:
    with pytest.raises(GalleryError, match="nobody is named 'Eve'"):
        act(gallery, "Eve")


def test_every_change_raises_the_generation_once(gallery: Gallery) -> None:
    changes: list[Callable[[], object]] = [
        lambda: gallery.add("Ada", templates(person_vectors(1, 5))),
        lambda: gallery.add("Bob", templates(person_vectors(2, 1))),
        lambda: gallery.rename("Bob", "Rob"),
        lambda: gallery.merge("Rob", "Ada"),
        lambda: gallery.remove("Ada"),
    ]
    assert gallery.info().generation == 0
    for count, change in enumerate(changes, start=1):
        change()
        assert gallery.info().generation == count


def test_info(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        assert gallery.info().index_is_current
        gallery.add("Ada", templates(person_vectors(1, 2)))
        gallery.add("Bob", templates(person_vectors(2, 1)))
        info = gallery.info()
        assert (info.people, info.templates, info.read_only) == (2, 3, False)
        assert not info.index_is_current
    with Gallery.open(tmp_path / "g") as gallery:
        info = gallery.info()
        assert info.index_is_current
        assert info.encoder == ENCODER
        assert info.size_bytes > 3 * 128 * 4 * 2


def test_the_folder_and_its_files_are_private(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "new" / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
        assert stat.S_IMODE(folder_of(gallery).stat().st_mode) == 0o700
    files = sorted(folder_of(gallery).iterdir())
    assert [f.name for f in files] == ["gallery.sqlite3", *INDEX_FILES]
    assert [stat.S_IMODE(f.stat().st_mode) for f in files] == [0o600, 0o600, 0o600]
