"""The command line as a process: interrupted, cut off, without rights, on terminals and in pipes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import Said, bound_by_permissions, facepipe, finished, start
from pipeline_helpers import SURE, shifted

from facepipe.core.faces import UInt8Array
from facepipe.doctor import examine
from facepipe.gallery import Gallery
from facepipe.images.reading import write_image

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and permission bits")
PEOPLE, PHOTOS_EACH = 6, 4
INTERRUPTED = 130


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    """`people/NN/n.bmp`: many photos of one face; `gallery` knows it."""
    folder = tmp_path_factory.mktemp("album")
    for i in range(PEOPLE * PHOTOS_EACH):
        place = folder / "people" / f"{i // PHOTOS_EACH:02d}"
        place.mkdir(parents=True, exist_ok=True)
        write_image(place / f"{i}.bmp", shifted(astronaut, i + 1))
    write_image(folder / "her.png", astronaut)
    said = facepipe("enroll", "--name", "Her", folder / "her.png", "--gallery", folder / "gallery")
    assert said.code == 0
    return folder


# Interrupted


def enrolled(said: Said) -> int:
    return sum(line.startswith("enrolled") for line in said.lines)


def stored(gallery: Path) -> int:
    """How many faces are stored, in a gallery that everything is right with."""
    assert [check for check in examine(gallery) if not check.ok] == []
    with Gallery.open(gallery) as opened:
        info = opened.info()
    assert info.index_is_current
    return info.templates


def interrupted_enroll(album: Path, home: Path, times: int) -> Said:
    """Enroll, and press Ctrl-C once a few photos are reported."""
    process = start("enroll", album / "people", "--gallery", home / "g", home=home)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(3)]
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    said = finished(process)
    return Said(said.code, "".join(seen) + said.out, said.err)


def test_ctrl_c_keeps_what_was_reported(album: Path, tmp_path: Path) -> None:
    said = interrupted_enroll(album, tmp_path, times=1)
    assert said.code == INTERRUPTED
    assert said.complaints == ["facepipe: interrupted; what was reported as done is kept"]
    assert 3 <= enrolled(said) < PEOPLE * PHOTOS_EACH
    assert enrolled(said) <= stored(tmp_path / "g") <= enrolled(said) + 1
    again = finished(start("enroll", album / "people", "--gallery", tmp_path / "g", home=tmp_path))
    assert again.code == 0
    assert stored(tmp_path / "g") == PEOPLE * PHOTOS_EACH
    assert sum(line.startswith("known") for line in again.lines) >= enrolled(said)


def test_ctrl_c_twice_in_a_row(album: Path, tmp_path: Path) -> None:
    said = interrupted_enroll(album, tmp_path, times=2)
    assert said.code != 0
    assert enrolled(said) >= 3
    with Gallery.open(tmp_path / "g") as gallery:  # the index may be behind: the truth is not
        assert enrolled(said) <= gallery.info().templates <= enrolled(said) + 1


# Pipes and terminals


def test_a_reader_that_has_seen_enough(album: Path, tmp_path: Path) -> None:
    process = start(
        "identify", album / "people", "--score-threshold", SURE, "--gallery", album / "gallery", home=tmp_path
    )
    assert process.stdout is not None
    assert "1 face" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        complaints = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert complaints.count("\n") == 1  # what runs where, and nothing else


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout(album: Path, tmp_path: Path, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        process = start(
            "identify",
            album / "her.png",
            "--gallery",
            album / "gallery",
            home=tmp_path,
            stdout=full,
            environment={"PYTHONUNBUFFERED": unbuffered},
        )
        said = finished(process)
    assert said.code == 1
    assert len(said.complaints) == 1
    assert "No space left on device" in said.complaints[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_output_that_cant_show_every_letter(album: Path, tmp_path: Path, encoding: str) -> None:
    shutil.copy(album / "her.png", tmp_path / "日本.png")
    process = start(
        "detect",
        "--score-threshold",
        SURE,
        "日本.png",
        home=tmp_path,
        environment={"PYTHONIOENCODING": encoding},
    )
    said = finished(process)
    assert said.code == 0
    assert said.lines[0] == ("日本.png: 1 face" if encoding == "utf-8" else "\\u65e5\\u672c.png: 1 face")


def terminal() -> tuple[int, int]:
    """Both ends of a terminal of 100 columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    return ours, theirs


