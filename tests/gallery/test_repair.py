"""What verifying finds, and what repairing saves: never a silent loss."""

from __future__ import annotations

import base64
import json
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    INDEX_FILES,
    OTHER_ENCODER,
    person_vectors,
    read_index_files,
    template,
    templates,
    write_index_files,
)

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import Gallery
from facepipe.gallery.audit import audit
from facepipe.gallery.gallery import import_archive
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.errors import LostDatabaseError
from facepipe.gallery.storage.salvaged import QUARANTINE_FILE
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of five people with thresholds, crops and unknown faces, closed."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        for seed, name in enumerate(["Ada", "Bob", "Eve", "Zoë", "李雷"]):
            new = [template(v, f"{name}{i}") for i, v in enumerate(person_vectors(seed, 20))]
            gallery.add(name, new)
        gallery.remember_unknown([template(v, f"stranger{i}") for i, v in enumerate(person_vectors(99, 5))])
        gallery.set_threshold(0.9)
        gallery.set_person_threshold("Eve", 0.8)
    return tmp_path / "g"


def contents(folder: Path) -> list[object]:
    """All that a gallery says of itself."""
    with Gallery.open(folder, ENCODER) as gallery:
        people = gallery.people()
        return [
            people,
            gallery.encoder,
            gallery.threshold_l2,
            [gallery.templates(person.name) for person in people],
            [gallery.vectors(person.name).tobytes() for person in people],
            [(f.id, f.embedding.tobytes(), f.source, f.box_xyxy, f.quality) for f in gallery.unknown_faces()],
            gallery.match(person_vectors(1, 1)),
        ]


def spoil(folder: Path, *statements: str) -> None:
    """Change rows behind the gallery's back."""
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


STAMPED = row_checksum.__name__


def spoil_and_stamp(folder: Path, statement: str) -> None:
    """The same by somebody who knows the checksums."""
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        connection.create_function(STAMPED, -1, row_checksum)
        connection.execute(statement)
        for table, columns in CHECKED_COLUMNS.items():
            connection.execute(f"UPDATE {table} SET checksum = {STAMPED}({columns})")
        connection.commit()


def test_a_whole_gallery_verifies_and_is_left_alone(folder: Path) -> None:
    assert verify(folder, ENCODER) == ()
    before = (folder / "gallery.sqlite3").read_bytes()
    done = repair(folder)
    assert (done.findings, done.templates, done.quarantined, done.aside) == ((), 100, 0, None)
    assert (folder / "gallery.sqlite3").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["g"]


def test_vectors_of_another_encoder_are_no_finding_but_an_error(folder: Path) -> None:
    with pytest.raises(GalleryError, match=r"round .*square"):
        verify(folder, OTHER_ENCODER)


NAN_VECTOR = "X'" + np.full(128, np.nan, "<f4").tobytes().hex() + "'"


