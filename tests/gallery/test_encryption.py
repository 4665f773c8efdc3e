"""Galleries that nobody reads without the key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, bytes_in, person_vectors, template, wipe_due

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import Gallery
from facepipe.gallery.gallery import encrypt
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.encryption import (
    KEY_FILE_VARIABLE,
    KEY_VARIABLE,
    PlainCodec,
    SealingCodec,
    read_key_file,
)
from facepipe.gallery.storage.schema import row_checksum

pytest.importorskip("cryptography", reason="needs the [encryption] extra")

KEY, OTHER_KEY = b"correct horse battery staple", b"incorrect horse"
VECTORS = person_vectors(1, 12)
STRANGERS = person_vectors(2, 3)
PLAIN = [
    b"Mata Hari",
    b"photos/mata",
    b"photos/stranger",
    b"a picture of her",
    *(vector.tobytes() for vector in [*VECTORS, *STRANGERS]),
    *((template(VECTORS[0], f"mata{i}").photo_sha256 or "").encode() for i in range(12)),
]


@pytest.fixture(autouse=True)
def no_key_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find none in the environment."""
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def fill(gallery: Gallery) -> None:
    new = [template(v, f"mata{i}", crop=b"a picture of her") for i, v in enumerate(VECTORS)]
    gallery.add("Mata Hari", new)
    gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(3, 40))])
    gallery.remember_unknown([template(v, f"stranger{i}") for i, v in enumerate(STRANGERS)])
    gallery.set_person_threshold("Mata Hari", 0.7)


def contents(gallery: Gallery) -> list[object]:
    return [
        gallery.people(),
        [gallery.templates(person.name) for person in gallery.people()],
        [gallery.vectors(person.name).tobytes() for person in gallery.people()],
        [gallery.crop(t.id) for t in gallery.templates("Mata Hari")],
        [(f.id, f.embedding.tobytes(), f.source, f.photo_sha256) for f in gallery.unknown_faces()],
        gallery.match(VECTORS[:1]),
    ]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A gallery that is not encrypted."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        fill(gallery)
        gallery.match(VECTORS[:1])
    assert {line.split(":")[0] for line in bytes_in(tmp_path / "g", PLAIN)} >= {"gallery.sqlite3"}
    return tmp_path / "g"


def test_encrypting_and_decrypting_keeps_all_and_leaves_no_plain_byte(plain: Path) -> None:
    with Gallery.open(plain, ENCODER) as gallery:
        before = contents(gallery)
    encrypt(plain, KEY)
    assert bytes_in(plain, PLAIN) == []
    assert [p.name for p in plain.iterdir()] == ["gallery.sqlite3"]
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        assert contents(gallery) == before
        assert gallery.info().encrypted
    assert bytes_in(plain, PLAIN) == []  # Nor an index.
    assert verify(plain, ENCODER, KEY) == ()
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        gallery.decrypt()
        assert contents(gallery) == before
    with Gallery.open(plain, ENCODER) as gallery:
        assert contents(gallery) == before
        assert not gallery.info().encrypted
    assert verify(plain, ENCODER) == ()


