"""Damage to what an encrypted gallery keeps of its key: the right key opens it, and it never turns plain."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, bytes_in, person_vectors, statements_of_schema_2, template

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE, SealingCodec, new_codec
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum

pytest.importorskip("cryptography", reason="needs the [encryption] extra")

KEY, OTHER_KEY = b"correct horse battery staple", b"incorrect horse"
DATABASE = "gallery.sqlite3"
VECTORS = person_vectors(1, 3)
THRESHOLD_L2 = 0.875


@pytest.fixture(autouse=True)
def no_key_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find none in the environment."""
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    """An encrypted gallery of one person, one unknown face and a threshold."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True, secret=KEY) as gallery:
        gallery.add("Mata Hari", [template(v, f"mata{i}") for i, v in enumerate(VECTORS)])
        gallery.remember_unknown([template(person_vectors(2, 1)[0], "stranger")])
        gallery.set_threshold(THRESHOLD_L2)
    return tmp_path / "g"


def spoil(folder: Path, *statements: str) -> None:
    """Change rows behind the gallery's back, and leave no log."""
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def contents(folder: Path, secret: bytes | None = KEY) -> list[object]:
    with Gallery.open(folder, ENCODER, secret=secret) as gallery:
        return [
            [(person.name, person.template_count) for person in gallery.people()],
            gallery.vectors("Mata Hari").tobytes(),
            [face.source for face in gallery.unknown_faces()],
            gallery.threshold_l2,
            gallery.info().encrypted,
        ]


def contents_or_complaint(folder: Path) -> list[object] | str:
    """What the gallery holds; where it can't be read, the cure that the message names."""
    try:
        return contents(folder)
    except GalleryError as error:
        return "repair" if "run `facepipe gallery repair`" in str(error) else str(error)


