"""Batches as the server shows them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_helpers import facepipe
from server_helpers import running, serve_command

from facepipe.batch.damage import JobBusyError
from facepipe.batch.job import Job
from facepipe.core.errors import UsageError
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.server.settings import ServerSettings
from facepipe.server.v1.jobs import JobReader


def test_jobs_are_shown_idle_at_work_and_unreadable(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("idle", "working", "missing")]
    for folder in folders:
        Job(folder, create=True).close()
    options = [word for folder in folders for word in ("--library", folder)]
    with running(tmp_path / "g", *options, log=tmp_path / "log") as server, Job(folders[1]):
        shutil.rmtree(folders[2])
        jobs = server.client.get("/v1/jobs").json()["jobs"]
    assert [(job["name"], job["state"], job["photos"]) for job in jobs] == [
        ("idle", "idle", 0),
        ("working", "working", None),
        ("missing", "unreadable", None),
    ]
    assert str(tmp_path) not in str(jobs)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_without_a_job_is_refused_at_the_start(tmp_path: Path, is_there: bool) -> None:
    wrong = tmp_path / "wrong"
    if is_there:
        wrong.mkdir()
    command = serve_command(tmp_path / "g", "--library", wrong)
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert told.stderr.startswith(f"facepipe: {wrong}: no batch was run with this folder as --out")
    assert "`facepipe batch`" in told.stderr
    assert ("no such folder" in told.stderr) != is_there
    assert not (tmp_path / "g").exists()


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'out' is the name of two"):
        ServerSettings(tmp_path, libraries=(tmp_path / "a" / "out", tmp_path / "b" / "out"))


def test_a_job_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    reader, folder = JobReader(), tmp_path / "job"
    assert reader.read(folder).state == "unreadable"
    Job(folder, create=True).close()
    assert reader.read(folder).state == "idle"
    shutil.rmtree(folder)
    assert reader.read(folder).state == "unreadable"


def test_photos_that_wait_are_analyzed_and_paused(tmp_path: Path, astronaut: UInt8Array) -> None:
    photos, out, gallery = tmp_path / "photos", tmp_path / "out", tmp_path / "gallery"
    photos.mkdir()
    write_image(photos / "1.jpg", astronaut)
    assert facepipe("batch", photos, "--out", out, "--gallery", gallery, "--quiet").code == 0
    for number in range(2, 6):
        write_image(photos / f"{number}.jpg", astronaut[number:])
    with Job(out) as job:
        job.plan(sorted(photos.iterdir()))
    with running(gallery, "--library", out, log=tmp_path / "log") as server:
        client = server.client
        assert client.post("/v1/jobs/nothing/start").status_code == 404
        started = client.post("/v1/jobs/out/start")
        assert (started.status_code, started.json()["state"]) == (201, "working"), started.text
        assert client.post("/v1/jobs/out/start").status_code == 201
        paused = client.post("/v1/jobs/out/pause").json()
        assert (paused["state"], paused["photos"]) == ("idle", 5)
        client.post("/v1/jobs/out/start")
        deadline = time.monotonic() + 60
        while client.get("/v1/jobs").json()["jobs"][0]["done"] != 5 and time.monotonic() < deadline:
            time.sleep(0.2)
        with worked_with_when_free(out):
            refused = client.post("/v1/jobs/out/start")
            assert (refused.status_code, refused.json()["code"]) == (409, "working")
    assert len((out / "results.jsonl").read_text().splitlines()) == 5


@contextmanager
def worked_with_when_free(folder: Path) -> Iterator[None]:
    """Hold a job as soon as the server has let it go."""
    deadline = time.monotonic() + 30
    while True:
        try:
            job = Job(folder)
            break
        except JobBusyError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with job:
        yield
