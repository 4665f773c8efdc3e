"""Galleries of older schemas: brought up to date in one transaction, or read as they are."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    ENCODER_8D,
    V1,
    make_gallery_of_schema_2,
    person_vectors,
    photo_hash,
    unit,
)

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.repair import verify
from facepipe.gallery.storage.schema import SCHEMA_VERSION
from facepipe.gallery.storage.sqlite.schema import migrating_statements


def v1_vectors(seed: int, count: int) -> FloatArray:
    """What was enrolled: of Ada by seed 1, of Zoë by seed 2."""
    rng = np.random.default_rng(seed)
    return unit(unit(rng.normal(size=8)) + 0.1 * rng.normal(size=(count, 8)))


def version_of(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def require_v1_contents(gallery: Gallery) -> None:
    assert [(p.name, p.template_count, p.threshold_l2) for p in gallery.people()] == [
        ("Ada", 3, None),
        ("Zoë Ñuñez", 2, None),
    ]
    stored = gallery.templates("Ada")
    assert [t.id for t in stored] == [1, 2, 3]
    assert [t.source for t in stored] == [f"photos/ada{i}.jpg" for i in range(3)]
    assert [t.photo_sha256 for t in stored] == [photo_hash(f"ada{i}") for i in range(3)]
    assert (stored[0].box_xyxy, stored[0].quality) == ((1.5, 2.25, 101.0, 1 / 3), 0.1)
    assert stored[0].added_at == "2024-05-06T07:08:09+00:00"
    np.testing.assert_array_equal(gallery.vectors("Ada"), v1_vectors(1, 3))
    np.testing.assert_array_equal(gallery.vectors("Zoë Ñuñez"), v1_vectors(2, 2))
    assert gallery.match(v1_vectors(2, 1))[0].name == "Zoë Ñuñez"
    assert gallery.threshold_l2 is None
    assert gallery.unknown_faces() == []
    assert gallery.crop(1) is None


def test_an_older_gallery_is_brought_up_to_date(v1_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert version_of(v1_folder) == 1
    caplog.set_level("INFO", "facepipe")
    with Gallery.open(v1_folder, ENCODER_8D) as gallery:
        require_v1_contents(gallery)
        assert gallery.info().schema_version == SCHEMA_VERSION
    assert ["from schema 1" in message for message in caplog.messages] == [True]
    assert version_of(v1_folder) == SCHEMA_VERSION
    with Gallery.open(v1_folder, ENCODER_8D) as gallery:
        gallery.set_person_threshold("Ada", 0.5)
        (added,) = gallery.add("Eve", [NewTemplate(v1_vectors(3, 1)[0], crop=b"a picture")])
        assert added == 7  # 6 was Eve's before she was erased.
        assert gallery.crop(added) == b"a picture"
    assert len(caplog.messages) == 1


def test_a_brought_up_gallery_has_the_tables_of_a_new_one(v1_folder: Path, tmp_path: Path) -> None:
    Gallery.open(v1_folder).close()
    Gallery.open(tmp_path / "new", ENCODER_8D, create=True).close()

    def tables(folder: Path) -> list[object]:
        with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()

    assert tables(v1_folder) == tables(tmp_path / "new")


def test_a_migration_that_fails_leaves_the_gallery_as_it_was(
    v1_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (v1_folder / "gallery.sqlite3").read_bytes()
    statements = [*migrating_statements(1)]
    monkeypatch.setattr(
        "facepipe.gallery.storage.sqlite.database.migrating_statements",
        lambda version: [*statements, "SELECT no_such_function()"],
    )
    with pytest.raises(GalleryError, match="no_such_function"):
        Gallery.open(v1_folder)
    assert (v1_folder / "gallery.sqlite3").read_bytes() == before
    monkeypatch.undo()
    with Gallery.open(v1_folder, ENCODER_8D) as gallery:
        require_v1_contents(gallery)


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anything, so the answer of the system is replaced where the tests run as root."""
    monkeypatch.setattr(
        "facepipe.gallery.storage.sqlite.database.os.access", lambda path, mode: mode == os.R_OK
    )


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.usefixtures("unwritable")
def test_an_older_gallery_that_may_not_be_written_is_read_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    make_gallery_of_schema_2(folder)
    before = (folder / "gallery.sqlite3").read_bytes()
    (folder / "gallery.sqlite3").chmod(stat.S_IRUSR)
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.read_only
        require_schema_2_contents(gallery)
        with gallery.one_state():
            require_schema_2_contents(gallery)
        for change in (lambda: gallery.set_threshold(0.5), lambda: gallery.remove("Ada")):
            with pytest.raises(GalleryError, match="read-only"):
                change()
    assert (folder / "gallery.sqlite3").read_bytes() == before
    assert version_of(folder) == 2


def require_schema_2_contents(gallery: Gallery) -> None:
    assert [(p.name, p.template_count, p.threshold_l2) for p in gallery.people()] == [("Ada", 3, 0.5)]
    np.testing.assert_array_equal(gallery.vectors("Ada"), person_vectors(1, 3))
    assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
    assert (gallery.threshold_l2, gallery.unknown_faces(), gallery.crop(1)) == (None, [], None)
    assert gallery.state


@pytest.mark.usefixtures("unwritable")
def test_one_of_the_first_schema_is_refused_where_it_may_not_be_written(v1_folder: Path) -> None:
    before = (v1_folder / "gallery.sqlite3").read_bytes()
    for use in (Gallery.open, verify):
        with pytest.raises(GalleryError, match="open it once where it may be written"):
            use(v1_folder)
    assert (v1_folder / "gallery.sqlite3").read_bytes() == before


def test_nor_can_it_be_merged_from(v1_folder: Path, tmp_path: Path) -> None:
    """Nothing of the other gallery is changed, not even its schema."""
    with Gallery.open(tmp_path / "own", ENCODER_8D, create=True) as gallery:
        with pytest.raises(GalleryError, match="open it once"):
            gallery.merge_from(v1_folder)
        assert version_of(v1_folder) == 1
        Gallery.open(v1_folder).close()
        assert gallery.merge_from(v1_folder) == 5
        require_v1_contents(gallery)


def test_an_older_archive_is_imported(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", ENCODER_8D, create=True) as gallery:
        assert gallery.import_archive(V1 / "archive.zip") == 5
        require_v1_contents(gallery)
