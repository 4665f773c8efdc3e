"""A key from a pipe, as in `--key-file <(pass gallery)`: it can be read once, and every command does so."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from batch_helpers import NAME, enroll_her
from cli_helpers import Said, facepipe
from gallery_helpers import ENCODER, person_vectors, template
from paths import ROOT

from facepipe.core.errors import GalleryError
from facepipe.core.faces import UInt8Array
from facepipe.gallery import Gallery
from facepipe.gallery.gallery import encrypt
from facepipe.gallery.storage.encryption import KEY_FILE_VARIABLE, KEY_VARIABLE, read_key_file
from facepipe.images.reading import write_image

pytest.importorskip("cryptography", reason="needs the [encryption] extra")
pytestmark = pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")

KEY = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are quick to make, and none in the environment or remembered."""
    monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)
    monkeypatch.setattr("facepipe.gallery.storage.encryption._READ_ONCE", {})
    for variable in (KEY_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@contextmanager
def key_pipe() -> Iterator[str]:
    """The path of a pipe that gives the key once, and then nothing."""
    reading, writing = os.pipe()
    os.write(writing, KEY + b"\n")
    os.close(writing)
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)


def with_key_pipe(*arguments: str | Path) -> Said:
    with key_pipe() as pipe:
        return facepipe(*arguments, "--key-file", pipe)


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    """An encrypted gallery of one person."""
    with Gallery.open(tmp_path / "g", ENCODER, create=True, secret=KEY) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(1, 3))])
    return tmp_path / "g"


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", "Ada"],
        ["info"],
        ["verify"],
        ["repair"],
        ["rename", "Ada", "Eve"],
        ["threshold", "0.5"],
        ["decrypt"],
        ["remove", "Ada"],
    ],
)
def test_commands_on_a_gallery(encrypted: Path, command: list[str]) -> None:
    said = with_key_pipe("gallery", *command, "--gallery", encrypted)
    assert said.code == 0, said.err


def test_repairing_opens_the_gallery_three_times(encrypted: Path) -> None:
    with closing(sqlite3.connect(encrypted / "gallery.sqlite3")) as connection:
        connection.execute("UPDATE templates SET quality = 0.5 WHERE id = 1")
        connection.commit()
    said = with_key_pipe("gallery", "repair", "--gallery", encrypted)
    assert (said.code, "with 2 faces" in said.err) == (0, True), said.err


def test_merging_opens_two_galleries(encrypted: Path, tmp_path: Path) -> None:
    Gallery.open(tmp_path / "own", ENCODER, create=True, secret=KEY).close()
    said = with_key_pipe("gallery", "merge-from", encrypted, "--gallery", tmp_path / "own")
    assert (said.code, "3 new faces" in said.err) == (0, True), said.err


def test_a_batch_opens_the_gallery_and_its_job(astronaut: UInt8Array, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "her.png", astronaut)
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    enroll_her(gallery, astronaut)
    encrypt(gallery, KEY)
    for _ in range(2):
        said = with_key_pipe("batch", tmp_path / "photos", "--gallery", gallery, "--out", out)
        assert said.code == 0, said.err
    assert NAME in (out / "faces.csv").read_text()
    assert with_key_pipe("sort", out, "--to", tmp_path / "sorted").code == 0
    assert (tmp_path / "sorted" / NAME / "her.png").exists()


def test_a_variable_may_name_a_pipe_too(encrypted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with key_pipe() as pipe:
        monkeypatch.setenv(KEY_FILE_VARIABLE, pipe)
        assert facepipe("gallery", "verify", "--gallery", encrypted).code == 0
        assert facepipe("gallery", "list", "--gallery", encrypted).lines == ["     3  Ada"]


def test_the_shells_own_pipes(tmp_path: Path) -> None:
    """In a process of its own, with keys as they are."""
    (tmp_path / "key").write_bytes(KEY)
    key = f"--key-file <(cat {tmp_path / 'key'})"
    command = f"{sys.executable} -m cli gallery {{}} --gallery {tmp_path / 'g'} {key}"
    with Gallery.open(tmp_path / "g", ENCODER, create=True) as gallery:
        gallery.add("Ada", [template(v, f"ada{i}") for i, v in enumerate(person_vectors(1, 3))])
    for action in ("encrypt", "verify", "repair", "list"):
        done = subprocess.run(
            ["bash", "-c", command.format(action)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "     3  Ada\n"


def test_a_regular_file_is_read_anew_each_time(tmp_path: Path) -> None:
    for secret in (b"one", b"two"):
        (tmp_path / "key").write_bytes(secret)
        assert read_key_file(tmp_path / "key") == secret


def test_an_empty_pipe_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(GalleryError, match="a key file holds"):
        read_key_file(Path(f"/dev/fd/{reading}"))
    os.close(reading)
