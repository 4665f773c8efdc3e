"""A damaged log loses nothing in silence: it is read beyond the damage, or told and brought back as known."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import facepipe
from gallery_helpers import (
    ENCODER,
    bytes_in,
    person_vectors,
    read_index_files,
    start,
    template,
    templates,
    write_index_files,
)

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.index.vectors import VectorIndex
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.salvaged import QUARANTINE_FILE

FILE, LOG, INDEX = "gallery.sqlite3", "gallery.sqlite3-wal", "index.faiss"
HEADER_BYTES, FRAME_BYTES = 32, 4096 + 24
PEOPLE, INDEXED, OF_EACH = 12, 9, 3

ADD_AND_BE_KILLED = """
    import os, signal
    folder, people, indexed, of_each = sys.argv[1], *map(int, sys.argv[2:])
    gallery = Gallery.open(folder, ENCODER)
    for seed in range(people):
        photos = enumerate(person_vectors(seed, of_each))
        gallery.add(f"person {seed}", [template(v, f"{seed}-{i}") for i, v in photos])
        if seed == indexed - 1:
            gallery.rebuild_index()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def tmp_path(memory_folder: Path) -> Path:
    """In memory: many galleries are made and mended."""
    return memory_folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of 12 people, all of them in the log of a killed process; its index knows nine of them."""
    folder = tmp_path_factory.mktemp("killed") / "g"
    Gallery.open(folder, ENCODER, create=True).close()
    child = start(ADD_AND_BE_KILLED, folder, PEOPLE, INDEXED, OF_EACH)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (folder / f"{FILE}-shm").unlink()
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "g"))


def vectors_of(seed: int) -> set[bytes]:
    return {row.tobytes() for row in person_vectors(seed, OF_EACH)}


def held_by(folder: Path) -> tuple[dict[str, set[bytes]], set[bytes]]:
    """The vectors of named and of unknown faces."""
    with Gallery.open(folder, ENCODER) as gallery:
        named = {p.name: {row.tobytes() for row in gallery.vectors(p.name)} for p in gallery.people()}
        return named, {face.embedding.tobytes() for face in gallery.unknown_faces()}


def frames_of(folder: Path) -> list[int]:
    """Where the log's frames begin that end a change."""
    log = (folder / LOG).read_bytes()
    places = range(HEADER_BYTES, len(log), FRAME_BYTES)
    return [place for place in places if int.from_bytes(log[place + 4 : place + 8], "big")]