def test_that_an_encrypted_gallery_has_no_index_is_not_told(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has none by design. A decrypted one gets its own when it is closed."""
    encrypt(plain, KEY)
    for _ in range(2):
        with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
            gallery.match(VECTORS[:1])
            assert gallery.info().index_is_current
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        gallery.decrypt()
    with Gallery.open(plain, ENCODER) as gallery:
        gallery.match(VECTORS[:1])
        assert gallery.info().index_is_current
    assert [record.getMessage() for record in caplog.records] == []


def test_names_and_thresholds_of_earlier_versions_are_mended(plain: Path) -> None:
    encrypt(plain, KEY)
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        codec = gallery._store._rows.codec
    with closing(sqlite3.connect(plain / "gallery.sqlite3")) as connection:
        name = codec.seal("name", "Mata\u200b Hari")
        connection.execute(
            "UPDATE people SET name = ?, threshold_l2 = 7.0, checksum = ? WHERE name = ?",
            (name, row_checksum(name, 7.0), codec.seal("name", "Mata Hari")),
        )
        connection.commit()
    assert [finding.code for finding in verify(plain, ENCODER, KEY)] == ["name"]
    assert repair(plain, ENCODER, KEY).templates == 52
    assert verify(plain, ENCODER, KEY) == ()
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        assert [(p.name, p.threshold_l2) for p in gallery.people()] == [("Ada", None), ("Mata Hari", None)]


def test_a_gallery_made_with_a_key_never_holds_a_plain_byte(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True, secret=KEY) as gallery:
        fill(gallery)
        assert bytes_in(tmp_path, PLAIN) == []
        assert gallery.add("Mata Hari", [template(VECTORS[0], "mata0")]) == []
        assert gallery.has_photo(template(VECTORS[0], "mata0").photo_sha256 or "", "Mata Hari")
        gallery.rename("Mata Hari", "H21")
        gallery.rename("H21", "Mata Hari")
        gallery.merge("Ada", "Mata Hari")
        gallery.enroll_unknown([face.id for face in gallery.unknown_faces()], "Mata Hari")
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Mata Hari", 55)]
        assert gallery.match(STRANGERS[:1])[0].distance_l2 == 0.0
        assert gallery.forget_photo("photos/mata3.jpg") == 1
        assert verify(tmp_path, ENCODER, KEY) == ()
    assert bytes_in(tmp_path, PLAIN) == []


@pytest.mark.parametrize(
    ("secret", "complaint"), [(None, "is encrypted"), (OTHER_KEY, "not the gallery's key")]
)
def test_without_the_key_there_is_one_clear_error(plain: Path, secret: bytes | None, complaint: str) -> None:
    encrypt(plain, KEY)
    before = (plain / "gallery.sqlite3").read_bytes()
    for encoder in (None, ENCODER):
        with pytest.raises(GalleryError, match=complaint):
            Gallery.open(plain, encoder, secret=secret, create=True)
    with pytest.raises(GalleryError, match=complaint):
        verify(plain, secret=secret)
    with pytest.raises(GalleryError, match=complaint):
        repair(plain, secret=secret)
    assert (plain / "gallery.sqlite3").read_bytes() == before
    assert [p.name for p in plain.iterdir()] == ["gallery.sqlite3"]


@pytest.mark.parametrize("by", [KEY_VARIABLE, KEY_FILE_VARIABLE])
def test_the_key_comes_from_the_environment_too(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    encrypt(plain, KEY)
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    monkeypatch.setenv(by, KEY.decode() if by == KEY_VARIABLE else str(file))
    with Gallery.open(plain, ENCODER) as gallery:
        assert gallery.match(VECTORS[:1])[0].name == "Mata Hari"


@pytest.mark.parametrize("data", [b"", b" \n", b"x" * 5000])
def test_key_files_that_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(GalleryError, match="key file holds"):
        read_key_file(tmp_path / "key")
    with pytest.raises(GalleryError, match="can't be read"):
        read_key_file(tmp_path / "none")


def test_requests_that_are_refused(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="needs a key"):
        encrypt(plain, None)
    with Gallery.open(plain, secret=KEY) as gallery:
        assert "not encrypted" in caplog.messages[0]
        with pytest.raises(GalleryError, match="not encrypted"):
            gallery.decrypt()
    encrypt(plain, KEY)
    with (
        Gallery.open(plain, secret=KEY) as gallery,
        pytest.raises(GalleryError, match="encrypted already"),
    ):
        gallery.encrypt(OTHER_KEY)


def test_converting_that_fails_half_way_changes_nothing(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(plain, ENCODER) as gallery:
        before = contents(gallery)
        with monkeypatch.context() as patch:
            patch.setattr(gallery._store._rows, "note_wipe_due", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                gallery.encrypt(KEY)
        assert contents(gallery) == before
    with Gallery.open(plain, ENCODER) as gallery:
        assert contents(gallery) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE people SET name = 'Nata Hari' WHERE id = 1",
        "UPDATE templates SET source = 'elsewhere' WHERE id = 1",
        "UPDATE unknown_faces SET quality = 0.5",
    ],
)
def test_a_damaged_gallery_is_repaired_before_it_is_encrypted(plain: Path, statement: str) -> None:
    """Or the damage would get checksums that fit it."""
    with closing(sqlite3.connect(plain / "gallery.sqlite3")) as connection:
        connection.execute(statement)
        connection.commit()
    with pytest.raises(GalleryError, match="damaged"):
        encrypt(plain, KEY)
    assert {finding.code for finding in verify(plain)} == {"checksum"}


def test_a_kill_before_wiping_is_made_good_by_the_next_opening(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("facepipe.gallery.storage.store.Store.wipe_deleted", lambda self, wait=True: None)
        encrypt(plain, KEY)
    assert wipe_due(plain)
    Gallery.open(plain, secret=KEY).close()
    assert not wipe_due(plain)
    assert bytes_in(plain, PLAIN) == []


def test_who_had_it_open_before_is_told(plain: Path) -> None:
    with Gallery.open(plain, ENCODER) as other:
        other.match(VECTORS[:1])
        encrypt(plain, KEY)
        with pytest.raises(GalleryError, match="open it again"):
            other.add("Eve", [template(person_vectors(9, 1)[0], "eve")])
        with pytest.raises(GalleryError, match="open it again"):
            other.match(VECTORS[:1])
    assert bytes_in(plain, PLAIN) == []


def test_removing_from_an_encrypted_gallery(plain: Path) -> None:
    encrypt(plain, KEY)
    with closing(sqlite3.connect(plain / "gallery.sqlite3")) as connection:
        sealed = [row[0] for row in connection.execute("SELECT vector FROM templates WHERE person_id = 1")]
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        assert gallery.remove("Mata Hari") == 12
        assert bytes_in(plain, sealed) == []


def test_altered_ciphertext_is_found_and_put_aside(plain: Path) -> None:
    encrypt(plain, KEY)
    with closing(sqlite3.connect(plain / "gallery.sqlite3")) as connection:
        connection.execute("UPDATE templates SET vector = zeroblob(528) WHERE id = 2")
        connection.commit()
    with Gallery.open(plain, secret=KEY) as gallery, pytest.raises(GalleryError, match="can't be decrypted"):
        gallery.vectors("Mata Hari")
    assert {finding.code for finding in verify(plain, secret=KEY)} == {"checksum"}
    done = repair(plain, secret=KEY)
    assert done.templates == 51
    assert done.aside is not None
    assert bytes_in(done.aside, PLAIN) == []
    assert verify(plain, secret=KEY) == ()


def test_backups_stay_encrypted_and_archives_do_not(plain: Path, tmp_path: Path) -> None:
    encrypt(plain, KEY)
    with Gallery.open(plain, ENCODER, secret=KEY) as gallery:
        gallery.backup(tmp_path / "copy")
        gallery.export_archive(tmp_path / "open.zip")
        before = contents(gallery)
    assert bytes_in(tmp_path / "copy", PLAIN) == []
    with Gallery.open(tmp_path / "copy", ENCODER, secret=KEY) as copy:
        assert contents(copy) == before
    with Gallery.open(tmp_path / "new", ENCODER, create=True, secret=OTHER_KEY) as new:
        assert new.import_archive(tmp_path / "open.zip") == 52
    with Gallery.open(tmp_path / "third", ENCODER, create=True) as third:
        assert third.merge_from(tmp_path / "new", OTHER_KEY) == 52
        assert third.vectors("Mata Hari").tobytes() == VECTORS.tobytes()


def test_sealing_is_bound_to_column_salt_and_secret() -> None:
    codec = SealingCodec(KEY, b"salt" * 4)
    sealed = codec.seal("name", "Zoë")
    assert codec.open("name", sealed) == "Zoë"
    assert codec.seal("name", "Zoë") == sealed
    assert codec.seal("source", "Zoë") != sealed
    assert (codec.seal("name", None), codec.open("name", None)) == (None, None)
    for column, other in (
        ("source", codec),
        ("name", SealingCodec(OTHER_KEY, b"salt" * 4)),
        ("name", SealingCodec(KEY, b"tlas" * 4)),
    ):
        with pytest.raises(GalleryError, match="decrypted"):
            other.open(column, sealed)
    assert PlainCodec().open("name", PlainCodec().seal("name", "Zoë")) == "Zoë"