def pages_of(file: Path, tables: tuple[str, ...]) -> list[range]:
    """The used bytes of the root pages of tables and of their indices."""
    data = file.read_bytes()
    with closing(sqlite3.connect(file)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        marks = ", ".join("?" * len(tables))
        roots = connection.execute(
            f"SELECT rootpage FROM sqlite_schema WHERE rootpage AND tbl_name IN ({marks})", tables
        ).fetchall()
    found = []
    for (root,) in roots:
        start = (root - 1) * size
        cells = int.from_bytes(data[start + 3 : start + 5], "big")
        content = int.from_bytes(data[start + 5 : start + 7], "big")
        found += [range(start, start + 8 + 2 * cells), range(start + content, start + size)]
    return found


def flipped_bits(file: Path, every: int) -> Iterator[tuple[int, bytes]]:
    """The file with one bit flipped where it keeps its key, for every so many bits, with the bit's place."""
    data = file.read_bytes()
    used = (byte for part in pages_of(file, ("settings", "key_copy")) for byte in part)
    bits = [8 * byte + bit for byte in used for bit in range(8)]
    for bit in bits[::every]:
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(spoiled)


def test_no_flipped_bit_makes_the_right_key_wrong(encrypted: Path, tmp_path: Path) -> None:
    """One bit of 61 is flipped: a prime, so that the bits of all kinds of bytes are met."""
    whole = contents(encrypted)
    for bit, data in flipped_bits(encrypted / DATABASE, every=61):
        folder = tmp_path / f"flipped{bit}"
        folder.mkdir()
        (folder / DATABASE).write_bytes(data)
        assert contents_or_complaint(folder) in (whole, "repair"), bit
        with pytest.raises(GalleryError, match=r"not the gallery's key|damaged"):
            contents(folder, OTHER_KEY)
        assert verify(folder, secret=KEY) or contents(folder) == whole, bit
        done = repair(folder, secret=KEY)
        assert done.templates == len(VECTORS), bit
        assert verify(folder, secret=KEY) == (), bit
        people, vectors, unknown, threshold_l2, is_encrypted = contents(folder)
        assert [people, vectors, unknown, is_encrypted] == [*whole[:3], True], bit
        assert threshold_l2 in (THRESHOLD_L2, None), bit
        shutil.rmtree(folder)


ROWS_LOST = {
    "no salt": ["DELETE FROM settings WHERE key = 'key_salt'"],
    "no check": ["DELETE FROM settings WHERE key = 'key_check'"],
    "no settings": ["DELETE FROM settings"],
    "no copy": ["DELETE FROM key_copy"],
    "salt and the copy's check": [
        "UPDATE settings SET value = zeroblob(16) WHERE key = 'key_salt'",
        "UPDATE key_copy SET key_check = zeroblob(32)",
    ],
    "both checks": [
        "UPDATE settings SET value = NULL WHERE key = 'key_check'",
        "UPDATE key_copy SET key_check = NULL",
    ],
    "a number for a salt": ["UPDATE settings SET value = 7 WHERE key = 'key_salt'"],
}


@pytest.mark.parametrize("lost", ROWS_LOST)
def test_lost_rows_are_made_good_from_the_other_place(
    encrypted: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = contents(encrypted)
    spoil(encrypted, *ROWS_LOST[lost])
    with pytest.raises(GalleryError, match=r"not the gallery's key|damaged"):
        contents(encrypted, OTHER_KEY)
    assert contents(encrypted)[:3] == whole[:3]
    assert any("damaged in one of two places" in message for message in caplog.messages)
    assert "key" in {finding.code for finding in verify(encrypted, secret=KEY)}
    assert repair(encrypted, secret=KEY).templates == 3
    assert verify(encrypted, secret=KEY) == ()
    assert contents(encrypted)[:3] == whole[:3]
    assert contents(encrypted)[4]


def test_a_name_of_the_table_that_is_damaged_costs_the_threshold_only(encrypted: Path) -> None:
    for name in ("settings", "key_copy"):
        spoil(encrypted, f"ALTER TABLE {name} RENAME TO damaged")
        with pytest.raises(GalleryError, match="repair"):
            contents(encrypted)
        assert [finding.code for finding in verify(encrypted, secret=KEY)] == ["database"]
        assert repair(encrypted, secret=KEY).templates == 3
        assert contents(encrypted)[4]


def zeroed(folder: Path, *tables: str) -> None:
    """Overwrite the root pages of tables with zeros."""
    file = folder / DATABASE
    with closing(sqlite3.connect(file)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        roots = dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))
    data = bytearray(file.read_bytes())
    for table in tables:
        start = (roots[table] - 1) * size
        data[start : start + size] = bytes(size)
    file.write_bytes(data)


@pytest.mark.parametrize("table", ["settings", "key_copy", "sqlite_autoindex_settings_1"])
def test_a_page_of_zeros_costs_the_threshold_only(encrypted: Path, table: str) -> None:
    whole = contents(encrypted)
    zeroed(encrypted, table)
    assert {finding.code for finding in verify(encrypted, secret=KEY)} == {"database"}
    with pytest.raises(GalleryError, match=r"not the gallery's key|damaged"):
        repair(encrypted, secret=OTHER_KEY)
    assert repair(encrypted, secret=KEY).templates == 3
    assert contents(encrypted)[:3] == whole[:3]
    assert contents(encrypted)[4]


@pytest.mark.parametrize("secret", [None, KEY, OTHER_KEY])
def test_where_the_salt_is_lost_in_both_places_nothing_is_changed(
    encrypted: Path, secret: bytes | None
) -> None:
    spoil(encrypted, "DELETE FROM settings", "DELETE FROM key_copy")
    before = (encrypted / DATABASE).read_bytes()
    for act in (repair, Gallery.open):
        with pytest.raises(GalleryError, match=r"encrypted|restore a backup"):
            act(encrypted, secret=secret)
    assert (encrypted / DATABASE).read_bytes() == before
    assert [path.name for path in encrypted.parent.iterdir()] == ["g"]


def test_an_empty_gallery_repaired_with_a_key_stays_encrypted(tmp_path: Path) -> None:
    Gallery.open(tmp_path / "g", ENCODER, create=True, secret=KEY).close()
    zeroed(tmp_path / "g", "settings", "key_copy")
    repair(tmp_path / "g", secret=KEY)
    with Gallery.open(tmp_path / "g", ENCODER, secret=KEY) as gallery:
        assert gallery.info().encrypted
        gallery.add("Mata Hari", [template(VECTORS[0], "mata0")])
    assert bytes_in(tmp_path / "g", [b"Mata Hari"]) == []


def test_who_gives_a_key_adds_nothing_to_a_plain_gallery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new = [template(VECTORS[0], "mata0")]
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(VECTORS[1], "ada")])
    with pytest.raises(GalleryError, match="leave the key out"):
        Gallery.open(tmp_path, ENCODER, create=True, secret=KEY)
    with Gallery.open(tmp_path, ENCODER, secret=KEY) as gallery:
        for add in (
            lambda: gallery.add("Mata Hari", new),
            lambda: gallery.remember_unknown(new),
            lambda: gallery.rename("Ada", "Mata Hari"),
        ):
            with pytest.raises(GalleryError, match="leave the key out"):
                add()
        assert gallery.match(VECTORS[1:2])[0].name == "Ada"
    assert bytes_in(tmp_path, [b"Mata Hari"]) == []
    with Gallery.open(tmp_path, ENCODER, secret=KEY) as gallery:
        gallery.encrypt(KEY)
        gallery.add("Mata Hari", new)
    assert bytes_in(tmp_path, [b"Mata Hari"]) == []


