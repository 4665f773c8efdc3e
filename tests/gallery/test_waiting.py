"""Nobody waits for a reader but the command that removes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, bytes_in, person_vectors, start, templates, wipe_due

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery

OTHERS_WAIT_S_MAX = 2.0
READING, WRITING = "BEGIN", "BEGIN IMMEDIATE"

HOLDER = """
    import sqlite3
    connection = sqlite3.connect(sys.argv[1] + "/gallery.sqlite3", isolation_level=None)
    connection.execute(sys.argv[2])
    connection.execute("SELECT COUNT(*) FROM people").fetchone()
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        for seed in range(50):
            gallery.add(f"person {seed}", templates(person_vectors(seed, 4)))
        gallery.add("Mata Hari", templates(person_vectors(99, 4)))
    return tmp_path / "g"


@contextmanager
def holding(folder: Path, transaction: str) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a transaction that begins so; `let_go` ends it."""
    holder = start(HOLDER, folder, transaction)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    try:
        yield holder
    finally:
        let_go(holder)


def let_go(holder: subprocess.Popen[str]) -> None:
    holder.communicate("")


@pytest.fixture
def reader(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with holding(folder, READING) as holder:
        yield holder


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def test_openings_do_not_wait_for_a_reader_to_wipe(
    folder: Path,
    reader: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the removing command could not wipe is left to the opening after the reader has gone."""
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.database.BUSY_TIMEOUT_S", 0.5)
    with Gallery.open(folder, ENCODER) as gallery:
        assert seconds_of(lambda: gallery.remove("Mata Hari")) >= 0.5
    monkeypatch.undo()
    log = folder / "gallery.sqlite3-wal"
    before_bytes = log.stat().st_size

    def use() -> None:
        with Gallery.open(folder, ENCODER) as gallery:
            assert gallery.match(person_vectors(1, 1))[0].name == "person 1"
            gallery.set_threshold(0.9)

    for _ in range(5):
        assert seconds_of(use) < OTHERS_WAIT_S_MAX
    assert "not yet wiped" in caplog.text
    assert wipe_due(folder)
    # A rewritten file in the log at every opening would be 5 times this.
    assert log.stat().st_size - before_bytes < (folder / "gallery.sqlite3").stat().st_size
    let_go(reader)
    Gallery.open(folder).close()
    assert not wipe_due(folder)
    assert bytes_in(folder, [b"Mata Hari", *(row.tobytes() for row in person_vectors(99, 4))]) == []


def test_others_read_and_write_while_a_removal_waits(folder: Path, reader: subprocess.Popen[str]) -> None:
    """The removing command waits for the reader and wipes as soon as it has gone."""
    remover = start("with Gallery.open(sys.argv[1], ENCODER) as g: g.remove('Mata Hari')", folder)
    while not wipe_due(folder):
        time.sleep(0.01)
    with Gallery.open(folder, ENCODER) as gallery:
        for step in range(8):
            new = templates(person_vectors(200 + step, 1))
            assert seconds_of(partial(gallery.add, "Ada", new)) < OTHERS_WAIT_S_MAX
            assert seconds_of(lambda: gallery.match(person_vectors(1, 1))) < OTHERS_WAIT_S_MAX
    assert remover.poll() is None
    let_go(reader)
    assert seconds_of(remover.wait) < OTHERS_WAIT_S_MAX + 5  # It has to end the interpreter, too.
    assert remover.returncode == 0
    assert not wipe_due(folder)
    assert bytes_in(folder, [b"Mata Hari"]) == []


def test_threads_of_the_removing_process_go_on(folder: Path, reader: subprocess.Popen[str]) -> None:
    with Gallery.open(folder, ENCODER) as gallery:
        remover = threading.Thread(target=lambda: gallery.remove("Mata Hari"))
        remover.start()
        while not wipe_due(folder):
            time.sleep(0.01)
        for _ in range(5):
            assert seconds_of(lambda: gallery.match(person_vectors(1, 1))) < OTHERS_WAIT_S_MAX
        assert remover.is_alive()
        let_go(reader)
        remover.join()
    assert not wipe_due(folder)


@pytest.mark.parametrize("transaction", [READING, WRITING])
def test_whoever_only_reads_waits_for_nobody(
    folder: Path, transaction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a writer either, though the index is due to be saved."""
    monkeypatch.setattr("facepipe.gallery.index_sync.DerivedIndex.is_file_behind", lambda self: True)

    def use() -> None:
        with Gallery.open(folder, ENCODER) as gallery:
            assert gallery.match(person_vectors(1, 1))[0].name == "person 1"

    with holding(folder, transaction):
        for _ in range(3):
            assert seconds_of(use) < OTHERS_WAIT_S_MAX


def test_what_a_killed_remover_left_waits_until_nobody_writes(folder: Path) -> None:
    """Rows to erase in the index, and the file to wipe."""
    with Gallery.open(folder) as gallery, gallery._store.changing():
        gallery._store.delete_person(gallery._store.people.id_of("Mata Hari"))
    with holding(folder, WRITING):
        assert seconds_of(lambda: Gallery.open(folder).close()) < OTHERS_WAIT_S_MAX
    assert wipe_due(folder)
    Gallery.open(folder).close()
    assert not wipe_due(folder)
    assert bytes_in(folder, [b"Mata Hari", *(row.tobytes() for row in person_vectors(99, 4))]) == []


def test_whoever_writes_beside_a_writer_is_told_in_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.database.BUSY_TIMEOUT_S", 0.1)
    with (
        holding(folder, WRITING),
        Gallery.open(folder, ENCODER) as gallery,
        pytest.raises(GalleryError, match="busy"),
    ):
        gallery.set_threshold(0.9)
