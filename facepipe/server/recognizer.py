"""Photos of several requests go through detector and encoder together, from one bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from facepipe.core.errors import FacepipeError
from facepipe.core.faces import Faces, UInt8Array
from facepipe.core.processors import compute_threads
from facepipe.images.decoding import NeededScale, ReducedPhoto
from facepipe.images.decoding_memory import MemoryBusyError, PhotoMemory, allowed_bytes
from facepipe.images.reading import read_reduced
from facepipe.pipeline import FacePipeline
from facepipe.server.errors import RETRY_AFTER_S, RefusedError
from facepipe.server.metrics import BATCH_PHOTOS, FACES, QUEUED_PHOTOS, REFUSED
from facepipe.server.photo_tasks import AnalyzedPhoto, Finish, PhotoTask
from facepipe.server.settings import Limits

_PHOTOS_AT_ONCE = 4
"""Photos that a thread takes together, at most."""
_PIXELS_AT_ONCE = 600_000
"""Of the detector's input in one call, as in a batch: larger photos gain nothing from company."""


@dataclass(slots=True, eq=False)
class _Job:
    """A photo in the queue, then its pixels and faces on their way through the stages."""

    data: bytes
    task: PhotoTask
    memory: PhotoMemory
    future: Future[AnalyzedPhoto] = field(default_factory=Future)
    photo: ReducedPhoto | None = None
    size_wh: tuple[int, int] = (0, 0)
    faces: Faces = field(default_factory=Faces.empty)
    scale: float = 1.0

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.drop_photo()
        self.future.set_exception(error)

    def drop_photo(self) -> None:
        """Give back the memory of the pixels."""
        self.photo = None
        self.memory.release()


