"""Loading workers and all the ways in which they end."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_helpers import Numbers, environment

from facepipe.core.errors import DataError, PhotoError
from facepipe.training.engine.stream import endless_batches


@contextmanager
def _stream(source: Numbers, workers: int) -> Iterator[Iterator[Tensor]]:
    """Batches 1, 2, ...; all processes are gone at the end."""
    batches = endless_batches(source, first_batch=1, every=1, workers=workers)
    with closing(batches):
        yield batches
    assert multiprocessing.active_children() == []


def bad_value() -> None:
    raise ValueError("bad\nvalue")


def unpicklable() -> None:
    class LockedError(Exception):
        def __init__(self, _first: object, _second: object) -> None:
            self.lock = threading.Lock()

    raise LockedError(1, 2)


def unprintable() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    raise SilentError


def no_memory() -> None:
    raise MemoryError


def data_error() -> None:
    class SpecialError(DataError):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"photo3.jpg: {a} {b}")

    raise SpecialError(1, 2)


def photo_error() -> None:
    raise PhotoError("photo3.jpg: cut off")


EXCEPTIONS = [
    (bad_value, DataError, r"^photo3\.jpg: .*ValueError: bad value$"),
    (unpicklable, DataError, r"^photo3\.jpg: .*LockedError"),
    (unprintable, DataError, r"^photo3\.jpg: .*SilentError"),
    (no_memory, DataError, r"^photo3\.jpg: .*MemoryError"),
    (data_error, DataError, r"^photo3\.jpg: 1 2$"),
    (photo_error, PhotoError, r"^photo3\.jpg: cut off$"),
]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(("go_wrong", "kind", "message"), EXCEPTIONS)
def test_an_exception_names_the_photo(
    workers: int, go_wrong: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with _stream(Numbers(3, go_wrong), workers) as batches:
        assert [next(batches).tolist() for _ in range(2)] == [[1, 1], [2, 2]]
        with pytest.raises(kind, match=message) as caught:
            next(batches)
    assert caught.value.__cause__ is not None or go_wrong in (data_error, photo_error)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(7)


def system_exit() -> None:
    sys.exit(4)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to die of")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("go_wrong", "message"),
    [
        (kill, "killed by SIGKILL while it made a batch of photo3.jpg; the system may be out of memory"),
        (crash, "killed by SIGSEGV while it made a batch of photo3.jpg; one of these photos may crash"),
        (leave, "ended with exit code 7 while it made a batch of photo3.jpg"),
        (system_exit, "ended with exit code 4 while it made a batch of photo3.jpg"),
    ],
)
def test_the_death_of_a_worker_names_its_photos(
    workers: int, go_wrong: Callable[[], object], message: str
) -> None:
    # It may die with the batches before, which are still in its hands.
    with _stream(Numbers(3, go_wrong), workers) as batches, pytest.raises(DataError) as caught:
        list(batches)
    assert message in str(caught.value)


class NoBatches(Numbers):
    """Its batches can't leave the worker."""

    def batch(self, number: int) -> Tensor:
        return lambda: number  # type: ignore[return-value]


def test_a_batch_that_can_not_be_pickled_is_said() -> None:
    with _stream(NoBatches(), 1) as batches, pytest.raises(DataError, match=r"photo1\.jpg can't be handed"):
        next(batches)


def sleep() -> None:
    time.sleep(1000)


def test_a_worker_that_hangs_is_killed() -> None:
    started = time.monotonic()
    with _stream(Numbers(2, sleep), 1) as batches:
        next(batches)
    assert time.monotonic() - started < 10


def test_loading_draws_no_random_numbers_of_the_network() -> None:
    before = torch.get_rng_state()
    with _stream(Numbers(), 2) as batches:
        next(batches)
    assert torch.equal(torch.get_rng_state(), before)


_ORPHANS = """
import multiprocessing, os, signal
from training_helpers import Numbers
from facepipe.training.engine.stream import endless_batches
batches = endless_batches(Numbers(), first_batch=0, every=1, workers=3)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_do_not_outlive_a_trainer_that_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ORPHANS], stdout=subprocess.PIPE, text=True, env=environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    workers = done.stdout.split()
    assert len(workers) == 3
    until = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(_alive, workers))


def _alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
