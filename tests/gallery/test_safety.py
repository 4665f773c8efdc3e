"""Nothing acknowledged is lost: crowded, full and read-only galleries. For killed ones see test_attack.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import facepipe
from gallery_helpers import ENCODER, person_vectors, start, templates

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify

NOBODY_ID = 65534


CROWD_WRITER = """
    folder, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        for step in range(count):
            gallery.add("Everybody", templates(person_vectors(10_000 * writer + step, 1)))
            name, seed = f"writer {writer} person {step}", 10_000 * writer + 5000 + step
            gallery.add(name, templates(person_vectors(seed, 2)))
            if step % 10 == 9:
                gallery.match(person_vectors(1, 3))
                gallery.remove(name)
"""


def test_two_writing_processes_and_a_reader_lose_nothing(place: str) -> None:
    """Both find no gallery at first, so the making of it is contended too."""
    count = 30
    writers = [start(CROWD_WRITER, place, writer, count) for writer in (1, 2)]
    while any(writer.poll() is None for writer in writers):
        with Gallery.open(place, ENCODER, create=True) as reader:
            reader.match(person_vectors(1, 3))
            assert all(p.template_count == 2 for p in reader.people() if p.name != "Everybody")
        time.sleep(0.02)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    with Gallery.open(place, ENCODER) as gallery:
        counts = {p.name: p.template_count for p in gallery.people()}
        kept = {f"writer {w} person {s}": 2 for w in (1, 2) for s in range(count) if s % 10 != 9}
        assert counts == {**kept, "Everybody": 2 * count}
        assert gallery.info().generation == 2 * (2 * count + count // 10)
        for w in (1, 2):
            assert gallery.match(person_vectors(10_000 * w + 5000, 1))[0].name == f"writer {w} person 0"


def test_threads_share_a_gallery(place: str) -> None:
    failures: list[BaseException] = []

    def work(gallery: Gallery, thread: int) -> None:
        try:
            for step in range(20):
                vectors = person_vectors(1000 * thread + step, 1)
                gallery.add(f"{thread}/{step}", templates(vectors))
                assert gallery.match(vectors)[0].name == f"{thread}/{step}"
        except BaseException as error:
            failures.append(error)

    with Gallery.open(place, ENCODER, create=True) as gallery:
        threads = [threading.Thread(target=work, args=(gallery, thread)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert gallery.info().people == 80


def test_a_gallery_that_stays_busy_is_said(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facepipe.gallery.storage.sqlite.database.BUSY_TIMEOUT_S", 0.1)
    if place.startswith("postgresql:"):
        monkeypatch.setattr("facepipe.gallery.storage.postgres.database.LOCK_TIMEOUT_S", 0.1)
    with (
        Gallery.open(place, ENCODER, create=True) as one,
        Gallery.open(place, ENCODER) as other,
    ):
        one.add("Ada", templates(person_vectors(1, 1)))
        with one._store.changing(), pytest.raises(GalleryError, match="busy"):
            other.rename("Ada", "Eve")
        assert [p.name for p in other.people()] == ["Ada"]


def test_one_state_is_read_whoever_writes_meanwhile(place: str) -> None:
    with Gallery.open(place, ENCODER, create=True) as one, Gallery.open(place, ENCODER) as other:
        one.add("Ada", templates(person_vectors(1, 1)))
        with one.one_state():
            before = one.state
            other.add("Bob", templates(person_vectors(2, 1)))
            assert (one.state, [person.name for person in one.people()]) == (before, ["Ada"])
            assert one.match(person_vectors(2, 1))[0].name is None
            with pytest.raises(GalleryError, match="while one state is read"):
                one.rename("Ada", "Eve")
            assert one.state == before
        assert one.match(person_vectors(2, 1))[0].name == "Bob"


# Interrupted changes


def test_a_change_that_fails_half_way_changes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(place, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 2)))
        insert = gallery._store._rows.insert

        def insert_half(table: str, rows: Sequence[Sequence[Any]]) -> list[int]:
            ids = insert(table, rows[:3])
            if table == "templates":
                raise KeyboardInterrupt
            return ids

        monkeypatch.setattr(gallery._store._rows, "insert", insert_half)
        with pytest.raises(KeyboardInterrupt):
            gallery.add("Bob", templates(person_vectors(2, 5)))
        monkeypatch.undo()
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 2)]
        assert gallery.info().generation == 1
        assert len(gallery.add("Bob", templates(person_vectors(2, 5)))) == 5


# Full

ADD_TOO_MUCH = """
    from facepipe.core.errors import GalleryError
    gallery = Gallery.open(sys.argv[1], ENCODER)
    if sys.argv[2] == "limit":
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    try:
        gallery.add("Bob", templates(person_vectors(2, 1000)))
    except GalleryError as error:
        print(error)
    gallery.close()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB and 64 files; only root may make one, and not in every container."""
    mounting = ["mount", "-t", "tmpfs", "-o", "size=400k,nr_inodes=64", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("no file system of a chosen size can be made here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte and no file free."""
    with (disk / "filling").open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(4096))