def shown(ours: int) -> str:
    """What the terminal has shown so far."""
    os.set_blocking(ours, False)
    data = b""
    try:
        while piece := os.read(ours, 65536):
            data += piece
    except OSError:
        pass
    return data.decode()


def test_progress_goes_to_the_terminal_and_results_to_the_file(album: Path, tmp_path: Path) -> None:
    ours, theirs = terminal()
    photos = sorted((album / "people" / "00").iterdir())
    with (tmp_path / "out.jsonl").open("w") as out:
        process = start(
            "detect", "--score-threshold", SURE, "--json", *photos, home=tmp_path, stdout=out, stderr=theirs
        )
        assert process.wait(timeout=60) == 0
    said = shown(ours)
    for end in (ours, theirs):
        os.close(end)
    assert "analyzing" in said
    assert "{" not in said
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == PHOTOS_EACH


def test_progress_and_results_on_one_terminal_keep_their_lines(album: Path, tmp_path: Path) -> None:
    ours, theirs = terminal()
    photos = sorted((album / "people" / "00").iterdir())
    process = start("detect", "--score-threshold", SURE, *photos, home=tmp_path, stdout=theirs, stderr=theirs)
    assert process.wait(timeout=60) == 0
    said = shown(ours)
    for end in (ours, theirs):
        os.close(end)
    assert "analyzing" in said
    for photo in photos:
        (line,) = [line for line in said.splitlines() if f"{photo}: 1 face" in line]
        assert line.rpartition("\r")[2] == f"{photo}: 1 face"


# Without rights


@pytest.fixture
def read_only(album: Path, tmp_path: Path) -> Iterator[Path]:
    folder = Path(shutil.copytree(album / "gallery", tmp_path / "read_only"))
    for path in (*folder.iterdir(), folder):
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield folder
    folder.chmod(0o700)


def test_a_read_only_gallery_names_and_refuses_to_learn(album: Path, read_only: Path, tmp_path: Path) -> None:
    before = (read_only / "gallery.sqlite3").read_bytes()
    bound = bound_by_permissions()

    def run(*arguments: str | Path) -> Said:
        return finished(start(*arguments, "--gallery", read_only, home=tmp_path, preexec=bound))

    named = run("identify", "--json", album / "people" / "00" / "0.bmp")
    assert named.code == 0
    assert json.loads(named.out)["faces"][0]["name"] == "Her"
    assert run("gallery", "list").lines == ["     1  Her"]
    for change in (
        ("enroll", album / "people"),
        ("gallery", "remove", "Her"),
        ("gallery", "rename", "Her", "Him"),
    ):
        refused = run(*change)
        assert refused.code == 1
        assert refused.out == ""
        (complaint,) = refused.complaints
        assert complaint.startswith(f"facepipe: {read_only}: the gallery is read-only")
    assert (read_only / "gallery.sqlite3").read_bytes() == before


def test_folders_that_may_not_be_written_or_read(album: Path, tmp_path: Path) -> None:
    bound = bound_by_permissions()
    closed = tmp_path / "closed"
    (closed / "people").mkdir(parents=True)
    shutil.copy(album / "her.png", closed / "her.png")
    (closed / "her.png").chmod(0o000)
    (closed / "people").chmod(0o000)
    closed.chmod(0o500)
    photo = album / "her.png"
    cases: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("detect", photo, "--annotate", closed), 1, f"{closed / 'her.png'}: exists, and can't be read"),
        (("detect", photo, "--annotate", closed / "new"), 1, f"{closed / 'new'}: can't make this folder"),
        (
            ("embed", photo, "--out", closed / "v.npz"),
            1,
            f"{closed / 'v.npz'}: its folder may not be written",
        ),
        (("enroll", album / "people", "--gallery", closed / "g"), 1, "Permission denied"),
        (
            ("gallery", "export", closed / "x.zip", "--gallery", album / "gallery"),
            1,
            "x.zip: its folder may not be",
        ),
        (("detect", closed / "her.png"), 1, "no permission to read it"),
        (("enroll", closed / "people", "--gallery", tmp_path / "g"), 2, "can't read this folder"),
        (("detect", closed / "people"), 2, "no photos match this folder"),
    ]
    try:
        for arguments, code, told in cases:
            said = finished(start(*arguments, home=tmp_path, preexec=bound))
            assert (said.code, told in said.err) == (code, True), said.err
            assert "Traceback" not in said.err
    finally:
        closed.chmod(0o700)
        (closed / "people").chmod(0o700)
