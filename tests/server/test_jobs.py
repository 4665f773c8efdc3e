"""Batches as the server shows them."""

from __future__ import annotations

import shutil
from pathlib import Path

from server_helpers import running

from facepipe.batch.job import Job
from facepipe.server.v1.jobs import JobReader


def test_jobs_are_shown_idle_at_work_and_unreadable(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("idle", "working", "missing")]
    for folder in folders[:2]:
        Job(folder, create=True).close()
    options = [word for folder in folders for word in ("--library", folder)]
    with running(tmp_path / "g", *options, log=tmp_path / "log") as server, Job(folders[1]):
        jobs = server.client.get("/v1/jobs").json()["jobs"]
    assert [(job["name"], job["state"], job["photos"]) for job in jobs] == [
        ("idle", "idle", 0),
        ("working", "working", None),
        ("missing", "unreadable", None),
    ]
    assert str(tmp_path) not in str(jobs)


def test_a_job_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    reader, folder = JobReader(), tmp_path / "job"
    assert reader.read(folder).state == "unreadable"
    Job(folder, create=True).close()
    assert reader.read(folder).state == "idle"
    shutil.rmtree(folder)
    assert reader.read(folder).state == "unreadable"
