"""The batches that the server was started with: how far they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from litestar import Router, get

from facepipe.batch.damage import JobBusyError
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.progress_file import read_progress
from facepipe.core.errors import FacepipeError
from facepipe.core.plain_text import text_of
from facepipe.server.keys import Scope
from facepipe.server.security import requires
from facepipe.server.services import Services
from facepipe.server.v1 import schemas


class JobReader:
    """Reads jobs, each once after a change. Only one process can have a job open, so none is kept open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[Path, tuple[tuple[int, int], schemas.Job]] = {}

    def read(self, folder: Path) -> schemas.Job:
        """Return the state of a job."""
        with self._lock:
            state = _state_of_file(folder)
            known = self._read.get(folder)
            if known is not None and known[0] == state:
                return known[1]
            job = _opened(folder)
            if job.state != "working":
                self._read[folder] = (_state_of_file(folder), job)
            return job


def _state_of_file(folder: Path) -> tuple[int, int]:
    try:
        found = os.stat(folder / JOB_FILE)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _opened(folder: Path) -> schemas.Job:
    name = text_of(folder.resolve().name)
    try:
        with Job(folder) as job:
            counts = job.counts()
    except JobBusyError:
        running = read_progress(folder)
        if running is None:
            return schemas.Job(name, "working")
        return schemas.Job(name, "working", running.total, running.done, running.failed, running.faces)
    except FacepipeError:
        return schemas.Job(name, "unreadable")
    return schemas.Job(name, "idle", counts.total, counts.done, counts.failed, counts.faces)


_READER = JobReader()


@get("/", operation_id="listJobs", guards=[requires(Scope.READ)], sync_to_thread=True)
def list_jobs(services: Services) -> schemas.Jobs:
    """Return the batches that the server was started with (`--library`)."""
    return schemas.Jobs([_READER.read(folder) for folder in services.settings.libraries])


router = Router("/v1/jobs", route_handlers=[list_jobs], tags=["jobs"])
