"""A gallery made anew for another encoder: whole or not at all, and noticed by all who have it open."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gallery_helpers import (
    ENCODER,
    OTHER_ENCODER,
    bytes_in,
    person_vectors,
    read_index_files,
    start,
    template,
    templates,
    write_index_files,
)

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import EncoderIdentity, Gallery
from facepipe.gallery.encoder_change import EncoderChange, NewVector
from facepipe.gallery.repair import verify

SHORT_ENCODER = EncoderIdentity("short", "00112233", 8, 0.9)
ADA, BOB, STRANGER = person_vectors(1, 3), person_vectors(2, 2), person_vectors(3, 2)
NEW = person_vectors(9, 7, spread=1.0)
"""Of the other encoder, in the order of templates and unknown faces."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ada with the templates 1 to 3, Bob with 4 and 5; unknown faces 1 and 2."""
    make(tmp_path / "g")
    return tmp_path / "g"


@pytest.fixture
def made(place: str) -> str:
    """The same, in a folder and in a database."""
    make(place)
    return place


def make(folder: Path | str) -> None:
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}", f"crop {i}".encode()) for i, v in enumerate(ADA)])
        gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(BOB)])
        gallery.remember_unknown([template(v, f"stranger{i}") for i, v in enumerate(STRANGER)])
        gallery.set_threshold(0.7)
        gallery.set_person_threshold("Bob", 0.6)


def change_for(gallery: Gallery, encoder: EncoderIdentity = OTHER_ENCODER, **fields: object) -> EncoderChange:
    """All faces as `NEW`."""
    vectors = [NewVector(vector) for vector in NEW]
    change = EncoderChange(
        encoder,
        gallery.state,
        dict(zip(range(1, 6), vectors[:5], strict=True)),
        dict(zip((1, 2), vectors[5:], strict=True)),
    )
    return replace(change, **fields)  # type: ignore[arg-type]


def changed(folder: Path | str, **fields: object) -> int:
    with Gallery.open(folder) as gallery:
        return gallery.change_encoder(change_for(gallery, **fields))  # type: ignore[arg-type]


def test_people_ids_crops_and_photos_stay(made: str) -> None:
    with Gallery.open(made, ENCODER) as gallery:
        before = {name: gallery.templates(name) for name in ("Ada", "Bob")}
    assert changed(made, threshold_l2=0.8, person_thresholds_l2={"Ada": 0.9}) == 0
    with Gallery.open(made, OTHER_ENCODER) as gallery:
        assert {name: gallery.templates(name) for name in ("Ada", "Bob")} == before
        np.testing.assert_array_equal(gallery.vectors("Ada"), NEW[:3])
        np.testing.assert_array_equal([face.embedding for face in gallery.unknown_faces()], NEW[5:])
        assert [gallery.crop(id) for id in range(1, 6)] == [b"crop 0", b"crop 1", b"crop 2", None, None]
        assert gallery.threshold_l2 == 0.8
        assert [(p.name, p.threshold_l2) for p in gallery.people()] == [("Ada", 0.9), ("Bob", None)]
        assert [match.name for match in gallery.match(NEW[:5], one_person_per_photo=False)] == [
            *["Ada"] * 3,
            *["Bob"] * 2,
        ]
        assert gallery.match(ADA[:1])[0].name is None
        assert gallery.add("Eve", templates(person_vectors(5, 1))) == [6]
    assert verify(made, OTHER_ENCODER) == ()


def test_vectors_may_have_another_length_and_crops_another_form(made: str) -> None:
    short = NEW[:, :8] / np.linalg.norm(NEW[:, :8], axis=1, keepdims=True)
    new = dict(zip(range(1, 6), (NewVector(v, b"another crop") for v in short), strict=False))
    assert changed(made, encoder=SHORT_ENCODER, templates=new, unknown={}) == 2
    assert verify(made, SHORT_ENCODER) == ()
    with Gallery.open(made, SHORT_ENCODER) as gallery:
        assert gallery.vectors("Ada").shape == (3, 8)
        assert gallery.crop(4) == b"another crop"
        assert gallery.unknown_faces() == []
        assert gallery.match(short[3:4])[0].name == "Bob"


def test_faces_without_a_vector_are_erased(folder: Path) -> None:
    with Gallery.open(folder) as gallery:
        new = {id: NewVector(NEW[id]) for id in (1, 3)}
        assert gallery.change_encoder(change_for(gallery, templates=new, unknown={2: NewVector(NEW[0])})) == 4
    with Gallery.open(folder, OTHER_ENCODER) as gallery:
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 2)]
        assert [face.id for face in gallery.unknown_faces()] == [2]
    assert bytes_in(folder, [b"Bob", b"ada1.jpg", b"stranger0"]) == []
    assert verify(folder, OTHER_ENCODER) == ()