class Recognizer:
    """Analyzes photos on threads of its own. Each takes several photos where several wait.

    The photos' memory is counted (`PhotoMemory`): a thread waits for some only while it holds none, so that
    threads never wait for each other.

    Args:
        pipeline: Detector and encoder.
        limits: Of the queue, the time, the pixels and the faces of a photo.
        threads: None: as many as compute at once.
    """

    def __init__(self, pipeline: FacePipeline, limits: Limits, threads: int | None = None) -> None:
        self._detector, self._encoder, self._limits = pipeline.detector, pipeline.encoder, limits
        self._queue: deque[_Job] = deque()
        self._change, self._closing = threading.Condition(), False
        count = threads or compute_threads()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    async def analyze(self, data: bytes, task: PhotoTask) -> AnalyzedPhoto:
        """Analyze the bytes of a photo file.

        Raises:
            PhotoError: It can't be read, or has too many pixels.
            RefusedError: The queue is full, it took too long, or there are too many faces.
        """
        future = self._submit(data, task)
        try:
            async with asyncio.timeout(self._limits.work_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise _busy("slow", f"not analyzed within {self._limits.work_s:g} s: try again") from error

    def close(self) -> None:
        """End the threads; photos that wait are analyzed before."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _submit(self, data: bytes, task: PhotoTask) -> Future[AnalyzedPhoto]:
        job = _Job(data, task, PhotoMemory("photo", allowed_bytes(self._limits.max_pixels)))
        with self._change:
            if len(self._queue) >= self._limits.queue:
                raise _busy("queue_full", f"{len(self._queue)} photos wait already: try again")
            self._queue.append(job)
            QUEUED_PHOTOS.set(len(self._queue))
            self._change.notify()
        return job.future

    # In the threads

    def _work(self) -> None:
        while taken := self._next_jobs():
            jobs = list(self._opened(taken))
            try:
                self._analyze(jobs)
            except Exception as error:
                for job in jobs:
                    if not job.future.done():
                        job.fail(error)

    def _next_jobs(self) -> list[_Job]:
        """Wait for photos and take this thread's share of them; none: it is time to end."""
        with self._change:
            while not self._queue and not self._closing:
                self._change.wait()
            share = -(-len(self._queue) // len(self._threads))
            taken = [self._queue.popleft() for _ in range(min(share, _PHOTOS_AT_ONCE))]
            QUEUED_PHOTOS.set(len(self._queue))
        return taken

    def _analyze(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        BATCH_PHOTOS.observe(len(jobs))
        self._detect(jobs)
        jobs.sort(key=lambda job: job.photo is None)  # read again when no other photo is held here
        self._encode([(job, *found) for job in jobs if (found := self._cut(job))])

    def _encode(self, cut: Sequence[tuple[_Job, UInt8Array, Finish]]) -> None:
        """Encode the faces of several photos together, which are done then."""
        if not cut:
            return
        embeddings = self._encoder.encode(np.concatenate([crops for _, crops, _ in cut]))
        ends = np.cumsum([len(crops) for _, crops, _ in cut])
        for (job, _, finish), own in zip(cut, np.split(embeddings, ends[:-1]), strict=True):
            job.future.set_result(finish(own))

    def _opened(self, taken: list[_Job]) -> Iterator[_Job]:
        """Read the photos; those for which there is no memory now go back into the queue."""
        holds_none, detected = True, self._detector.options.scale_of
        for at, job in enumerate(taken):
            job.memory.waits = holds_none
            if job.future.running() or job.future.set_running_or_notify_cancel():
                try:
                    job.photo = self._read(job, detected if job.task.may_reduce else None)
                except MemoryBusyError:
                    return self._put_back(taken[at:])
                except Exception as error:
                    job.fail(error)
                else:
                    holds_none = False
                    yield job
        return None

    def _read(self, job: _Job, scale: NeededScale | None) -> ReducedPhoto:
        return read_reduced(job.data, scale, max_pixels=self._limits.max_pixels, memory=job.memory)

    def _put_back(self, jobs: list[_Job]) -> None:
        with self._change:
            self._queue.extendleft(reversed(jobs))
            QUEUED_PHOTOS.set(len(self._queue))
            self._change.notify()

    def _detect(self, jobs: list[_Job]) -> None:
        for group in self._groups(jobs):
            photos = [job.photo for job in group if job.photo is not None]
            found = self._detector.detect_batch(
                [photo.rgb for photo in photos], [photo.full_size_wh for photo in photos]
            )
            for job, photo, faces in zip(group, photos, found, strict=True):
                FACES.inc(len(faces))
                job.faces, job.size_wh = faces, photo.full_size_wh
                job.scale = job.task.needed_scale(faces, self._encoder)
                if job.scale * photo.reduction > 1:
                    job.drop_photo()  # it is read again with more pixels

    def _groups(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Photos of equal input size, as many as gain from going together."""
        by_size: defaultdict[tuple[int, int], list[_Job]] = defaultdict(list)
        for job in jobs:
            assert job.photo is not None
            by_size[self._detector.input_size_wh(job.photo.rgb)].append(job)
        for (width, height), same in by_size.items():
            count = max(1, _PIXELS_AT_ONCE // (width * height))
            yield from (same[at : at + count] for at in range(0, len(same), count))

    def _cut(self, job: _Job) -> tuple[UInt8Array, Finish] | None:
        """Cut out the faces and let the pixels go; None: the photo failed."""
        try:
            self._require_few(job.faces)
            scale = self._detector.options.scale_of(job.size_wh)
            if job.photo is None:
                job.memory.waits = True
                job.photo = self._read(job, lambda _: job.scale)
            return job.task.cut(job.photo, job.faces, scale, self._encoder)
        except FacepipeError as error:
            job.fail(error)
            return None
        finally:
            job.drop_photo()

    def _require_few(self, faces: Faces) -> None:
        if len(faces) > self._limits.max_faces:
            message = f"{len(faces)} faces, more than the {self._limits.max_faces} allowed: send parts of it"
            raise RefusedError(422, "too_many_faces", message)


def _busy(code: str, message: str) -> RefusedError:
    REFUSED.labels(code).inc()
    return RefusedError(429, code, message, RETRY_AFTER_S)
