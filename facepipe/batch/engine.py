"""All cores on many photos: of the stages that have work, the one nearest the end goes first."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from facepipe.batch.analysis import PhotoAnalyzer
from facepipe.batch.failures import ONE_PHOTO_FAILS, failed_photo, require_lack_of_memory
from facepipe.batch.models import FailedPhoto, OpenedPhoto, PhotoAnalysis, PhotoTask
from facepipe.core.processors import asked_threads, granted_processors
from facepipe.images.decoding_memory import MemoryBusyError, PhotoMemory

Outcome = PhotoAnalysis | FailedPhoto
"""What becomes of a task."""


class PhotoEngine(Protocol):
    """Analyzes photos, here or elsewhere.

    Attributes:
        seconds: Of all threads together, by stage, and under "wait" without anything to do.
    """

    seconds: defaultdict[str, float]

    def outcomes(self) -> Generator[Outcome]:
        """One outcome of each task, as they come, in no order. Leaving the loop stops the work."""


_POLL_S = 0.2
"""How often the consumer leaves its queue, so that Ctrl-C is noticed."""
_OUTCOMES = 256
"""Outcomes that may wait for the consumer."""
_STOP_WAIT_S = 1.5
"""How long a stop waits for calls that are running; what they would have given is done again."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the work is spread; the results do not depend on it.

    Attributes:
        workers: Threads; None: `$FACEPIPE_THREADS`, else one a processor that this process is granted, and
            one for the time that others wait for the disk.
        detector_batch: Photos of equal size in a call of the detector, at most.
        detector_batch_pixels: And so many pixels at most: larger photos gain nothing from company, and
            need memory.
        encoder_batch: Faces that are encoded together, of whatever photos.
        held_pixels: Photos are read while those waiting for the detector have fewer pixels: memory is flat.
    """

    workers: int | None = None
    detector_batch: int = 4
    detector_batch_pixels: int = 600_000
    encoder_batch: int = 16
    held_pixels: int = 40_000_000

    @property
    def threads(self) -> int:
        """How many threads work."""
        return self.workers or asked_threads() or granted_processors() + 1


_Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _PutOff:
    """A step that waits for memory; its photo has none."""

    memory: PhotoMemory
    need_bytes: int
    step: _Step


class Engine:
    """Analyzes photos with a pool of threads. One for one run.

    Each thread takes the step that is nearest to the end of the way: full batches of faces to the encoder,
    full batches of photos to the detector, then files to be read, and batches that are not full only where
    nothing else is to be done. So no thread waits while there is work, and few photos are held at a time.
    A photo for which the others leave too little memory is put off; it is the next one to be read.

    Args:
        analyzer: The stages.
        tasks: What to analyze; read as needed.
        options: See `EngineOptions`.
        stays_open: More tasks will come by `add`: the work ends where the loop over its outcomes is left.

    Attributes:
        seconds: Of all threads together, by stage, and under "wait" without anything to do.
    """

    def __init__(
        self,
        analyzer: PhotoAnalyzer,
        tasks: Iterable[PhotoTask],
        options: EngineOptions | None = None,
        *,
        stays_open: bool = False,
    ) -> None:
        self._analyzer, self._tasks, self._options = analyzer, iter(tasks), options or EngineOptions()
        self._stays_open, self._added = stays_open, deque[PhotoTask]()
        self._workers = self._options.threads
        self._change = threading.Condition()
        self._outcomes: queue.Queue[Outcome | BaseException | None] = queue.Queue(_OUTCOMES)
        self._to_detect: defaultdict[tuple[int, int], deque[OpenedPhoto]] = defaultdict(deque)
        self._to_encode: deque[PhotoAnalysis] = deque()
        self._put_off: deque[_PutOff] = deque()
        self._held_photos = self._held_pixels = 0
        self._busy = 0
        self._tasks_left, self._stopping = True, False
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def outcomes(self) -> Generator[Outcome]:
        """Outcomes as they come, in no order. Leaving the loop stops the work.

        Raises:
            Exception: What a stage raised that is no photo's fault.
        """
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            yield from self._drain(len(threads))
        finally:
            self._stop()
            deadline = time.monotonic() + _STOP_WAIT_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def add(self, tasks: Iterable[PhotoTask]) -> None:
        """Take more tasks. Any thread may call it."""
        with self._change:
            self._added.extend(tasks)
            self._tasks_left = True
            self._change.notify_all()

    def _drain(self, running: int) -> Iterator[Outcome]:
        while running:
            try:
                outcome = self._outcomes.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                running -= 1
            else:
                yield outcome

    def _stop(self) -> None:
        with self._change:
            self._stopping = True
            self._change.notify_all()

    # In the threads

    def _emit(self, outcome: Outcome | BaseException | None) -> None:
        while True:
            try:
                return self._outcomes.put(outcome, timeout=_POLL_S)
            except queue.Full:
                if self._stopping:
                    return None

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._change:
                self.seconds[stage] += time.perf_counter() - start

    def _work(self) -> None:
        try:
            while (step := self._next_step()) is not None:
                try:
                    step()
                finally:
                    with self._change:
                        self._busy -= 1
                        self._change.notify_all()
        except BaseException as error:  # for the consumer to raise
            self._emit(error)
        self._emit(None)

    def _next_step(self) -> _Step | None:
        """Wait for something to do; None: all is done, or it is time to stop."""
        start = time.perf_counter()
        with self._change:
            while not self._stopping:
                step = self._choose_step()
                if step is not None:
                    self._busy += 1
                    self.seconds["wait"] += time.perf_counter() - start
                    return step
                if not self._busy and not self._stays_open:
                    return None
                self._change.wait()
        return None

    def _choose_step(self) -> _Step | None:
        return (
            self._next_encoding(full_only=True)
            or self._next_detection(full_only=True)
            or self._next_put_off()
            or self._next_reading()
            or self._next_detection(full_only=False)
            or self._next_encoding(full_only=False)
        )

    def _next_put_off(self) -> _Step | None:
        """The step put off for lack of memory. A photo that is alone waits for those of other engines."""
        if not self._put_off:
            return None
        put = self._put_off[0]
        if self._held_photos and not put.memory.has_room(put.need_bytes):
            return None
        put.memory.waits = not self._held_photos
        self._held_photos += 1
        return self._put_off.popleft().step

    def _next_reading(self) -> _Step | None:
        if self._put_off or not self._tasks_left or self._held_pixels >= self._options.held_pixels:
            return None
        task = self._added.popleft() if self._added else next(self._tasks, None)
        if task is None:
            self._tasks_left = False
            return None
        memory = self._analyzer.memory(task.path)
        memory.waits = False
        self._held_photos += 1
        return lambda: self._read(task, memory)

    def _read(self, task: PhotoTask, memory: PhotoMemory) -> None:
        left: _PutOff | FailedPhoto
        try:
            with self._timed("read"):
                opened = self._analyzer.open(task, memory)
                size_wh = self._analyzer.input_size_wh(opened)
        except MemoryBusyError as error:
            left = _PutOff(memory, error.need_bytes, lambda: self._read(task, memory))
        except ONE_PHOTO_FAILS as error:
            left = failed_photo(task, error)
        else:
            with self._change:
                self._held_pixels += _pixels(opened)
                self._to_detect[size_wh].append(opened)
            return
        self._release(memory, left)  # here: what the error held of the photo is gone

    def _release(self, memory: PhotoMemory, left: _PutOff | Outcome) -> None:
        """Give a photo's memory to others, its pixels being gone, and pass on what is left of it."""
        with self._change:
            memory.release()
            self._held_photos -= 1
            if isinstance(left, _PutOff):
                self._put_off.append(left)
        if isinstance(left, FailedPhoto):
            self._emit(left)
        if isinstance(left, PhotoAnalysis):
            self._pass_on(left)

    def _next_detection(self, full_only: bool) -> _Step | None:
        sizes = [size for size, group in self._to_detect.items() if group]
        size_wh = max(sizes, key=lambda size: len(self._to_detect[size]) / self._batch_of(size), default=None)
        if size_wh is None:
            return None
        waiting, max_count = self._to_detect[size_wh], self._batch_of(size_wh)
        if full_only and len(waiting) < max_count:
            return None
        group = [waiting.popleft() for _ in range(min(max_count, len(waiting)))]
        if not waiting:
            del self._to_detect[size_wh]
        return lambda: self._detect(group)

    def _batch_of(self, size_wh: tuple[int, int]) -> int:
        fitting = self._options.detector_batch_pixels // (size_wh[0] * size_wh[1])
        return max(1, min(self._options.detector_batch, fitting))

    def _detect(self, group: list[OpenedPhoto]) -> None:
        try:
            with self._timed("detect"):
                found = self._analyzer.detect(group)
        except Exception as error:
            require_lack_of_memory(error)
            for opened in group:
                self._release_pixels(opened.memory, _pixels(opened), failed_photo(opened.task, error))
            return
        while group:
            memory, pixels = group[0].memory, _pixels(group[0])
            self._release_pixels(memory, pixels, self._crop(group.pop(0), found.pop(0)))

    def _release_pixels(self, memory: PhotoMemory, pixels: int, left: _PutOff | Outcome) -> None:
        with self._change:
            self._held_pixels -= pixels
        self._release(memory, left)

    def _crop(self, opened: OpenedPhoto, analysis: PhotoAnalysis) -> _PutOff | Outcome:
        crop, memory = self._analyzer.crop, opened.memory
        return self._cropped(analysis, memory, lambda: crop(analysis, opened.photo, memory))

    def _crop_again(self, analysis: PhotoAnalysis, memory: PhotoMemory) -> None:
        crop = self._analyzer.crop_again
        self._release(memory, self._cropped(analysis, memory, lambda: crop(analysis, memory)))

    def _cropped(
        self, analysis: PhotoAnalysis, memory: PhotoMemory, crop: Callable[[], PhotoAnalysis]
    ) -> _PutOff | Outcome:
        try:
            with self._timed("crop"):
                return crop()
        except MemoryBusyError as error:
            return _PutOff(memory, error.need_bytes, lambda: self._crop_again(analysis, memory))
        except ONE_PHOTO_FAILS as error:
            return failed_photo(analysis.task, error)

    def _pass_on(self, cropped: PhotoAnalysis) -> None:
        if len(cropped.crops):
            with self._change:
                self._to_encode.append(cropped)
        else:
            self._encode([cropped])

    def _next_encoding(self, full_only: bool) -> _Step | None:
        max_crops = self._options.encoder_batch
        if not self._to_encode or (full_only and _crop_count(self._to_encode) < max_crops):
            return None
        group: list[PhotoAnalysis] = []
        while self._to_encode and _crop_count(group) < max_crops:
            group.append(self._to_encode.popleft())
        return lambda: self._encode(group)

    def _encode(self, group: list[PhotoAnalysis]) -> None:
        """Encode the faces of several photos together, which are done then."""
        try:
            with self._timed("encode"):
                encoded = self._analyzer.encode(group)
        except Exception as error:
            require_lack_of_memory(error)
            for analysis in group:
                self._emit(failed_photo(analysis.task, error))
            return
        for analysis in encoded:
            self._emit(analysis)


def _crop_count(group: Iterable[PhotoAnalysis]) -> int:
    return sum(len(analysis.crops) for analysis in group)


def _pixels(opened: OpenedPhoto) -> int:
    height, width = opened.photo.rgb.shape[:2]
    return int(height * width)
