"""Names of people: what is stored of them, which look the same, and who is told of it."""

from __future__ import annotations

import logging
import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, folder_of, person_vectors, template, templates
from hypothesis import given, settings
from hypothesis import strategies as st

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.audit import Remark, audit, remarks_on_new
from facepipe.gallery.gallery import import_archive
from facepipe.gallery.names import NAME_LENGTH_MAX, clean_name, lookalike_key, lookalikes, mended_name
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum

CONTROLS = (
    "\u00ad\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2069\ufeff"
)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_invisible_characters_are_removed_wherever_they_stand(control: str) -> None:
    for name in (
        f"{control}Ada L.",
        f"Ada{control} L.",
        f"A{control}da L.",
        f"Ada L.{control}",
        f" {control}Ada L. ",
    ):
        assert clean_name(name) == "Ada L."


SHAPED = [
    "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",  # Persian: the non-joiner parts the name's halves
    "ക്\u200d",  # Malayalam: a chillu, written with a joiner at the end of a word
    "ශ්\u200dරී",  # Sinhala: a joiner makes the touching form
    "葛\U000e0100城",  # Japanese: the selector chooses the family's own form of the letter
    "👩\u200d👧",
    "❤\ufe0f",
    "ᠠ\u180b",
]


@pytest.mark.parametrize("name", SHAPED, ids=ascii)
def test_joiners_and_selectors_that_shape_letters_stay(name: str) -> None:
    assert clean_name(name) == name
    plain = "".join(
        letter for letter in name if unicodedata.category(letter) != "Cf" and letter.isprintable()
    )
    assert lookalike_key(name) == lookalike_key(plain)


@pytest.mark.parametrize(
    "name", ["", " ", "\u200b", "\u202e \u2069", "a\nb", "a\u2028b", "a\x00b", "\ud800", "x" * 201]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(GalleryError, match="name"):
        clean_name(name)


names = st.text(
    st.one_of(st.characters(), st.sampled_from(list(CONTROLS + "AdéÉ \ufe0f\u094d\u0645\u0627👩"))),
    max_size=NAME_LENGTH_MAX + 10,
)


@given(names)
@settings(deadline=None)
def test_what_is_stored_is_clean_visible_and_stable(name: str) -> None:
    try:
        cleaned = clean_name(name)
    except GalleryError:
        return
    assert clean_name(cleaned) == cleaned == unicodedata.normalize("NFC", cleaned)
    assert 0 < len(cleaned) <= NAME_LENGTH_MAX
    assert not set(cleaned) & set(CONTROLS.replace("\u200c", "").replace("\u200d", ""))
    assert lookalike_key(cleaned) == lookalike_key(name)
    assert lookalike_key(cleaned.upper().lower()) == lookalike_key(cleaned.lower().upper().lower())


@given(names, st.lists(names, max_size=3))
@settings(deadline=None)
def test_a_mended_name_may_be_stored_and_is_nobodys(name: str, taken: list[str]) -> None:
    try:
        mended = mended_name(name, taken)
    except GalleryError:
        assert not any(letter.isprintable() and letter.strip() for letter in name)
        return
    assert clean_name(mended) == mended
    assert mended == name or mended not in taken


def test_a_stored_name_that_can_not_be_mended_is_no_wrong_usage() -> None:
    with pytest.raises(GalleryError) as refused:
        clean_name("\u200b")
    assert refused.value.exit_code == 2
    with pytest.raises(GalleryError) as damaged:
        mended_name("\u200b", ())
    assert damaged.value.exit_code == 1


def test_names_that_look_the_same() -> None:
    same = ["José", "josé", "JOSE\u0301", "Ｊｏｓé", " José", "Jo\u200bsé"]
    assert lookalikes([*same, "Jose", "Josée", "Straße", "STRASSE"]) == [
        tuple(sorted(same)),
        ("STRASSE", "Straße"),
    ]
    assert lookalikes(["Ada Lovelace", "Ada\u00a0 Lovelace"]) == [("Ada Lovelace", "Ada\u00a0 Lovelace")]
    assert lookalikes(["Ada", "Bob"]) == []


# Who is told


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """A gallery of José and Bob."""
    gallery = Gallery.open(tmp_path / "g", ENCODER, create=True)
    gallery.add("José", templates(person_vectors(1, 2)))
    gallery.add("Bob", templates(person_vectors(2, 2)))
    return gallery


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "similar_name" in record.getMessage()]