def test_no_vector_of_the_old_encoder_is_left_in_any_file(folder: Path) -> None:
    old = [vector.tobytes()[:32] for vector in (*ADA, *BOB, *STRANGER)]
    assert bytes_in(folder, old)
    changed(folder)
    Gallery.open(folder).close()
    assert bytes_in(folder, old) == []


def test_an_encrypted_gallery_stays_encrypted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_GALLERY_KEY", "secret of the test")
    with Gallery.open(folder) as gallery:
        gallery.encrypt(b"secret of the test")
    changed(folder)
    with Gallery.open(folder, OTHER_ENCODER) as gallery:
        assert gallery.match(NEW[:1])[0].name == "Ada"
    assert verify(folder, OTHER_ENCODER) == ()
    assert bytes_in(folder, [b"Ada", *(vector.tobytes()[:32] for vector in NEW)]) == []


# All who have it open


@pytest.mark.parametrize("has_index", [True, False])
def test_whoever_has_it_open_names_nobody_any_more(made: str, has_index: bool) -> None:
    with (
        Gallery.open(made, ENCODER) as reader,
        Gallery.open(made) as manager,
        Gallery.open(made) as gallery,
    ):
        if has_index:
            assert reader.match(ADA[:1])[0].name == "Ada"
        gallery.change_encoder(change_for(gallery))
        for act in (
            lambda: reader.match(NEW[:1]),
            lambda: reader.match(NEW[:1], threshold_l2=2.0),
            lambda: reader.add("Eve", templates(person_vectors(5, 1))),
            lambda: reader.remember_unknown(templates(person_vectors(5, 1))),
            lambda: reader.vectors("Ada"),
            lambda: manager.rename("Ada", "Eve"),
            lambda: gallery.templates("Ada"),
            gallery.people,
        ):
            with pytest.raises(GalleryError, match="made anew for another encoder, square"):
                act()
    with Gallery.open(made, OTHER_ENCODER) as again:
        assert again.match(NEW[:1])[0].name == "Ada"
    with pytest.raises(GalleryError, match=r"vectors of square.*gallery reembed"):
        Gallery.open(made, ENCODER)


NAMER = """
    import time
    from facepipe.core.errors import GalleryError
    end = time.monotonic() + 20
    with Gallery.open(sys.argv[1], ENCODER) as gallery:
        try:
            while time.monotonic() < end:
                print(gallery.match(person_vectors(1, 1), threshold_l2=2.0)[0].distance_l2, flush=True)
        except GalleryError as error:
            print(error, flush=True)
"""


def test_a_process_that_names_all_the_time_stops_at_the_switch(folder: Path) -> None:
    """Its own vector is at distance 0 of the old ones, and of no new one."""
    namer = start(NAMER, folder)
    assert namer.stdout is not None
    assert namer.stdout.readline() == "0.0\n"
    changed(folder)
    *distances, error = namer.communicate()[0].splitlines()
    assert namer.returncode == 0
    assert set(distances) <= {"0.0"}
    assert "made anew for another encoder, square" in error


def test_a_gallery_that_was_empty_when_it_was_opened_notices_too(tmp_path: Path) -> None:
    with Gallery.open(tmp_path, ENCODER, create=True) as empty, Gallery.open(tmp_path) as other:
        other.change_encoder(EncoderChange(OTHER_ENCODER, other.state, {}))
        with pytest.raises(GalleryError, match="made anew for another encoder"):
            empty.add("Ada", templates(ADA))
    with Gallery.open(tmp_path, OTHER_ENCODER) as gallery:
        assert gallery.people() == []


def test_going_there_and_back_is_noticed(made: str) -> None:
    with Gallery.open(made, ENCODER) as reader:
        assert reader.match(ADA[:1])[0].name == "Ada"
        changed(made)
        changed(made, encoder=ENCODER)
        with pytest.raises(GalleryError, match="open it again"):
            reader.match(ADA[:1])
    with Gallery.open(made, ENCODER) as again:
        assert again.match(NEW[:1])[0].name == "Ada"