def test_a_damaged_plain_gallery_is_repaired_without_a_key_only(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(VECTORS)])
    spoil(folder, "UPDATE templates SET source = 'elsewhere' WHERE id = 1")
    with pytest.raises(GalleryError, match="leave the key out"):
        repair(folder, secret=KEY)
    assert repair(folder).templates == 2
    assert not contents_are_encrypted(folder)


def contents_are_encrypted(folder: Path) -> bool:
    with Gallery.open(folder) as gallery:
        return gallery.info().encrypted


def second_schema(folder: Path, secret: bytes) -> None:
    """Make an encrypted gallery of schema 2, with Ada in it, as earlier versions left it."""
    folder.mkdir()
    codec = new_codec(secret)
    assert isinstance(codec, SealingCodec)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.create_function("row_checksum", -1, row_checksum)
        connection.execute("PRAGMA journal_mode = WAL")
        for statement, values in statements_of_schema_2(ENCODER):
            connection.execute(statement, values)
        for key, value in (("key_salt", codec.salt), ("key_check", codec.check())):
            connection.execute(
                "INSERT INTO settings VALUES (?, ?, ?)", (key, value, row_checksum(key, value))
            )
        name, vector = codec.seal("name", "Ada"), codec.seal("vector", VECTORS[0].tobytes())
        connection.execute("INSERT INTO people VALUES (1, ?, NULL, ?)", (name, row_checksum(name, None)))
        connection.execute(
            "INSERT INTO templates (id, person_id, vector, added_at) VALUES (1, 1, ?, '2026-01-01T00:00:00')",
            (vector,),
        )
        connection.execute(f"UPDATE templates SET checksum = row_checksum({CHECKED_COLUMNS['templates']})")
        connection.commit()


def test_an_encrypted_gallery_of_schema_2_gets_the_second_copy(tmp_path: Path) -> None:
    second_schema(tmp_path / "g", KEY)
    before = (tmp_path / "g" / DATABASE).read_bytes()
    for secret in (None, OTHER_KEY):
        with pytest.raises(GalleryError, match="key"):
            Gallery.open(tmp_path / "g", secret=secret)
        assert (tmp_path / "g" / DATABASE).read_bytes() == before
    with Gallery.open(tmp_path / "g", ENCODER, secret=KEY) as gallery:
        assert gallery.people()[0].name == "Ada"
    assert verify(tmp_path / "g", secret=KEY) == ()
    zeroed(tmp_path / "g", "settings")
    assert repair(tmp_path / "g", secret=KEY).templates == 1
    with Gallery.open(tmp_path / "g", ENCODER, secret=KEY) as gallery:
        assert gallery.people()[0].name == "Ada"
