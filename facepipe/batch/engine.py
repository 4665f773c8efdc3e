"""All cores on many photos: whatever stage has work, the one nearest the end goes first."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from facepipe.batch.analysis import Chosen, Opened, PhotoAnalyzer
from facepipe.batch.models import Outcome, PhotoAnalysis, Task
from facepipe.core.errors import LandmarkError, PhotoError
from facepipe.core.faces import Faces
from facepipe.core.processors import asked_threads, granted_processors
from facepipe.images.decoding_memory import MemoryBusyError, PhotoMemory

_POLL_S = 0.2
"""How often the consumer looks up from its queue, so that Ctrl-C is heard."""
_OUTCOMES = 256
"""Outcomes that may wait for the consumer."""
_ONE_PHOTO_FAILS = (PhotoError, LandmarkError, MemoryError, OSError)
"""While a photo is opened or its faces are cut: others may still go well."""
_PROBE_BYTES, _PROBE_FILES = 256 << 20, 4
"""About what decoding a large photo takes."""
_STOP_WAIT_S = 1.5
"""How long a stop waits for calls that are running; what they would have given is looked at again."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the work is spread; the results do not depend on it.

    Attributes:
        workers: Threads; None: `$FACEPIPE_THREADS`, else one a processor that this process is granted, and
            one for the time that others wait for the disk.
        detector_batch: Photos of equal size in a call of the detector, at most.
        detector_batch_pixels: And so many pixels at most: larger photos gain nothing from company, and
            need memory.
        encoder_batch: Faces in a call of the encoder, of whatever photos.
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
class _Waiting:
    """A photo between two stages."""

    task: Task
    opened: Opened


@dataclass(frozen=True, slots=True)
class _Looked:
    """A photo whose faces were found, without its pixels."""

    task: Task
    sha256: str
    size_wh: tuple[int, int]
    memory: PhotoMemory
    faces: Faces


@dataclass(frozen=True, slots=True)
class _Put:
    """A step that waits for memory; its photo has none."""

    memory: PhotoMemory
    need_bytes: int
    step: _Step


@dataclass(frozen=True, slots=True)
class _Cropped:
    """A photo whose faces wait for the encoder."""

    task: Task
    sha256: str
    size_wh: tuple[int, int]
    chosen: Chosen