def flip(file: Path, place: int, bits: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= bits
    file.write_bytes(data)


ALL = {f"person {seed}": vectors_of(seed) for seed in range(PEOPLE)}
INDEX_KNOWS = set().union(*(vectors_of(seed) for seed in range(INDEXED)))


def test_without_damage_all_is_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert held_by(folder) == (ALL, set())
    assert caplog.messages == []
    assert verify(folder, ENCODER) == ()


@pytest.mark.parametrize("seed", range(40))
def test_a_log_damaged_anywhere_loses_nothing_in_silence(
    folder: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    size = (folder / LOG).stat().st_size
    place = rng.randrange(HEADER_BYTES) if seed < 5 else rng.randrange(size)
    flip(folder / LOG, place, 1 << rng.randrange(8))
    is_told = False
    try:
        is_whole = held_by(folder) == (ALL, set())
    except GalleryError as error:
        is_whole, is_told = False, "gallery repair" in str(error)
    assert is_whole or is_told or caplog.messages, f"byte {place}"
    done = repair(folder)
    named, unknown = held_by(folder)
    assert all(vectors <= ALL[name] for name, vectors in named.items())
    found = unknown.union(*named.values())
    assert found >= INDEX_KNOWS
    missing = set().union(*ALL.values()) - found
    if missing:  # One row is damaged, or the last change was dropped.
        assert len(missing) <= OF_EACH
        assert done.quarantined or any("last change" in message for message in caplog.messages)
    assert verify(folder, ENCODER) == ()


def test_changes_behind_a_damage_are_read_by_repairing(folder: Path) -> None:
    """Of the 12 changes, one row is lost at most."""
    flip(folder / LOG, frames_of(folder)[4] + 24 + 8)
    with pytest.raises(GalleryError, match=r"log is damaged, and \d changes stand behind"):
        Gallery.open(folder)
    (finding,) = verify(folder)
    assert finding.code == "database"
    damaged = (folder / LOG).read_bytes()
    done = repair(folder)
    assert done.aside is not None
    assert (done.aside / LOG).read_bytes() == damaged
    named, _ = held_by(folder)
    assert list(named) == sorted(ALL)
    assert sum(map(len, named.values())) >= PEOPLE * OF_EACH - 1


def test_a_write_cut_short_is_undone_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a power cut leaves it: the last frames did not get to the disk, or not all of them."""
    first_of_last = frames_of(folder)[-2] + FRAME_BYTES
    data = bytearray((folder / LOG).read_bytes())
    data[first_of_last + 24 : first_of_last + 24 + 4096] = bytes(4096)
    (folder / LOG).write_bytes(data)
    named, _ = held_by(folder)
    assert named == {name: vectors for name, vectors in ALL.items() if name != f"person {PEOPLE - 1}"}
    (message,) = caplog.messages
    assert "last change" in message
    (aside,) = folder.parent.glob("g.damaged-*")
    assert str(aside) in message
    assert (aside / LOG).read_bytes() == data
    assert verify(folder, ENCODER) == ()
    assert len(caplog.messages) == 1


# An index ahead of the truth


@pytest.fixture
def behind(folder: Path) -> Path:
    """A gallery whose log lost its second half, which nothing but its index tells."""
    log = folder / LOG
    log.write_bytes(log.read_bytes()[: frames_of(folder)[4] + FRAME_BYTES])
    return folder


LOST = set().union(*(vectors_of(seed) for seed in range(5, INDEXED)))
COMMANDS: list[Callable[[Gallery], object]] = [
    Gallery.people,
    Gallery.info,
    lambda gallery: gallery.match(person_vectors(1, 1)),
    lambda gallery: gallery.add("Eve", templates(person_vectors(50, 1))),
    lambda gallery: gallery.rename("person 1", "person 1"),
    Gallery.rebuild_index,
]


@pytest.mark.parametrize("act", COMMANDS)
def test_every_command_tells_of_lost_faces_and_none_overwrites_them(
    behind: Path, act: Callable[[Gallery], object], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        with Gallery.open(behind, ENCODER) as gallery:
            act(gallery)
        (message,) = [message for message in caplog.messages if "lost" in message]
        assert "lost 12 faces that its index knew (templates 16-27)" in message
        assert "gallery repair" in message
    (file,) = behind.glob("index.lost-*.faiss")
    assert str(file) in message
    index = VectorIndex.load(file, 128)
    assert {row.tobytes() for row in index.vectors_of(index.ids)} == LOST
    assert [finding.code for finding in verify(behind)] == ["lost"]


def test_repairing_brings_lost_faces_back_without_names(behind: Path) -> None:
    done = repair(behind)
    assert [finding.code for finding in done.findings] == ["lost"]
    assert "templates 16-27" in done.findings[0].message
    assert (done.templates, done.brought_back, done.quarantined) == (15, 12, 0)
    named, unknown = held_by(behind)
    assert named == {f"person {seed}": vectors_of(seed) for seed in range(5)}
    assert unknown == LOST
    assert done.aside is not None
    assert [file.name.startswith("index.lost-") for file in done.aside.iterdir()] == [True, True]
    assert verify(behind, ENCODER) == ()
    assert repair(behind).findings == ()


def test_the_command_says_how_many_came_back(behind: Path) -> None:
    done = facepipe("gallery", "repair", "--gallery", behind)
    assert done.code == 0
    assert "lost: " in done.out
    assert "12 lost faces came back without a name" in done.err
    assert facepipe("gallery", "verify", "--gallery", behind).code == 0


def test_faces_that_were_enrolled_again_are_not_lost(behind: Path) -> None:
    """Under new ids: nothing is left to bring back, and what was not enrolled again comes back."""
    index = read_index_files(behind)
    (behind / INDEX).unlink()
    with Gallery.open(behind, ENCODER) as gallery:
        for seed in (6, 8, 5):
            gallery.add(f"again {seed}", templates(person_vectors(seed, OF_EACH)))
    write_index_files(behind, index)
    assert repair(behind).brought_back == 3
    assert held_by(behind)[1] == vectors_of(7)


def test_what_was_removed_does_not_come_back(folder: Path) -> None:
    """An index of a state that the gallery does not know any more, as after building it anew."""
    Gallery.open(folder).close()
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.rebuild_index()
        index = read_index_files(folder)
        gallery.remove("person 3")
    write_index_files(folder, index)
    flip(folder / FILE, (folder / FILE).read_bytes().index(b"photos/4-1"))
    done = repair(folder)
    assert done.quarantined == 1
    named, unknown = held_by(folder)
    assert "person 3" not in named
    assert unknown == {person_vectors(4, OF_EACH)[1].tobytes()}  # Of the row that is not to be trusted.
    assert bytes_in(folder, [row.tobytes() for row in person_vectors(3, OF_EACH)]) == []


@pytest.mark.parametrize(
    "erase",
    [
        lambda gallery: gallery.remove("person 1"),
        lambda gallery: gallery.forget_photo("photos/1-1.jpg"),
        lambda gallery: gallery.encrypt(b"secret"),
    ],
)
def test_nobody_is_erased_while_vectors_of_unknown_people_are_kept(
    behind: Path, erase: Callable[[Gallery], object]
) -> None:
    with Gallery.open(behind, ENCODER) as gallery, pytest.raises(GalleryError, match="bring them back first"):
        erase(gallery)
    assert len(held_by(behind)[0]) == 5
    repair(behind)
    with Gallery.open(behind, ENCODER) as gallery:
        erase(gallery)


def test_a_damaged_index_of_a_lost_state_is_kept_as_it_is(
    behind: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray((behind / INDEX).read_bytes())
    data[-100] ^= 1
    (behind / INDEX).write_bytes(data)
    held_by(behind)
    assert "can't be read" in caplog.text
    (file,) = behind.glob("index.lost-*.faiss")
    assert file.read_bytes() == data
    done = repair(behind)
    assert (done.brought_back, done.aside is not None) == (0, True)
    assert verify(behind, ENCODER) == ()


def test_an_index_of_another_gallery_is_kept_beside_before_it_is_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed, name in enumerate(["a", "b"]):
        with Gallery.open(tmp_path / name, ENCODER, create=True) as gallery:
            gallery.add(name, templates(person_vectors(seed, 3)))
    foreign = read_index_files(tmp_path / "b")
    write_index_files(tmp_path / "a", foreign)
    with Gallery.open(tmp_path / "a", ENCODER) as gallery:
        assert gallery.match(person_vectors(0, 1))[0].name == "a"
    (aside,) = tmp_path.glob("a.damaged-*")
    assert str(aside) in caplog.text
    assert read_index_files(aside) == foreign
    assert held_by(tmp_path / "a")[1] == set()
    assert verify(tmp_path / "a", ENCODER) == ()


def test_rows_in_quarantine_keep_their_faces(tmp_path: Path) -> None:
    """The vector of a row that is not to be trusted is known to the index."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(1, 5))])
    flip(
        tmp_path / "g" / FILE,
        (tmp_path / "g" / FILE).read_bytes().index(person_vectors(1, 5)[2].tobytes()) + 1,
    )
    done = repair(tmp_path / "g")
    assert (done.templates, done.quarantined, done.brought_back) == (4, 1, 1)
    assert done.aside is not None
    assert len([json.loads(line) for line in (done.aside / QUARANTINE_FILE).read_text().splitlines()]) == 1
    assert held_by(tmp_path / "g")[1] == {np.asarray(person_vectors(1, 5)[2]).tobytes()}
