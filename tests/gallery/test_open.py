"""Which galleries open, and what is said of the others."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, INDEX_FILES, OTHER_ENCODER, person_vectors, templates

from facepipe.core.errors import GalleryError, MissingExtraError
from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.index.file import record_file, saved_record
from facepipe.gallery.repair import verify
from facepipe.gallery.storage.sqlite import log_check
from facepipe.gallery.storage.sqlite.database import Database, create_database
from facepipe.gallery.storage.sqlite.schema import creating_statements


def test_a_missing_gallery_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="facepipe enroll"):
        Gallery.open(tmp_path / "none", ENCODER)
    with pytest.raises(GalleryError, match="facepipe enroll"):
        Gallery.open(tmp_path, ENCODER)
    assert list(tmp_path.iterdir()) == []


def test_a_gallery_that_another_process_made_first_is_not_replaced(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
    # By one that found none a moment ago.
    create_database(tmp_path / "gallery.sqlite3", creating_statements(ENCODER))
    with Gallery.open(tmp_path) as gallery:
        assert [p.name for p in gallery.people()] == ["Ada"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["gallery.sqlite3", *INDEX_FILES]


def test_a_database_without_the_library_for_it_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "facepipe.gallery.storage.postgres.database", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"a gallery in PostgreSQL needs the \[postgres\] extra"):
        Gallery.open("postgresql://nobody@127.0.0.1:1/none", ENCODER, create=True)


def test_another_encoder_is_refused_and_both_are_named(tmp_path: Path) -> None:
    Gallery.open(tmp_path / "g", ENCODER, create=True).close()
    before = (tmp_path / "g" / "gallery.sqlite3").read_bytes()
    for create in (False, True):
        with pytest.raises(GalleryError, match=r"round .*square .*--encoder-weights round, or make "):
            Gallery.open(tmp_path / "g", OTHER_ENCODER, create=create)
    assert (tmp_path / "g" / "gallery.sqlite3").read_bytes() == before


def test_later_weights_of_the_same_name_are_another_encoder(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", ENCODER, create=True):
        pass
    with pytest.raises(GalleryError, match="go on with the version of facepipe that made it"):
        Gallery.open(tmp_path / "g", replace(ENCODER, fingerprint="0" * 16))


def test_the_encoder_given_brings_its_own_threshold_and_name(tmp_path: Path) -> None:
    Gallery.open(tmp_path / "g", ENCODER, create=True).close()
    recalibrated = EncoderIdentity("round v2", ENCODER.fingerprint, 128, 0.8)
    with Gallery.open(tmp_path / "g", recalibrated) as gallery:
        assert gallery.encoder == recalibrated


EARLIER = EncoderIdentity("round", "00000000deadbeef", 128, 1.0)
NOW = replace(ENCODER, earlier_fingerprint=EARLIER.fingerprint)


def test_a_gallery_of_the_earlier_fingerprint_opens_and_takes_the_new_one(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", EARLIER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
        gallery.export_archive(tmp_path / "earlier.zip")
    with Gallery.open(tmp_path / "g", NOW) as gallery:
        assert [match.name for match in gallery.match(person_vectors(1, 1))] == ["Ada"]
        gallery.import_archive(tmp_path / "earlier.zip")
    assert verify(tmp_path / "g") == ()
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.encoder.fingerprint == NOW.fingerprint
    exchanged = replace(
        OTHER_ENCODER, earlier_fingerprint=EARLIER.fingerprint
    )  # Other files, same parameters.
    with pytest.raises(GalleryError, match="can't be compared"):
        Gallery.open(tmp_path / "g", exchanged)


def test_without_an_encoder_people_are_managed_but_not_matched(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.rename("Ada", "Eve")
        with pytest.raises(GalleryError, match="with an encoder"):
            gallery.match(person_vectors(1, 1))
        with pytest.raises(GalleryError, match="with an encoder"):
            gallery.add("Bob", templates(person_vectors(2, 1)))


def _text(file: Path) -> None:
    file.write_text("Dear diary, today I met a face. " * 200)


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _overwritten(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[100:] = os.urandom(len(data) - 100)
    file.write_bytes(data)


def _newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_text, "not a facepipe gallery"),
        (_truncated, "damaged"),
        (_cut_short, "not a facepipe gallery|damaged"),
        (_empty, "is empty"),
        (_overwritten, "damaged"),
        (_newer, "newer facepipe"),
        (_foreign, "not a facepipe gallery"),
    ],
)
def test_files_that_are_no_gallery(tmp_path: Path, harm: Callable[[Path], None], complaint: str) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 50)))
    file = tmp_path / "gallery.sqlite3"
    harm(file)
    before = file.read_bytes()
    for encoder, create in ((None, False), (ENCODER, True)):
        with pytest.raises(GalleryError, match=complaint) as caught:
            Gallery.open(tmp_path, encoder, create=create)
        assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def test_damage_met_later_is_one_clear_error(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 50)))
    with sqlite3.connect(tmp_path / "gallery.sqlite3") as connection:
        connection.execute("UPDATE templates SET vector = zeroblob(512) WHERE id = 7")
        connection.execute("UPDATE templates SET vector = x'00' WHERE id = 9")
    connection.close()
    (tmp_path / "index.faiss").unlink()
    with Gallery.open(tmp_path, ENCODER) as gallery:
        with pytest.raises(GalleryError, match="damaged"):
            gallery.match(person_vectors(1, 1))
        assert gallery.remove("Ada") == 50


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("hello")
    for create in (False, True):
        with pytest.raises(GalleryError, match="folder"):
            Gallery.open(tmp_path / "g", ENCODER, create=create)
        with pytest.raises(GalleryError, match="g"):
            Gallery.open(tmp_path / "g" / "deeper", ENCODER, create=create)
    assert (tmp_path / "g").read_text() == "hello"


def test_a_closed_gallery_says_so_and_closes_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
    gallery.close()
    assert caplog.messages == []
    with pytest.raises(GalleryError, match="closed"):
        gallery.people()


def test_creating_needs_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="facepipe enroll"):
        Gallery.open(tmp_path / "g", create=True)


def test_paths_with_spaces_marks_and_other_scripts(tmp_path: Path) -> None:
    path = tmp_path / "l'été? 100% #1 & 写真"
    with Gallery.open(path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
    with Gallery.open(path, ENCODER) as gallery:
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"


def test_importing_and_managing_load_no_faiss_scipy_or_torch(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 1)))
    code = (
        "import sys; from facepipe.gallery import Gallery\n"
        f"with Gallery.open({str(tmp_path)!r}) as g: g.people(); g.info(); g.rename('Ada', 'Eve')\n"
        "print([m for m in ('faiss', 'scipy', 'torch', 'safetensors', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_owner_that_is_no_number_is_damage(tmp_path: Path) -> None:
    """As pages that are zeroed or exchanged leave it; what is read by its number fails in one line."""
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 2)))
    with closing(sqlite3.connect(tmp_path / "gallery.sqlite3")) as sql:
        sql.execute("UPDATE templates SET person_id = x'00ff' WHERE id = 1")
        sql.commit()
    for name in ("index.faiss", "nothing"):
        with Gallery.open(tmp_path, ENCODER) as gallery, pytest.raises(GalleryError, match="damaged"):
            gallery.match(person_vectors(1, 1))
        (tmp_path / name).unlink(missing_ok=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_the_last_other_process_removes_the_log_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    Gallery.open(tmp_path / "g", ENCODER, create=True).close()
    file = tmp_path / "g" / "gallery.sqlite3"
    log = file.with_name(f"{file.name}-wal")
    log.write_bytes(bytes(100))
    name = "belongs_to" if read_only else "alone"
    look = getattr(log_check, name)

    def closed_before(*arguments: Path) -> object:
        log.unlink()
        return look(*arguments)

    monkeypatch.setattr(log_check, name, closed_before)
    database = Database(file, read_only=read_only)
    with database.reading() as sql:
        assert sql.execute("SELECT COUNT(*) FROM people").fetchone() == (0,)
    database.close()
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_an_index_whose_writer_was_killed_is_made_again(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
    file = tmp_path / "index.faiss"
    record = saved_record(file)
    assert record is not None
    record_file(file).write_bytes(replace(record, is_changing=True).packed())
    with file.open("ab") as stream:  # Of another size than the record has, as a larger index is.
        stream.write(bytes(1000))
    assert verify(tmp_path, ENCODER) == ()
    with Gallery.open(tmp_path, ENCODER) as gallery:
        assert gallery.match(person_vectors(1, 3)[:1])[0].name == "Ada"