@pytest.mark.parametrize(
    ("statement", "code", "left"),
    [
        pytest.param(f"UPDATE templates SET vector = {NAN_VECTOR} WHERE id = 7", "vector", 99, id="NaN"),
        pytest.param("UPDATE templates SET vector = zeroblob(512) WHERE id = 7", "vector", 99, id="zero"),
        pytest.param("UPDATE templates SET vector = x'00' WHERE id = 7", "vector", 99, id="cut"),
        pytest.param("UPDATE templates SET person_id = 77 WHERE id < 4", "reference", 97, id="nobody's"),
        pytest.param("UPDATE people SET name = 'two' || char(10) WHERE id = 2", "name", 100, id="bad name"),
        pytest.param("UPDATE people SET name = char(8203) WHERE id = 2", "name", 80, id="no name"),
        pytest.param("UPDATE people SET threshold_l2 = 7 WHERE id = 2", "threshold", 100, id="threshold"),
        pytest.param("UPDATE settings SET value = 3.0", "threshold", 100, id="gallery's threshold"),
        pytest.param("INSERT INTO people (name) VALUES ('nobody')", "reference", 100, id="nobody there"),
        pytest.param(
            "INSERT INTO templates (person_id, vector, photo_sha256, added_at)"
            " SELECT person_id, vector, photo_sha256, added_at FROM templates WHERE id = 5",
            "duplicate",
            100,
            id="twice",
        ),
    ],
)
def test_what_can_not_be_trusted_is_found_and_put_aside(
    folder: Path, statement: str, code: str, left: int
) -> None:
    spoil_and_stamp(folder, statement)
    assert {finding.code for finding in verify(folder, ENCODER)} == {code}
    done = repair(folder)
    assert done.findings[0].code == code
    assert done.templates == left
    assert verify(folder, ENCODER) == ()
    assert done.aside is not None
    rows = [json.loads(line) for line in (done.aside / QUARANTINE_FILE).read_text().splitlines()]
    assert len(rows) == done.quarantined > 0
    assert sum(row["table"] == "templates" for row in rows) >= 100 - left
    assert all(row["reason"] for row in rows)
    assert stat.S_IMODE(done.aside.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE templates SET vector = (SELECT vector FROM templates WHERE id = 50) WHERE id = 7",
        "UPDATE templates SET source = 'elsewhere' WHERE id = 7",
        "UPDATE templates SET person_id = 2 WHERE id = 7",
        "UPDATE people SET threshold_l2 = 1.5",
        "UPDATE unknown_faces SET quality = 0.2 WHERE id = 3",
        "UPDATE meta SET encoder_name = 'cube'",
        "UPDATE settings SET value = 0.95",
    ],
)
def test_rows_altered_behind_the_gallerys_back_are_found(folder: Path, statement: str) -> None:
    spoil(folder, statement)
    assert {finding.code for finding in verify(folder, ENCODER)} == {"checksum"}


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        ("UPDATE templates SET vector = 'text' WHERE id = 7", lambda g: g.vectors("Ada")),
        ("UPDATE templates SET quality = x'00' WHERE id = 7", lambda g: g.templates("Ada")),
        ("UPDATE templates SET source = x'00' WHERE id = 7", lambda g: g.templates("Ada")),
        ("UPDATE templates SET added_at = x'00' WHERE id = 7", lambda g: g.templates("Ada")),
        ("UPDATE templates SET added_at = x'ff'", Gallery.people),
        ("UPDATE unknown_faces SET vector = 7 WHERE id = 3", Gallery.unknown_faces),
        ("UPDATE people SET name = x'41' WHERE id = 2", Gallery.people),
        ("UPDATE people SET threshold_l2 = 'text'", lambda g: g.match(person_vectors(1, 1))),
        ("UPDATE settings SET value = 4607182418800017408", lambda g: g.match(person_vectors(1, 1))),
        ("UPDATE meta SET threshold_l2 = x'00'", Gallery.info),
        ("UPDATE meta SET dimensions = x'00'", Gallery.info),
        ("UPDATE vector_states SET token = 7", Gallery.info),
    ],
)
def test_values_of_another_kind_are_one_clear_error(
    folder: Path, statement: str, read: Callable[[Gallery], object]
) -> None:
    """A bit that flips where SQLite says of what kind a value is."""
    spoil(folder, statement)
    with (
        pytest.raises(GalleryError, match=r"damaged.*gallery repair"),
        Gallery.open(folder, ENCODER) as gallery,
    ):
        read(gallery)
    assert verify(folder, ENCODER)
    repair(folder, ENCODER)
    assert verify(folder, ENCODER) == ()


