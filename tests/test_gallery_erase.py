"""What was removed is in no byte of the gallery's folder."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors, template, templates

from gallery import Gallery


def bytes_in(folder: Path, secrets: list[bytes]) -> list[str]:
    """Where any of the secrets occurs in any file of the folder."""
    return [
        f"{file.name}: {secret[:20]!r}"
        for file in folder.rglob("*")
        if file.is_file()
        for secret in secrets
        if secret in file.read_bytes()
    ]


@pytest.mark.parametrize("others", [0, 200])
def test_a_removed_person_is_in_no_byte_of_the_folder(tmp_path: Path, others: int) -> None:
    vectors = person_vectors(1, 40)
    photos = [f"mata-{i}" for i in range(40)]
    new = [template(v, photo) for v, photo in zip(vectors, photos, strict=True)]
    secrets = [b"Mata Hari", b"photos/mata-", *(v.tobytes() for v in vectors)]
    secrets += [(t.photo_sha256 or "").encode() for t in new]
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        for i in range(others):  # Scattered among others, so that pages are shared, split and joined.
            gallery.add(f"person {i}", templates(person_vectors(100 + i, 2)))
            gallery.add("Mata Hari", new[i * 40 // others : (i + 1) * 40 // others] or new[:1])
        gallery.add("Mata Hari", new)
    assert {line.split(":")[0] for line in bytes_in(tmp_path, secrets)} == {"gallery.sqlite3", "index.faiss"}
    with Gallery.open(tmp_path, ENCODER) as gallery:
        gallery.match(vectors[:1])
        assert gallery.remove("Mata Hari") == 40
        assert bytes_in(tmp_path, secrets) == []  # At once, not only after closing.
        gallery.match(vectors[:1])
    assert bytes_in(tmp_path, secrets) == []
    with Gallery.open(tmp_path, ENCODER) as gallery:
        assert len(gallery.people()) == others
        if others:
            assert gallery.match(person_vectors(100, 1))[0].name == "person 0"


def add_and_remove(gallery: Gallery) -> list[bytes]:
    """A sequence after which secure_delete alone leaves names in split pages of SQLite's index of names.

    Answers the removed names.
    """
    rng = random.Random(4)
    known: list[str] = []
    removed: list[bytes] = []
    for step in range(250):
        if not known or rng.random() < 0.7:
            known.append(f"{step:04} " + "".join(rng.choices("abcdefgh", k=rng.randint(1, 180))))
            gallery.add(known[-1], templates(person_vectors(step, 1)))
        else:
            name = known.pop(rng.randrange(len(known)))
            gallery.remove(name)
            removed.append(name.encode())
    return removed


def test_names_leave_split_pages_too(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        removed = add_and_remove(gallery)
    assert bytes_in(tmp_path, removed) == []


def wipe_due(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection:
        return int(connection.execute("SELECT wipe_due FROM meta").fetchone()[0])


def test_a_kill_before_wiping_is_made_good_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        patch.setattr("gallery.store.Store.wipe_deleted", lambda self: None)
        removed = add_and_remove(gallery)
    assert wipe_due(tmp_path)
    Gallery.open(tmp_path).close()
    assert not wipe_due(tmp_path)
    assert bytes_in(tmp_path, removed) == []


@pytest.mark.parametrize("act", ["rename", "merge"])
def test_names_given_up_leave_no_byte_either(tmp_path: Path, act: str) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", templates(person_vectors(1, 1)))
        if act == "rename":
            gallery.rename("Mata Hari", "H21")
        else:
            gallery.add("H21", templates(person_vectors(2, 1)))
            gallery.merge("Mata Hari", "H21")
        assert bytes_in(tmp_path, [b"Mata Hari"]) == []
        assert [p.name for p in gallery.people()] == ["H21"]


def test_another_process_does_not_bring_removed_vectors_back(tmp_path: Path) -> None:
    vectors = person_vectors(1, 3)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(2, 3)))
        gallery.add("Mata Hari", templates(vectors))
    with Gallery.open(tmp_path, ENCODER) as other:
        other.match(vectors[:1])  # Holds them in memory now.
        with Gallery.open(tmp_path, ENCODER) as gallery:
            gallery.remove("Mata Hari")
        other.add("Bob", templates(person_vectors(3, 1)))
    assert bytes_in(tmp_path, [v.tobytes() for v in vectors]) == []


def test_a_reader_in_the_way_delays_wiping_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gallery.database.BUSY_TIMEOUT_S", 0.1)
    vectors = person_vectors(1, 3)
    with Gallery.open(tmp_path, ENCODER, create=True) as gallery:
        gallery.add("Mata Hari", templates(vectors))
        with Gallery.open(tmp_path) as reader, reader._store.reading():
            reader._store.generation()  # Its transaction begins with the first read.
            gallery.remove("Mata Hari")
            assert "not yet wiped" in caplog.messages[0]
            assert gallery.people() == []
    Gallery.open(tmp_path).close()
    assert bytes_in(tmp_path, [b"Mata Hari", *(v.tobytes() for v in vectors)]) == []