def test_enrolling_under_a_name_like_anothers_is_a_remark_of_its_own_once(gallery: Gallery) -> None:
    vector = person_vectors(5, 1)[0]
    first, *_ = remarks_on_new(gallery, "josé", vector)
    assert (first.remark, first.name, first.distance_l2) == (Remark.SIMILAR_NAME, "José", None)
    assert first.to_dict()["code"] == "similar_name"
    assert "'José'" in str(first)
    gallery.add("josé", templates(vector[None]))
    for name in ("josé", "José", "Bob", "Kim"):
        assert all(r.remark is not Remark.SIMILAR_NAME for r in remarks_on_new(gallery, name, vector))
    assert gallery.people_like("JOSÉ") == ["José", "josé"]
    assert audit(gallery).similar_names == (("José", "josé"),)


def test_renaming_warns(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    gallery.rename("Bob", "Kim")
    assert told(caplog) == []
    gallery.rename("Kim", "JOSÉ")
    (line,) = told(caplog)
    assert "'JOSÉ' and 'José' look the same" in line
    assert "gallery merge" in line
    caplog.clear()
    gallery.merge("JOSÉ", "José")
    assert told(caplog) == []
    gallery.rename("José", "josé")  # Of one person: there is no other any more.
    assert told(caplog) == []


def test_imports_merges_and_clusters_warn(
    gallery: Gallery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gallery.export_archive(tmp_path / "a.zip")
    with Gallery.open(tmp_path / "other", ENCODER, create=True) as other:
        other.add("josé", templates(person_vectors(7, 1)))
        other.merge_from(gallery.path)
        assert len(told(caplog)) == 1
        caplog.clear()
        other.merge_from(gallery.path)  # Nobody new.
        assert told(caplog) == []
    with Gallery.open(tmp_path / "third", ENCODER, create=True) as third:
        third.add("josé", templates(person_vectors(7, 1)))
    import_archive(tmp_path / "third", tmp_path / "a.zip", ENCODER)
    assert len(told(caplog)) == 1
    caplog.clear()
    ids = gallery.remember_unknown(
        [template(vector, f"u{i}") for i, vector in enumerate(person_vectors(9, 2))]
    )
    gallery.enroll_unknown(ids, "JOSÉ")
    assert len(told(caplog)) == 1


# Names of earlier versions


def write_name(folder: Path, old: str, new: str) -> None:
    """Put a name into the database as a version did that took it."""
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        connection.create_function("row_checksum", -1, row_checksum)
        connection.execute("UPDATE people SET name = ? WHERE name = ?", (new, old))
        connection.execute(f"UPDATE people SET checksum = row_checksum({CHECKED_COLUMNS['people']})")
        connection.commit()


@pytest.fixture
def old(gallery: Gallery) -> Path:
    """A gallery of José, of Bob with a zero-width space, and of Bob."""
    gallery.add("Second", templates(person_vectors(3, 2)))
    gallery.close()
    write_name(folder_of(gallery), "Second", "Bob\u200b")
    return folder_of(gallery)


def test_people_with_names_of_earlier_versions_are_still_found(old: Path) -> None:
    with Gallery.open(old, ENCODER) as gallery:
        assert [p.name for p in gallery.people()] == ["Bob", "Bob\u200b", "José"]
        assert gallery.vectors("Bob\u200b").tobytes() == person_vectors(3, 2).tobytes()
        assert gallery.vectors("Bob").tobytes() == person_vectors(2, 2).tobytes()
        assert audit(gallery).similar_names == (("Bob", "Bob\u200b"),)
        gallery.rename("Bob\u200b", "Kim\u200b")
        assert [p.name for p in gallery.people()] == ["Bob", "José", "Kim"]
    assert verify(old, ENCODER) == ()


def test_repair_mends_names_and_loses_nobody(old: Path) -> None:
    (finding,) = verify(old, ENCODER)
    assert finding.code == "name"
    done = repair(old, ENCODER)
    assert (done.templates, done.quarantined) == (6, 1)
    assert verify(old, ENCODER) == ()
    with Gallery.open(old, ENCODER) as gallery:
        assert [p.name for p in gallery.people()] == ["Bob", "Bob (2)", "José"]
        assert gallery.vectors("Bob (2)").tobytes() == person_vectors(3, 2).tobytes()


def test_archives_and_merges_carry_mended_names(old: Path, tmp_path: Path) -> None:
    with Gallery.open(old, ENCODER) as gallery:
        gallery.export_archive(tmp_path / "a.zip")
    import_archive(tmp_path / "new", tmp_path / "a.zip", ENCODER)
    with Gallery.open(tmp_path / "merged", ENCODER, create=True) as merged:
        merged.merge_from(old)
    for folder in (tmp_path / "new", tmp_path / "merged"):
        with Gallery.open(folder) as gallery:
            assert [(p.name, p.template_count) for p in gallery.people()] == [
                ("Bob", 2),
                ("Bob (2)", 2),
                ("José", 2),
            ]


def test_nothing_is_logged_for_names_that_differ(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        gallery.rename("Bob", "Jose")
    assert told(caplog) == []