def test_thresholds_of_earlier_versions_are_told_not_used_and_mended(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They took 3 for the gallery and 7 for a person: beyond every distance, so any face would be named."""
    spoil_and_stamp(folder, "UPDATE settings SET value = 3.0")
    spoil_and_stamp(folder, "UPDATE people SET threshold_l2 = 7.0 WHERE name = 'Eve'")
    queries = np.concatenate([person_vectors(2, 1), person_vectors(50, 1)])
    with Gallery.open(folder, ENCODER) as gallery:
        (line,) = [record.getMessage() for record in caplog.records]
        assert str(folder) in line
        assert "(2)" in line
        assert "gallery repair" in line
        assert [match.threshold_l2 for match in gallery.match(queries)] == [ENCODER.threshold_l2] * 2
        assert [match.name for match in gallery.match(queries)] == ["Eve", None]
        assert gallery.threshold_l2 is None
        assert {person.threshold_l2 for person in gallery.people()} == {None}
        gallery.export_archive(tmp_path / "a.zip")
    import_archive(tmp_path / "imported", tmp_path / "a.zip", ENCODER)
    assert {finding.code for finding in verify(folder, ENCODER)} == {"threshold"}
    assert repair(folder, ENCODER).templates == 100
    caplog.clear()
    for whole in (folder, tmp_path / "imported"):
        assert verify(whole, ENCODER) == ()
    assert caplog.records == []


@pytest.mark.parametrize("threshold_l2", [0.0, 1.0, 2.0, np.float32(0.5)])
def test_every_threshold_that_is_taken_can_be_used(folder: Path, threshold_l2: float) -> None:
    """Also 0, which names nobody: it is not the same as no threshold."""
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.set_threshold(threshold_l2)
        gallery.set_person_threshold("Ada", threshold_l2)
        assert gallery.default_threshold_l2 == gallery.threshold_l2 == threshold_l2
        assert gallery.match(person_vectors(0, 1))[0].threshold_l2 == threshold_l2
        assert audit(gallery).threshold_l2 == threshold_l2
    assert verify(folder, ENCODER) == ()


@pytest.mark.parametrize("threshold_l2", [-0.1, 2.001, 3.0, np.nan, np.inf])
def test_a_threshold_that_can_not_be_used_is_not_taken(folder: Path, threshold_l2: float) -> None:
    with Gallery.open(folder, ENCODER) as gallery:
        for take in (gallery.set_threshold, lambda value: gallery.set_person_threshold("Ada", value)):
            with pytest.raises(UsageError, match=r"expected 0\.\.2"):
                take(threshold_l2)
        assert (gallery.threshold_l2, gallery.people()[0].threshold_l2) == (0.9, None)


def test_what_is_put_aside_can_be_read_with_nothing_of_ours(folder: Path) -> None:
    vector = person_vectors(0, 20)[6]
    spoil(folder, "UPDATE templates SET source = 'elsewhere' WHERE id = 7")
    aside = repair(folder).aside
    assert aside is not None
    (row,) = [json.loads(line) for line in (aside / QUARANTINE_FILE).read_text().splitlines()]
    assert row["columns"]["source"] == "elsewhere"
    assert base64.b64decode(row["columns"]["vector"]["base64"]) == vector.tobytes()
    with Gallery.open(aside, ENCODER) as damaged:
        assert damaged.info().templates == 100


def test_ids_stay_and_are_never_given_again_after_a_repair(folder: Path) -> None:
    spoil(folder, "UPDATE templates SET source = 'elsewhere' WHERE id = 100")
    repair(folder)
    with Gallery.open(folder, ENCODER) as gallery:
        assert [t.id for t in gallery.templates("Ada")] == list(range(1, 21))
        assert gallery.add("New", templates(person_vectors(500, 1))) == [101]


def test_a_damaged_index_is_found_and_made_again(folder: Path) -> None:
    index = folder / "index.faiss"
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    (finding,) = verify(folder, ENCODER)
    assert finding.code == "index"
    done = repair(folder)
    assert (done.templates, done.aside) == (100, None)
    assert verify(folder, ENCODER) == ()


def test_an_index_of_another_gallery_is_found(folder: Path) -> None:
    with Gallery.open(folder.parent / "other", ENCODER, create=True) as other:
        other.add("Eve", templates(person_vectors(3, 5)))
    write_index_files(folder, read_index_files(folder.parent / "other"))
    assert [finding.code for finding in verify(folder, ENCODER)] == ["index"]


def test_an_index_that_is_missing_or_behind_is_no_fault(folder: Path) -> None:
    stale = read_index_files(folder)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.remove("Ada")
        gallery.add("Kim", templates(person_vectors(7, 3)))
    write_index_files(folder, stale)
    assert verify(folder, ENCODER) == ()
    (folder / "index.faiss").unlink()
    assert verify(folder, ENCODER) == ()


# Torn and altered files


@pytest.mark.parametrize(("kept", "templates_min"), [(0.3, 0), (0.6, 5), (0.9, 60)])
def test_a_truncated_gallery_is_salvaged_as_far_as_it_can_be_read(
    folder: Path, kept: float, templates_min: int
) -> None:
    file = folder / "gallery.sqlite3"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    torn = file.read_bytes()
    with pytest.raises(GalleryError, match="repair"):
        Gallery.open(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["gallery.sqlite3", *INDEX_FILES]
    assert [finding.code for finding in verify(folder, ENCODER)] == ["database"]
    done = repair(folder)
    assert done.aside is not None
    assert (done.aside / "gallery.sqlite3").read_bytes() == torn
    assert verify(folder, ENCODER) == ()
    with Gallery.open(folder, ENCODER) as gallery:
        saved = [row.tobytes() for person in gallery.people() for row in gallery.vectors(person.name)]
    assert set(saved) <= {row.tobytes() for seed in range(5) for row in person_vectors(seed, 20)}
    assert len(saved) == len(set(saved)) == done.templates >= templates_min


def test_flipped_bits_are_found_or_do_no_harm(folder: Path) -> None:
    """Anywhere in the file: what verifies has the same contents as before."""
    file = folder / "gallery.sqlite3"
    whole, before = file.read_bytes(), contents(folder)
    rng = random.Random(5)
    found = 0
    for _ in range(100):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for log in folder.glob("gallery.sqlite3-*"):
            log.unlink()
        file.write_bytes(data)
        try:
            is_found = bool(verify(folder, ENCODER))
        except GalleryError:
            is_found = True
        found += is_found
        assert is_found or contents(folder) == before
    assert found > 30


@pytest.mark.parametrize("page", range(2, 10))
def test_a_page_of_rubbish_costs_no_more_than_its_rows(folder: Path, page: int) -> None:
    """Pages after the first, in turn: tables' roots, indexes and rows."""
    overwrite_page(folder, page)
    done = repair(folder)
    assert done.findings
    assert done.aside is not None
    assert verify(folder, ENCODER) == ()


def test_a_gallery_that_forgot_its_encoder_is_told(folder: Path) -> None:
    overwrite_page(folder, 1)
    torn = (folder / "gallery.sqlite3").read_bytes()
    with pytest.raises(GalleryError, match="encoder-weights"):
        repair(folder)
    assert (folder / "gallery.sqlite3").read_bytes() == torn
    assert repair(folder, ENCODER).templates == 100
    assert verify(folder, ENCODER) == ()


@pytest.mark.parametrize(
    ("name", "flipped"),
    [
        (b"box_left REAL", b"box_lefu REAL"),
        (b"checksum INTEGER", b"checksun INTEGER"),
        (b"quality REAL", b"qual\xe9ty REAL"),
    ],
)
def test_damaged_names_of_columns_cost_nothing(folder: Path, name: bytes, flipped: bytes) -> None:
    before = contents(folder)
    replace_bytes(folder, name, flipped)
    assert verify(folder, ENCODER)
    assert repair(folder).templates == 100
    assert verify(folder, ENCODER) == ()
    assert contents(folder) == before


def test_without_the_table_of_contents_only_a_backup_helps(folder: Path) -> None:
    replace_bytes(folder, b"CREATE TABLE templates", b"CREATF TABLE templates")
    torn = (folder / "gallery.sqlite3").read_bytes()
    for encoder in (None, ENCODER):
        with pytest.raises(GalleryError, match="restore a backup"):
            repair(folder, encoder)
    assert (folder / "gallery.sqlite3").read_bytes() == torn


def replace_bytes(folder: Path, old: bytes, new: bytes) -> None:
    file = folder / "gallery.sqlite3"
    data = file.read_bytes()
    assert old in data
    assert len(old) == len(new)
    file.write_bytes(data.replace(old, new))


def overwrite_page(folder: Path, page: int) -> None:
    size = 4096
    with (folder / "gallery.sqlite3").open("r+b") as file:
        file.seek(page * size)
        file.write(random.Random(page).randbytes(size))


def test_a_gallery_that_is_open_elsewhere_is_not_rebuilt(folder: Path) -> None:
    spoil(folder, "UPDATE templates SET source = 'elsewhere' WHERE id = 7")
    with Gallery.open(folder, ENCODER) as other:
        other.people()
        with pytest.raises(GalleryError, match="another process has the gallery open"):
            repair(folder)
        assert [p.name for p in folder.parent.iterdir()] == ["g"]
    repair(folder)
    assert verify(folder, ENCODER) == ()


def test_whoever_has_a_file_open_that_was_replaced_or_removed_is_told(folder: Path) -> None:
    with Gallery.open(folder, ENCODER) as gallery:
        copy = folder / "copy"
        shutil.copy(folder / "gallery.sqlite3", copy)
        copy.rename(folder / "gallery.sqlite3")
        acts: list[Callable[[], object]] = [gallery.people, lambda: gallery.rename("Ada", "Kim")]
        for act in acts:
            with pytest.raises(LostDatabaseError, match="was replaced"):
                act()
        (folder / "gallery.sqlite3").unlink()
        for act in acts:
            with pytest.raises(LostDatabaseError, match=r"gallery\.sqlite3: not there"):
                act()


# Backups


def test_a_backup_is_a_gallery_of_its_own(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.backup(tmp_path / "copies" / "monday")
        gallery.remove("Ada")
    backup = tmp_path / "copies" / "monday"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert [p.name for p in backup.iterdir()] == ["gallery.sqlite3"]
    assert stat.S_IMODE((backup / "gallery.sqlite3").stat().st_mode) == 0o600
    assert verify(backup, ENCODER) == ()
    assert contents(backup) == before


def test_a_backup_while_another_writes_is_one_state(folder: Path, tmp_path: Path) -> None:
    with Gallery.open(folder, ENCODER) as gallery, Gallery.open(folder, ENCODER) as other:
        with other._store.changing():
            other._store.delete_person(other._store.people.id_of("Ada"))
            gallery.backup(tmp_path / "during")
        gallery.backup(tmp_path / "after")
    names = {}
    for when in ("during", "after"):
        assert verify(tmp_path / when, ENCODER) == ()
        with Gallery.open(tmp_path / when) as backup:
            names[when] = {person.name for person in backup.people()}
    assert names["during"] - names["after"] == {"Ada"}


@pytest.mark.parametrize("target", ["g/inside", "g", "held", "file"])
def test_backups_that_are_refused(folder: Path, tmp_path: Path, target: str) -> None:
    Gallery.open(tmp_path / "held", ENCODER, create=True).close()
    (tmp_path / "file").write_text("hello")
    with Gallery.open(folder, ENCODER) as gallery, pytest.raises(GalleryError, match=target):
        gallery.backup(tmp_path / target)
    assert (tmp_path / "file").read_text() == "hello"
    with Gallery.open(tmp_path / "held") as held:
        assert held.people() == []


def test_what_a_killed_repair_left_beside_the_gallery_is_removed(tmp_path: Path) -> None:
    left = ".facepipe-0123456789abcdef.part"
    ours, others = (tmp_path / f"{name}.damaged-20260101T000000-abcdef01" for name in ("g", "gg"))
    for folder in (ours, others):
        folder.mkdir()
        (folder / left).write_bytes(b"vectors")
        (folder / "gallery.sqlite3").write_bytes(b"kept")
    with Gallery.open(tmp_path / "g", ENCODER, create=True):
        pass
    assert [file.name for file in ours.iterdir()] == ["gallery.sqlite3"]
    assert len(list(others.iterdir())) == 2