def use_up_files(disk: Path) -> None:
    (disk / "many").mkdir()
    with suppress(OSError):
        for number in range(100_000):
            (disk / "many" / str(number)).touch()


WHAT_IS_THERE = """
    with Gallery.open(sys.argv[1], ENCODER) as gallery:
        for _ in range(20):
            (match,) = gallery.match(person_vectors(1, 1))
            print([(p.name, p.template_count) for p in gallery.people()], match.name)
"""


@pytest.mark.parametrize("how", [fill, use_up_files])
def test_a_gallery_on_a_full_disk_is_read(
    small_disk: Path,
    how: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By several processes at once; changes are refused, and the cause is named."""
    folder, elsewhere = small_disk / "g", tmp_path_factory.mktemp("elsewhere")
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 20)))
    before = (folder / "gallery.sqlite3").read_bytes()
    how(small_disk)
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.read_only
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 20)]
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
        gallery.export_archive(elsewhere / "copy.zip")
        gallery.backup(elsewhere / "backup")
        for change in (
            lambda: gallery.add("Bob", templates(person_vectors(2, 1))),
            lambda: gallery.remove("Ada"),
        ):
            with pytest.raises(GalleryError, match=r"disk is full.*free: \d+ bytes.*nothing was changed"):
                change()
        readers = [start(WHAT_IS_THERE, folder) for _ in range(3)]
        assert {reader.communicate()[0] for reader in readers} == {"[('Ada', 20)] Ada\n" * 20}
    with pytest.raises(GalleryError, match="closed"):
        gallery.people()
    assert verify(folder, ENCODER) == ()
    assert verify(elsewhere / "backup", ENCODER) == ()
    assert {re.sub(r"\d+ bytes", "N bytes", message) for message in caplog.messages} == {
        f"{folder / 'gallery.sqlite3'}: the disk is full, or a quota or limit is reached (free: N bytes): "
        "make room first: the gallery is read, but nothing can be changed"
    }
    assert (folder / "gallery.sqlite3").read_bytes() == before
    for left in ("filling", "many"):
        if (small_disk / left).exists():
            shutil.rmtree(small_disk / left) if left == "many" else (small_disk / left).unlink()
    with Gallery.open(folder, ENCODER) as gallery:
        gallery.add("Bob", templates(person_vectors(2, 1)))


@pytest.mark.parametrize("how", [fill, use_up_files])
def test_on_a_full_disk_the_last_changes_are_read_or_the_gallery_is_refused(
    small_disk: Path, how: Callable[[Path], None]
) -> None:
    """They stand in the log of a killed process, and are never passed over."""
    folder = small_disk / "g"
    code = """
    import os
    gallery = Gallery.open(sys.argv[1], ENCODER, create=True)
    gallery.add("Ada", templates(person_vectors(1, 20)))
    os.kill(os.getpid(), 9)
    """
    start(code, folder).communicate()
    (folder / "gallery.sqlite3-shm").unlink()
    how(small_disk)
    with Gallery.open(folder, ENCODER) as gallery:
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 20)]
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"


def test_a_command_on_a_full_disk_names_the_cause(small_disk: Path) -> None:
    folder = small_disk / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 20)))
    fill(small_disk)
    listed = facepipe("gallery", "list", "--gallery", folder)
    assert (listed.code, listed.lines) == (0, ["    20  Ada"])
    assert "disk is full" in listed.err
    removed = facepipe("gallery", "remove", "Ada", "--gallery", folder)
    assert removed.code == 1
    assert "disk is full" in removed.err


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_quota_changes_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the quota."""
    require_nothing_changes_on_a_full_disk(tmp_path / "g", "limit")


def test_a_full_disk_changes_nothing(small_disk: Path) -> None:
    require_nothing_changes_on_a_full_disk(small_disk / "g", "disk")


def require_nothing_changes_on_a_full_disk(folder: Path, kind: str) -> None:
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 20)))
    child = start(ADD_TOO_MUCH, folder, kind)
    said, _ = child.communicate()
    assert child.returncode == 0
    assert "gallery.sqlite3: " in said
    assert "the disk is full, or a quota or limit is reached (free: " in said
    assert said.count("\n") == 1
    assert verify(folder, ENCODER) == ()
    with Gallery.open(folder, ENCODER) as gallery:
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 20)]
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"


# Read-only

