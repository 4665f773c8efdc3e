"""The batches that the server was started with: how far they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from litestar import Router, get, post

from facepipe.batch.damage import JobBusyError
from facepipe.batch.job import Job
from facepipe.batch.job_file import JOB_FILE
from facepipe.batch.progress_file import read_progress
from facepipe.core.errors import FacepipeError
from facepipe.core.plain_text import text_of
from facepipe.server.errors import RefusedError, not_found
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
    name = _name_of(folder)
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


@post("/{name:str}/start", operation_id="startJob", guards=[requires(Scope.MANAGE)], sync_to_thread=True)
def start_job(services: Services, name: str) -> schemas.Job:
    """Analyze the photos that an interrupted batch has left, with its weights and options."""
    folder = _folder_of(services, name)
    try:
        services.job_runs.start(folder)
    except JobBusyError as error:
        raise RefusedError(409, "working", f"another process works with {name}") from error
    except FacepipeError as error:
        reason = text_of(str(error)).replace(text_of(str(folder)), name)
        raise RefusedError(409, "job", reason) from error
    return _shown(services, folder)


@post("/{name:str}/pause", operation_id="pauseJob", guards=[requires(Scope.MANAGE)], sync_to_thread=True)
def pause_job(services: Services, name: str) -> schemas.Job:
    """End that; what was found is kept, and photos that are under way are analyzed again later."""
    folder = _folder_of(services, name)
    services.job_runs.pause(folder)
    return _shown(services, folder)


def _folder_of(services: Services, name: str) -> Path:
    for folder in services.settings.libraries:
        if _name_of(folder) == name:
            return folder
    raise not_found(f"there is no job {name!r}: see GET /v1/jobs")


def _shown(services: Services, folder: Path) -> schemas.Job:
    counts = services.job_runs.counts(folder)
    if counts is None:
        return _READER.read(folder)
    total = counts.waiting + counts.done + counts.failed
    return schemas.Job(_name_of(folder), "working", total, counts.done, counts.failed)


def _name_of(folder: Path) -> str:
    return text_of(folder.resolve().name)


@get("/", operation_id="listJobs", guards=[requires(Scope.READ)], sync_to_thread=True)
def list_jobs(services: Services) -> schemas.Jobs:
    """Return the batches that the server was started with (`--library`)."""
    return schemas.Jobs([_shown(services, folder) for folder in services.settings.libraries])


router = Router("/v1/jobs", route_handlers=[list_jobs, start_job, pause_job], tags=["jobs"])
