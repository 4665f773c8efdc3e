"""Endless batches, prepared by worker processes; a resumed run gets the batches that it would have got.

torch's DataLoader would do, but for a long run it fails badly: it waits for ever for an exception that can't
be pickled, raises the death of a worker wherever the trainer happens to be, and draws from the random numbers
of the network.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Generic, NamedTuple, Protocol, TypeVar

import cv2
import torch

from facepipe.core.errors import DataError, PhotoError
from facepipe.training.engine.distributed import rank, world_size
from facepipe.training.engine.signals import leave_signals_to_parent

Batch = TypeVar("Batch")
Made = TypeVar("Made", covariant=True)

_AHEAD = 4
"""Batches that a worker prepares before they are wanted."""
_PATIENCE_S = 5.0
_SHOWN_FILES = 16
_CAUSES = {"SIGKILL": "the system may be out of memory: lower loop.workers or loop.batch_size"}


class BatchSource(Protocol[Made]):
    """Makes batch b from b alone; travels to worker processes."""

    def batch(self, number: int) -> Made:
        """Of any number from 0."""

    def files(self, number: int) -> list[str]:
        """Names of the photos of a batch, without reading them."""


class Batches(Protocol[Made]):
    """An endless stream of batches."""

    def __iter__(self) -> Iterator[Made]:
        """Itself."""

    def __next__(self) -> Made:
        """The next batch.

        Raises:
            DataError, PhotoError: It can't be made; names the photo.
        """

    def close(self) -> None:
        """End the processes that prepare batches."""


def batches_of_process(source: BatchSource[Batch], first_step: int, workers: int) -> Batches[Batch]:
    """Return the batches of this process from a step on: processes that train together take turns."""
    first = first_step * world_size() + rank()
    return endless_batches(source, first_batch=first, every=world_size(), workers=workers)


def endless_batches(
    source: BatchSource[Batch], *, first_batch: int, every: int, workers: int
) -> Batches[Batch]:
    """Batches first_batch, first_batch + every, ...: the same ones whatever the number of workers.

    Args:
        source: Makes them.
        first_batch, every: Which batches.
        workers: Processes that prepare them; 0: this one.
    """
    numbers = itertools.count(first_batch, every)
    if workers:
        return _InTurns([_Worker(source) for _ in range(workers)], numbers)
    return (_made(source, number) for number in numbers)


@contextmanager
def naming(photo: str) -> Iterator[None]:
    """Name the photo in every error of the block.

    Raises:
        DataError: Something unexpected; errors that name a photo already pass.
    """
    try:
        yield
    except (DataError, PhotoError):
        raise
    except Exception as error:
        raise DataError(f"{photo}: training on this photo failed: {_described(error)}") from error


class _InTurns(Generic[Batch]):
    """Batches of these numbers, from workers that take turns."""

    def __init__(self, workers: list[_Worker[Batch]], numbers: Iterator[int]) -> None:
        self._workers, self._numbers = workers, numbers
        self._turns = itertools.cycle(workers)
        for worker, number in zip(workers * _AHEAD, numbers, strict=False):
            worker.ask(number)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        worker = next(self._turns)
        batch = worker.answer()
        worker.ask(next(self._numbers))
        return batch

    def close(self) -> None:
        """See `Batches`."""
        for worker in self._workers:
            worker.end()


class _Worker(Generic[Batch]):
    """A process that makes the batches it is asked for, one after the other."""

    def __init__(self, source: BatchSource[Batch]) -> None:
        self._source, self._asked = source, deque[int]()
        self._pipe, far_end = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=_make_batches, args=(source, far_end, self._pipe), daemon=True
        )
        self._process.start()
        far_end.close()

    def ask(self, number: int) -> None:
        """Want this batch after the others."""
        self._asked.append(number)
        with suppress(OSError):  # it is dead: `answer` tells of it when the turn comes
            self._pipe.send(number)

    def answer(self) -> Batch:
        """Return the first of the batches asked for.

        Raises:
            DataError, PhotoError: It can't be made, or the process has died.
        """
        number = self._asked.popleft()
        try:
            while (message := self._message()).isdigit():  # it has begun with this batch
                number = int(message)
            answer = pickle.loads(message)
        except (EOFError, OSError) as error:
            raise DataError(self._death(self._last_begun(number), error)) from error
        if isinstance(answer, _Failure):
            raise answer.kind(answer.message) from _WorkerError(answer.trace)
        batch: Batch = answer
        return batch

    def end(self) -> None:
        """Kill the process, which has nothing to lose."""
        self._pipe.close()
        self._process.kill()
        self._process.join(_PATIENCE_S)

    def _message(self) -> bytes:
        while not self._pipe.poll(1):
            pass  # Signals that another thread has caught are handled between two calls.
        return self._pipe.recv_bytes()

    def _last_begun(self, number: int) -> int:
        """The batch it died of; those before are in the pipe and can't be taken from a dead process."""
        with suppress(EOFError, OSError):
            while self._pipe.poll():
                message = self._pipe.recv_bytes()
                number = int(message) if message.isdigit() else number
        return number

    def _death(self, number: int, error: Exception) -> str:
        self._process.join(_PATIENCE_S)
        code = self._process.exitcode
        doing = f"it made a batch of {_photos(self._source, number)}"
        if code is None:
            return f"a loading worker can't be heard any more ({_described(error)}) while {doing}"
        if code >= 0:
            return f"a loading worker ended with exit code {code} while {doing}"
        name = signal.Signals(-code).name
        cause = _CAUSES.get(name, "one of these photos may crash a decoder")
        return f"a loading worker was killed by {name} while {doing}; {cause}"


class _Failure(NamedTuple):
    """The failure of a worker, in types that can always be pickled."""

    kind: type[DataError | PhotoError]
    message: str
    trace: str


class _WorkerError(Exception):
    """The traceback in a worker, as the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _make_batches(source: BatchSource[Batch], pipe: Connection, parents_end: Connection) -> None:
    """Answer numbers with batches until the other end is closed, at the latest when the trainer is dead."""
    parents_end.close()
    leave_signals_to_parent()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            number = pipe.recv()
            pipe.send_bytes(b"%d" % number)  # should it die of this batch
            pipe.send_bytes(_answer(source, number))


def _answer(source: BatchSource[Batch], number: int) -> bytes:
    """Return a pickled batch or a pickled failure.

    Tensors are copied: in shared memory they would need sockets in the temporary folder, which a killed
    worker leaves behind.
    """
    try:
        return pickle.dumps(_made(source, number), pickle.HIGHEST_PROTOCOL)
    except (DataError, PhotoError) as error:
        kind = PhotoError if isinstance(error, PhotoError) else DataError
        return pickle.dumps(_Failure(kind, str(error), traceback.format_exc()))
    except Exception as error:
        message = f"a batch of {_photos(source, number)} can't be handed over: {_described(error)}"
        return pickle.dumps(_Failure(DataError, message, traceback.format_exc()))


def _made(source: BatchSource[Batch], number: int) -> Batch:
    try:
        return source.batch(number)
    except (DataError, PhotoError):
        raise
    except Exception as error:
        raise DataError(f"a batch of {_photos(source, number)} failed: {_described(error)}") from error


def _photos(source: BatchSource[Batch], number: int) -> str:
    files = source.files(number)
    more = f" and {len(files) - _SHOWN_FILES} more" if len(files) > _SHOWN_FILES else ""
    return ", ".join(files[:_SHOWN_FILES]) + more


def _described(error: Exception) -> str:
    """Kind and message in one line, also of an error that can't be printed."""
    return " ".join("".join(traceback.format_exception_only(error)).split())