class Engine:
    """Looks at photos with a pool of threads. One for one run.

    Each thread takes the step that is nearest to the end of the way: full batches of faces to the encoder,
    full batches of photos to the detector, then files to be read, and batches that are not full only where
    nothing else is to be done. So no thread waits while there is work, and few photos are held at a time.
    A photo for which the others leave too little memory is put off; it is the next one to be read.

    Args:
        looker: The stages.
        tasks: What to look at; read as needed.
        options: See `EngineOptions`.

    Attributes:
        seconds: Of all threads together, by stage, and under "wait" without anything to do.
    """

    def __init__(
        self, looker: PhotoAnalyzer, tasks: Iterable[Task], options: EngineOptions | None = None
    ) -> None:
        self._looker, self._tasks, self._options = looker, iter(tasks), options or EngineOptions()
        self._workers = self._options.threads
        self._change = threading.Condition()
        self._outcomes: queue.Queue[Outcome | BaseException | None] = queue.Queue(_OUTCOMES)
        self._to_detect: defaultdict[tuple[int, int], deque[_Waiting]] = defaultdict(deque)
        self._to_encode: deque[_Cropped] = deque()
        self._put_off: deque[_Put] = deque()
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

    def _emit(self, what: Outcome | BaseException | None) -> None:
        while True:
            try:
                return self._outcomes.put(what, timeout=_POLL_S)
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
                if not self._busy:
                    return None
                self._change.wait()
        return None

    def _choose_step(self) -> _Step | None:
        return (
            self._encoding(full_only=True)
            or self._detecting(full_only=True)
            or self._going_on()
            or self._reading()
            or self._detecting(full_only=False)
            or self._encoding(full_only=False)
        )

    def _going_on(self) -> _Step | None:
        """What was put off for want of memory. A photo that is alone waits for those of other engines."""
        if not self._put_off:
            return None
        put = self._put_off[0]
        if self._held_photos and not put.memory.has_room(put.need_bytes):
            return None
        put.memory.waits = not self._held_photos
        self._held_photos += 1
        return self._put_off.popleft().step

    def _reading(self) -> _Step | None:
        if self._put_off or not self._tasks_left or self._held_pixels >= self._options.held_pixels:
            return None
        task = next(self._tasks, None)
        if task is None:
            self._tasks_left = False
            return None
        memory = self._looker.memory(task.path)
        memory.waits = False
        self._held_photos += 1
        return lambda: self._read(task, memory)

    def _read(self, task: Task, memory: PhotoMemory) -> None:
        what: _Put | Outcome
        try:
            with self._timed("read"):
                opened = self._looker.open(task.path, memory)
                size_wh = self._looker.input_size_wh(opened)
        except MemoryBusyError as error:
            what = _Put(memory, error.need_bytes, lambda: self._read(task, memory))
        except _ONE_PHOTO_FAILS as error:
            what = _failed(task, error)
        else:
            with self._change:
                self._held_pixels += _pixels(opened)
                self._to_detect[size_wh].append(_Waiting(task, opened))
            return
        self._let_go(memory, what)  # here: what the error held of the photo is gone

    def _let_go(self, memory: PhotoMemory, what: _Put | Outcome | _Cropped) -> None:
        """Give a photo's memory to others, its pixels being gone, and pass on what is left of it."""
        with self._change:
            memory.release()
            self._held_photos -= 1
            if isinstance(what, _Put):
                self._put_off.append(what)
        if isinstance(what, Outcome):
            self._emit(what)
        if isinstance(what, _Cropped):
            self._pass_on(what)

    def _detecting(self, full_only: bool) -> _Step | None:
        sizes = [size for size, group in self._to_detect.items() if group]
        size_wh = max(sizes, key=lambda size: len(self._to_detect[size]) / self._batch_of(size), default=None)
        if size_wh is None:
            return None
        waiting, most = self._to_detect[size_wh], self._batch_of(size_wh)
        if full_only and len(waiting) < most:
            return None
        group = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        if not waiting:
            del self._to_detect[size_wh]
        return lambda: self._look(group)

    def _batch_of(self, size_wh: tuple[int, int]) -> int:
        fitting = self._options.detector_batch_pixels // (size_wh[0] * size_wh[1])
        return max(1, min(self._options.detector_batch, fitting))

    def _look(self, group: list[_Waiting]) -> None:
        try:
            with self._timed("detect"):
                found = self._looker.detect([waiting.opened for waiting in group])
        except Exception as error:
            _require_want_of_memory(error)
            for waiting in group:
                memory, pixels = waiting.opened.memory, _pixels(waiting.opened)
                self._let_go_of_pixels(memory, pixels, _failed(waiting.task, error))
            return
        while group:
            memory, pixels = group[0].opened.memory, _pixels(group[0].opened)
            self._let_go_of_pixels(memory, pixels, self._cut(group.pop(0), found.pop(0)))

    def _let_go_of_pixels(self, memory: PhotoMemory, pixels: int, what: _Put | Outcome | _Cropped) -> None:
        with self._change:
            self._held_pixels -= pixels
        self._let_go(memory, what)

    def _cut(self, waiting: _Waiting, faces: Faces) -> _Put | Outcome | _Cropped:
        opened = waiting.opened
        photo = _Looked(waiting.task, opened.sha256, opened.photo.full_size_wh, opened.memory, faces)
        return self._chosen(photo, lambda: self._looker.choose(photo.task.path, opened, faces))

    def _cut_again(self, photo: _Looked) -> None:
        choose = self._looker.choose_again
        what = self._chosen(photo, lambda: choose(photo.task.path, photo.memory, photo.faces))
        self._let_go(photo.memory, what)

    def _chosen(self, photo: _Looked, choose: Callable[[], Chosen]) -> _Put | Outcome | _Cropped:
        try:
            with self._timed("crop"):
                return _Cropped(photo.task, photo.sha256, photo.size_wh, choose())
        except MemoryBusyError as error:
            return _Put(photo.memory, error.need_bytes, lambda: self._cut_again(photo))
        except _ONE_PHOTO_FAILS as error:
            return _failed(photo.task, error)

    def _pass_on(self, cropped: _Cropped) -> None:
        if len(cropped.chosen.crops):
            with self._change:
                self._to_encode.append(cropped)
        else:
            self._finish([cropped])

    def _encoding(self, full_only: bool) -> _Step | None:
        most = self._options.encoder_batch
        if not self._to_encode or (full_only and self._crops_waiting() < most):
            return None
        group: list[_Cropped] = []
        while self._to_encode and sum(len(cropped.chosen.crops) for cropped in group) < most:
            group.append(self._to_encode.popleft())
        return lambda: self._finish(group)

    def _crops_waiting(self) -> int:
        return sum(len(cropped.chosen.crops) for cropped in self._to_encode)

    def _finish(self, group: list[_Cropped]) -> None:
        """Encode the faces of several photos together, and let the photos go."""
        crops = np.concatenate([cropped.chosen.crops for cropped in group])
        try:
            with self._timed("encode"):
                vectors = iter(self._looker.encode(crops))
        except Exception as error:
            _require_want_of_memory(error)
            for cropped in group:
                self._emit(_failed(cropped.task, error))
            return
        for cropped in group:
            chosen = cropped.chosen
            embeddings = np.full((len(chosen.faces), self._looker.dimensions), np.nan, np.float32)
            for row, reason in enumerate(chosen.reasons):
                if reason is None:
                    embeddings[row] = next(vectors)
            faces = chosen.faces.with_embeddings(embeddings)
            look = PhotoAnalysis(cropped.sha256, cropped.size_wh, faces, chosen.reasons, chosen.pictures)
            self._emit(Outcome(cropped.task, look))