AS_ANYBODY = f"""
    import faiss, os, safetensors.numpy, encodings.cp437  # Before giving up the right to read them, perhaps.
    from pathlib import Path
    from facepipe.core.errors import GalleryError
    if os.getuid() == 0:
        os.setgid({NOBODY_ID}), os.setuid({NOBODY_ID})
    folder = Path(sys.argv[1])
"""
READER = """
    with Gallery.open(folder, ENCODER) as gallery:
        print(gallery.read_only, gallery.info().read_only)
        print([p.name for p in gallery.people()])
        print(gallery.match(person_vectors(1, 1))[0].name)
        gallery.export_archive(Path(sys.argv[2]) / "copy.zip")
        for change in (
            lambda: gallery.add("Bob", templates(person_vectors(2, 1))),
            lambda: gallery.rename("Ada", "Eve"),
            lambda: gallery.merge("Ada", "Zoe"),
            lambda: gallery.remove("Ada"),
            lambda: gallery.import_archive(Path(sys.argv[2]) / "copy.zip"),
        ):
            try:
                change()
            except GalleryError as error:
                print("refused" if "read-only" in str(error) and str(folder) in str(error) else error)
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that an unprivileged process can reach: pytest's own is closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def read_as_anybody(folder: Path, public_folder: Path) -> list[str]:
    child = start(AS_ANYBODY + READER, folder, public_folder)
    said, _ = child.communicate()
    assert child.returncode == 0
    return said.splitlines()


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.parametrize("writable", ["nothing", "the folder", "the file"])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_read_only_gallery_is_read_and_refuses_changes(
    public_folder: Path, writable: str, with_index: bool
) -> None:
    folder = public_folder / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
        gallery.add("Zoe", templates(person_vectors(5, 3)))
    if not with_index:
        (folder / "index.faiss").unlink()
    before = (folder / "gallery.sqlite3").read_bytes()
    for file in folder.iterdir():
        file.chmod(0o666 if writable == "the file" else 0o444)
    folder.chmod(0o777 if writable == "the folder" else 0o555)
    try:
        said = read_as_anybody(folder, public_folder)
    finally:
        folder.chmod(0o700)
    assert said == ["True True", "['Ada', 'Zoe']", "Ada", *["refused"] * 5]
    assert (folder / "gallery.sqlite3").read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_gallery_of_another_owner_is_one_clear_error(public_folder: Path) -> None:
    """Private galleries are closed to everybody else."""
    folder = public_folder / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
    before = (folder / "gallery.sqlite3").read_bytes()
    code = """
    from facepipe.gallery.repair import verify, repair
    for act in (lambda: Gallery.open(folder), lambda: Gallery.open(folder, ENCODER, create=True),
                lambda: verify(folder), lambda: repair(folder)):
        try:
            act()
        except GalleryError as error:
            print(error)
    """
    said, _ = start(AS_ANYBODY + code, folder).communicate()
    assert [("Permission denied" in line, str(folder) in line) for line in said.splitlines()] == [
        (True, True)
    ] * 4
    assert (folder / "gallery.sqlite3").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_reader_without_rights_sees_what_a_writer_adds(public_folder: Path) -> None:
    folder = public_folder / "g"
    with Gallery.open(folder, ENCODER, create=True) as writer:
        writer.add("Ada", templates(person_vectors(1, 3)))
        writer.add("Zoe", templates(person_vectors(5, 3)))
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        said = read_as_anybody(folder, public_folder)
        folder.chmod(0o700)
    assert said[:3] == ["True True", "['Ada', 'Zoe']", "Ada"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_changes_out_of_reach_of_a_reader_are_said_not_ignored(public_folder: Path) -> None:
    """A killed writer left changes in the log, and the folder was then made read-only."""
    folder, left = public_folder / "g", public_folder / "left"
    with Gallery.open(folder, ENCODER, create=True) as writer:
        writer.add("Ada", templates(person_vectors(1, 3)))
        left.mkdir()
        for file in folder.glob("gallery.sqlite3*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, left)
                (left / file.name).chmod(0o444)
    left.chmod(0o555)
    code = """
    try:
        Gallery.open(folder)
    except GalleryError as error:
        print(error)
    """
    said, _ = start(AS_ANYBODY + code, left).communicate()
    left.chmod(0o700)
    assert "last changes" in said
    with Gallery.open(left, ENCODER) as gallery:
        assert gallery.people()[0].template_count == 3


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder a file system of its own that is mounted read-only; only root may."""
    mounted = []

    def mount(folder: Path) -> None:
        bind = ["mount", "--bind", str(folder), str(folder)]
        if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(folder)
        remount = ["mount", "-o", "remount,bind,ro", str(folder)]
        if subprocess.run(remount, capture_output=True).returncode:
            pytest.skip("nothing can be mounted read-only here")

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("leaves_log", [False, True])
def test_a_gallery_in_a_folder_mounted_read_only(
    tmp_path: Path, leaves_log: bool, read_only_disk: Callable[[Path], None]
) -> None:
    """It is read; where a killed process left changes in the log, it is refused with the cure."""
    folder = tmp_path / "g"
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
        if leaves_log:
            shutil.copytree(folder, tmp_path / "left")
    if leaves_log:
        folder = tmp_path / "left"
        (folder / "gallery.sqlite3-shm").unlink()
    read_only_disk(folder)
    if leaves_log:
        with pytest.raises(GalleryError, match=r"last changes.*where it may be written"):
            Gallery.open(folder, ENCODER)
        return
    with Gallery.open(folder, ENCODER) as gallery:
        assert gallery.read_only
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
        with pytest.raises(GalleryError, match="read-only"):
            gallery.remove("Ada")
    assert verify(folder, ENCODER) == ()
