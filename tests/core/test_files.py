"""Files that appear whole or not at all, whatever their names, and nothing left of killed writers."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from facepipe.core.files import (
    atomic_file,
    atomic_path,
    atomic_write_bytes,
    make_private_folder,
    open_regular,
    remove_dead_temporaries,
    temporary_folder,
)

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
WRITER = """
import sys
from pathlib import Path
from facepipe.core.files import atomic_file, atomic_path, temporary_folder
file = Path(sys.argv[2])
def wait():
    print("begun", flush=True)
    sys.stdin.read()
if sys.argv[1] == "folder":
    with temporary_folder(file.parent) as folder:
        (folder / "private").write_text("Ada")
        wait()
elif sys.argv[1] == "path":
    with atomic_path(file, ".mp4") as temporary:
        temporary.write_text("Ada")
        Path(f"{temporary}-wal").write_text("Ada")
        wait()
        Path(f"{temporary}-wal").unlink()
else:
    with atomic_file(file) as stream:
        stream.write(b"Ada")
        stream.flush()
        wait()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def begun(how: str, file: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing; it goes on when its stdin ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, how, str(file)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@settings(deadline=None, max_examples=30)
@given(
    name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .filter(lambda name: len(name.encode()) <= 255 and name not in (".", ".."))
    .flatmap(lambda name: st.sampled_from([name, name + "a" * (255 - len(name.encode()))]))
)
def test_a_file_may_have_any_name_that_the_file_system_takes(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("files")
    atomic_write_bytes(folder / name, b"one")
    assert (folder / name).read_bytes() == b"one"
    with atomic_path(folder / name, ".mp4") as temporary:
        temporary.write_bytes(b"two")
    assert (folder / name).read_bytes() == b"two"
    assert [file.name for file in folder.iterdir()] == [name]


@pytest.mark.parametrize("replace", [True, False])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "file").write_text("old")
    with (
        pytest.raises(FileExistsError if not replace else IsADirectoryError),
        atomic_file(tmp_path / "file" if not replace else tmp_path, replace=replace) as stream,
    ):
        stream.write(b"new")
    with pytest.raises(KeyError), atomic_file(tmp_path / "file"):
        raise KeyError
    assert (tmp_path / "file").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device /dev/full answers every write with "no space left", also the one on closing."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def on_a_full_disk(descriptor: int, mode: str) -> io.BufferedWriter:
        os.close(descriptor)
        return io.BufferedWriter(io.FileIO("/dev/full", "wb"))

    monkeypatch.setattr(os, "fdopen", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "file") as stream:
        stream.write(b"new")
    assert list(tmp_path.iterdir()) == []


@needs_locks
@pytest.mark.parametrize("how", ["file", "path", "folder"])
def test_what_a_killed_writer_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path, how: str) -> None:
    living, killed = begun(how, tmp_path / "living"), begun(how, tmp_path / "killed")
    assert len(list(tmp_path.iterdir())) == (4 if how == "path" else 2)
    killed.kill()
    killed.wait()
    remove_dead_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == (2 if how == "path" else 1)
    living.communicate("", timeout=60)
    assert living.returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ([] if how == "folder" else ["living"])
    assert not (tmp_path / "killed").exists()


@needs_locks
def test_the_first_file_that_a_process_writes_in_a_folder_removes_them(tmp_path: Path) -> None:
    killed = begun("file", tmp_path / "killed")
    killed.kill()
    killed.wait()
    (tmp_path / "mine.part").write_text("another program's")
    (tmp_path / ".facepipe-0123456789abcdef.part-wal").write_text("of a file that is gone")
    begun("file", tmp_path / "new").communicate("", timeout=60)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.part", "new"]


@needs_locks
def test_sweepers_never_take_a_file_from_its_writer(tmp_path: Path) -> None:
    """Writers and sweepers of one folder, side by side: every file comes to be."""
    script = """
import sys
from pathlib import Path
from facepipe.core.files import atomic_write_bytes, remove_dead_temporaries
folder, number = Path(sys.argv[1]), sys.argv[2]
for i in range(50):
    remove_dead_temporaries(folder)
    atomic_write_bytes(folder / f"{number} {i}", b"x")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(i)], env=environment)
        for i in range(3)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 3 * 50


def test_links_and_pipes_of_such_a_name_harm_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / ".facepipe-0123456789abcdef.part").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".facepipe-00000000000000ff.part")
    remove_dead_temporaries(tmp_path)
    assert (tmp_path / "precious" / "file").read_text() == "x"


# Permissions


def test_files_and_folders_are_for_the_user_alone(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    (tmp_path / "wide").mkdir(mode=0o755)
    make_private_folder(tmp_path / "wide")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert mode_of(folder) == 0o700
    assert mode_of(tmp_path / "wide") == 0o755
    atomic_write_bytes(tmp_path / "wide" / "file", b"x")
    with atomic_file(tmp_path / "wide" / "stream") as stream:
        assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600, "from the first byte on"
    with temporary_folder(tmp_path / "wide") as folder:
        assert mode_of(folder) == 0o700
    assert {mode_of(file) for file in (tmp_path / "wide").iterdir()} == {0o600}


def test_a_folder_below_a_thousand_others_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_private_folder(Path(*["a"] * 1500))
    assert Path(*["a"] * 1500).is_dir()
    os.removedirs(Path(*["a"] * 1500))  # pytest itself can't


# Reading


def test_only_ordinary_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"x"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros", "."):
        with pytest.raises(OSError, match="not an ordinary file"):
            open_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