_OF_MEMORY = re.compile("out of memory|insufficient memory|allocat|too many open files", re.IGNORECASE)
"""As it stands in errors of decoders and networks whose class means anything: OSError, RuntimeError."""


def _may_pass(error: BaseException) -> bool:
    """Whether the machine is at fault (disk, permissions, memory, a library that lacks), not the photo."""
    return any(map(_is_of_the_machine, _chain(error)))


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:  # decoders raise OSError too, without a number
        return True
    return isinstance(error, ImportError) or _is_want_of_memory(error)


def _is_want_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, PhotoError) and bool(_OF_MEMORY.search(str(error)))


def _require_want_of_memory(error: Exception) -> None:
    """Raise an error of a network again, unless it lacked memory: then its photos fail, and no others."""
    if not any(map(_is_want_of_memory, _chain(error))):
        raise error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while they were handled."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        next_one = waiting.pop()
        if next_one is not None and id(next_one) not in seen:
            seen.add(id(next_one))
            yield next_one
            waiting += [next_one.__cause__, next_one.__context__]


def _failed(task: Task, error: Exception) -> Outcome:
    """How a task has ended that met an error of `_ONE_PHOTO_FAILS`."""
    told = str(error) if isinstance(error, PhotoError) else f"{task.path}: {_in_words(error)}"
    return Outcome(task, error=told, passing=_may_pass(error) or machine_is_short())


def machine_is_short() -> bool:
    """Whether memory or file descriptors can't be had: decoders then find photos broken that are not."""
    try:
        np.empty(
            _PROBE_BYTES, np.uint8
        )  # nothing is written there: only whether there is room is of interest
        with ExitStack() as opened:
            for _ in range(_PROBE_FILES):
                opened.enter_context(open(os.devnull, "rb"))
    except (MemoryError, OSError):
        return True
    return False


def _in_words(error: Exception) -> str:
    match error:
        case MemoryError():
            return "not enough memory to look at it; the next run tries again"
        case OSError(errno=int()):
            return f"{error.strerror}; the next run tries again"
        case _:
            return str(error)


def _pixels(opened: Opened) -> int:
    height, width = opened.photo.rgb.shape[:2]
    return int(height * width)
