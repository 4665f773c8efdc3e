"""No row of a gallery or of a job gets into the system's temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import do, files
from gallery_helpers import ENCODER, ENCODER_8D, person_vectors, template
from paths import ROOT

from facepipe.batch.job import Job
from facepipe.gallery import Gallery
from facepipe.gallery.models import CROP_BYTES_MAX
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.storage.sqlite.connections import Connection

_IN_MEMORY = 2
"""What SQLite answers for `temp_store = MEMORY`."""


class Watched(Connection):
    """A connection that notes statements which ran while temporary tables and journals may become files."""

    unsafe: list[str]

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement."""
        (where,) = super().execute("PRAGMA temp_store").fetchone()
        if where != _IN_MEMORY and not sql.startswith("PRAGMA temp_store"):
            self.unsafe.append(sql)
        return super().execute(sql, *values)


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of all connections to files that ran without `temp_store = MEMORY`."""
    found: list[str] = []
    connect = sqlite3.connect

    def watched(database: str | Path, **options: Any) -> Any:
        if database == ":memory:":
            return connect(database, **options)
        connection = connect(database, **{**options, "factory": Watched})
        assert isinstance(connection, Watched)
        connection.unsafe = found
        return connection

    monkeypatch.setattr("sqlite3.connect", watched)
    return found


def fill(folder: Path, crop: bytes | None = None) -> None:
    """Make a gallery of two people."""
    with Gallery.open(folder, ENCODER, create=True) as gallery:
        for seed, name in enumerate(["Ada", "Bob"]):
            new = [template(v, f"{name}{i}", crop) for i, v in enumerate(person_vectors(seed, 5))]
            gallery.add(name, new)


def test_a_connection_without_it_is_noticed(unsafe: list[str], tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "file")) as connection:
        connection.execute("CREATE TABLE people (name)")
    assert unsafe == ["CREATE TABLE people (name)"]


def test_every_connection_of_a_gallery_keeps_temporary_data_in_memory(
    unsafe: list[str], tmp_path: Path, v1_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "two")
    Gallery.open(v1_folder, ENCODER_8D).close()
    with Gallery.open(tmp_path / "one", ENCODER) as gallery:
        gallery.match(person_vectors(1, 1))
        gallery.backup(tmp_path / "backup")
        shutil.copytree(tmp_path / "one", tmp_path / "killed")
        gallery.merge_from(tmp_path / "two")
        gallery.merge_from(tmp_path / "killed")
        gallery.export_archive(tmp_path / "archive.zip")
        gallery.import_archive(tmp_path / "archive.zip")
        gallery.remove("Ada")
        gallery._store._rows.sql.execute("UPDATE templates SET quality = 0.5")
        gallery._store._rows.sql.commit()  # type: ignore[attr-defined]
    assert verify(tmp_path / "one")
    assert repair(tmp_path / "one").aside is not None
    monkeypatch.setattr(
        "facepipe.gallery.storage.sqlite.database.os.access", lambda path, mode: mode == os.R_OK
    )
    with Gallery.open(tmp_path / "one", ENCODER) as gallery:
        assert gallery.read_only
        gallery.people()
    assert unsafe == []


def test_nor_does_a_job(unsafe: list[str], tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    for _ in range(2):
        with Job(tmp_path / "out", create=True) as job:
            job.plan(photos)
            do(job)
    assert unsafe == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("command", [["remove", "Ada"], ["verify"], ["repair"]])
def test_the_system_sees_no_file_written_outside_of_the_folder(tmp_path: Path, command: list[str]) -> None:
    """With more data than SQLite's cache holds: less of it would not be written in any case."""
    fill(tmp_path / "one", crop=bytes(CROP_BYTES_MAX))
    if command == ["repair"]:
        with closing(sqlite3.connect(tmp_path / "one" / "gallery.sqlite3")) as connection, connection:
            connection.execute("UPDATE templates SET quality = 0.5 WHERE id = 1")
    trace = tmp_path / "trace"
    subprocess.run(
        [
            *("strace", "-f", "-qq", "-e", "trace=open,openat,creat", "-o", trace),
            *(sys.executable, "-m", "facepipe.cli", "gallery", *command, "--gallery", str(tmp_path / "one")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "temporary")},
        check=True,
        capture_output=True,
    )
    opened = re.findall(r'"([^"]*)", \S*(?:O_WRONLY|O_RDWR|O_CREAT)', trace.read_text())
    written = [path for path in opened if not path.startswith(("/dev/", "/proc/"))]
    assert any(path.startswith(str(tmp_path / "one")) for path in written)
    assert [path for path in written if not path.startswith(str(tmp_path / "one"))] == []