def test_an_addition_that_fails_is_no_other_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transaction read of its own changes is not known any more when they are taken back."""
    with Gallery.open(folder, ENCODER) as gallery:
        with suppress(RuntimeError), gallery._changing(vectors=True):
            gallery._store.add("Eve", templates(person_vectors(5, 1)))
            gallery._index.answer(lambda view: view.sizes())
            raise RuntimeError("the disk is full")
        assert [person.name for person in gallery.people()] == ["Ada", "Bob"]


def test_an_index_of_the_old_encoder_is_never_used(folder: Path) -> None:
    old = read_index_files(folder)
    changed(folder)
    Gallery.open(folder).close()
    write_index_files(folder, old)
    with Gallery.open(folder, OTHER_ENCODER) as gallery:
        assert gallery.match(NEW[:1])[0].name == "Ada"
        assert gallery.match(ADA[:1])[0].name is None


# What is refused


def test_a_gallery_that_changed_meanwhile_stays_as_it_is(made: str) -> None:
    with Gallery.open(made, ENCODER) as gallery:
        change = change_for(gallery)
        gallery.add("Eve", templates(person_vectors(5, 1)))
        with pytest.raises(GalleryError, match="was changed while"):
            gallery.change_encoder(change)
        assert gallery.match(ADA[:1])[0].name == "Ada"
    assert verify(made, ENCODER) == ()


def test_bad_vectors_and_thresholds_change_nothing(made: str) -> None:
    with Gallery.open(made, ENCODER) as gallery:
        too_long = {1: NewVector(2 * NEW[0])}
        with pytest.raises(GalleryError, match="new encoder"):
            gallery.change_encoder(change_for(gallery, templates=too_long))
        with pytest.raises(GalleryError, match="new encoder"):
            gallery.change_encoder(change_for(gallery, encoder=SHORT_ENCODER))
        with pytest.raises(UsageError, match="threshold"):
            gallery.change_encoder(change_for(gallery, person_thresholds_l2={"Ada": 2.5}))
        assert gallery.match(ADA[:1])[0].name == "Ada"
    assert verify(made, ENCODER) == ()


def test_a_damaged_row_gets_no_fitting_checksum(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "gallery.sqlite3")) as connection, connection:
        connection.execute("UPDATE templates SET source = 'elsewhere' WHERE id = 2")
    with pytest.raises(GalleryError, match="templates 2 is damaged"):
        changed(folder)
    assert [finding.code for finding in verify(folder, ENCODER)] == ["checksum"]


# Kills

KILLED_AT_EACH_STATEMENT = """
    import os, shutil, signal
    from pathlib import Path
    import facepipe.gallery.storage.sqlite.database as database
    from test_encoder_change import change_for
    original = database.connect

    def connect(*arguments):
        connection = original(*arguments)
        connection.set_trace_callback(count)
        return connection

    def count(_):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    source, target, left = Path(sys.argv[1]), Path(sys.argv[2]), 0
    for step in range(1, 400):
        folder = target / str(step)
        shutil.copytree(source, folder)
        child = os.fork()
        if not child:
            with Gallery.open(folder) as gallery:
                database.connect = connect
                gallery._store._home._refresh()
                change = change_for(gallery)
                left = step
                gallery.change_encoder(change)
                left = 0
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            break
        print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_kill_at_any_statement_leaves_the_old_or_the_new(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    code = f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n    " + KILLED_AT_EACH_STATEMENT.lstrip()
    child = start("    " + code, folder, target)
    steps = [int(line) for line in child.communicate()[0].split()]
    assert child.returncode == 0
    assert len(steps) > 30
    outcomes = [_encoder_of_whole(target / str(step)) for step in steps]
    assert outcomes == sorted(outcomes)  # First the old encoder, and the new one from some statement on.
    assert _encoder_of_whole(target / str(len(steps) + 1)) == "square"
    assert outcomes[0] == "round"


def _encoder_of_whole(folder: Path) -> str:
    """The encoder of a gallery of which all is of this encoder."""
    with Gallery.open(folder) as gallery:
        encoder = gallery.encoder
    identity, vectors = (ENCODER, ADA) if encoder.name == "round" else (OTHER_ENCODER, NEW)
    with Gallery.open(folder, identity) as gallery:
        np.testing.assert_array_equal(gallery.vectors("Ada"), vectors[:3])
        assert gallery.match(vectors[:1])[0].name == "Ada"
        assert gallery.threshold_l2 == (0.7 if identity is ENCODER else None)
        assert len(gallery.unknown_faces()) == 2
    assert verify(folder, identity) == ()
    shutil.rmtree(folder)
    return encoder.name
