"""Processes that are killed at some moment, or whose memory is measured.

They are forked from one that has imported everything, so that a command takes milliseconds to begin; the real
command, with an interpreter of its own, is one that replaces itself (`as_real_command`).
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, NoReturn

# What commands import late is imported here, so that forked processes begin at once.
import faiss  # noqa: F401
import lxml.etree  # noqa: F401
import onnxruntime  # noqa: F401
import pillow_heif  # noqa: F401
import scipy.spatial  # noqa: F401

from facepipe import cli
from facepipe.batch import page, results, run  # noqa: F401
from facepipe.gallery import repair  # noqa: F401
from facepipe.xmp import sidecars  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
Word = str | int | Path
Work = Callable[[], object]
"""What a process does. Its exit code is 0, that of `sys.exit`, or 1 after an exception."""
_POLL_S = 0.002


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: Exit code; minus the number of the signal that ended it.
        out: What it wrote to stdout.
        err: What it wrote to stderr.
        seconds: How long it ran.
        cpu_s: Seconds of processors that it used.
        peak_bytes: The most memory (resident) of it and all processes below it at once, where measured.
        timed_out: It had to be killed.
    """

    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    peak_bytes: int
    timed_out: bool = False

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL met it while it was running."""
        return self.code == -signal.SIGKILL


class Process:
    """A running process."""

    def __init__(self, pid: int, out: IO[bytes], err: IO[bytes]) -> None:
        self._pid, self._out, self._err, self._began = pid, out, err, time.monotonic()

    def wait(self, limit_s: float, *, measured: bool = False) -> Ended:
        """Wait for its end; kill it where that does not come in time, or where the waiting is interrupted."""
        try:
            return self._waited(limit_s, measured)
        except BaseException:
            self.kill()
            raise

    def _waited(self, limit_s: float, measured: bool) -> Ended:
        peak_bytes, timed_out = 0, False
        while True:
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                break
            if measured:
                peak_bytes = max(peak_bytes, tree_bytes(self._pid))
            if time.monotonic() - self._began > limit_s:
                timed_out = True
                self.kill()
            time.sleep(_POLL_S)
        if measured:  # What the largest process itself had at most is known exactly.
            peak_bytes = max(peak_bytes, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return Ended(
            os.waitstatus_to_exitcode(status),
            _text(self._out),
            _text(self._err),
            time.monotonic() - self._began,
            usage.ru_utime + usage.ru_stime,
            peak_bytes,
            timed_out,
        )

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self._pid, signal.SIGKILL)

    def kill_after(self, seconds: float, limit_s: float) -> Ended:
        """Kill it so long after its start, unless it has ended."""
        try:
            time.sleep(max(0.0, self._began + seconds - time.monotonic()))
        finally:
            self.kill()  # It is not waited for yet, so the number is still its own.
        return self.wait(limit_s)


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode("utf-8", "replace")


def start(work: Work) -> Process:
    """Fork a process that does `work`."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _live(work, out.fileno(), err.fileno())
    return Process(pid, out, err)


def _live(work: Work, out: int, err: int) -> NoReturn:
    code = 1
    try:
        for number, target in ((out, 1), (err, 2), (os.open(os.devnull, os.O_RDONLY), 0)):
            os.dup2(number, target)
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def as_command(words: Sequence[Word], folder: Path, environment: Mapping[str, str] | None = None) -> Work:
    """The command `facepipe WORDS` in `folder`, in the forked process."""

    def work() -> None:
        os.chdir(folder)
        os.environ.update(environment or {})
        cli.main([str(word) for word in words], prog_name="facepipe")

    return work


def as_real_command(
    words: Sequence[Word], folder: Path, environment: Mapping[str, str] | None = None
) -> Work:
    """The command `facepipe WORDS` in `folder`, in an interpreter of its own."""

    def work() -> None:
        os.chdir(folder)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        settings = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
        os.execve(sys.executable, [sys.executable, "-m", "cli", *map(str, words)], settings)

    return work


# Moments


@dataclass(frozen=True)
class Rehearsal:
    """How long some work takes undisturbed: seconds, and calls of functions in Python."""

    seconds: float
    calls: int


_CALLS = "calls of functions: "


def rehearse(work: Work, limit_s: float) -> tuple[Ended, Rehearsal]:
    """Do the work undisturbed."""
    ended = start(lambda: _counting(work, lambda _: None)).wait(limit_s)
    err, _, calls = ended.err.rpartition(_CALLS)
    if not calls.strip().isdigit():
        raise RuntimeError(f"the rehearsal failed: exit code {ended.code}, {ended.err[-2000:]}")
    told = Ended(ended.code, ended.out, err, ended.seconds, ended.cpu_s, 0, ended.timed_out)
    return told, Rehearsal(ended.seconds, int(calls))


def kill_at_random(work: Work, rehearsal: Rehearsal, dice: Random, limit_s: float) -> Ended:
    """Do the work until SIGKILL comes, at any of its calls or at any time.

    At a call the moment is the same in every repetition, as far as threads let it; by the clock it may lie
    within the system or SQLite.
    """
    if dice.random() < 0.5:
        return start(work).kill_after(dice.uniform(0, rehearsal.seconds), limit_s)
    last = int(rehearsal.calls * dice.random() ** 0.5)  # Rather late: it begins with what changes nothing.
    return start(lambda: _counting(work, lambda call: _die() if call >= last else None)).wait(limit_s)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _counting(work: Work, at: Callable[[int], None]) -> None:
    """Do the work, calling `at` with the number of every call of a function, in all threads."""
    counter = itertools.count()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            at(next(counter))

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        sys.stderr.flush()
        os.write(2, f"{_CALLS}{next(counter)}".encode())


# Memory


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and all below it; 0 where the system does not tell (it has no /proc)."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        with suppress(OSError, ValueError, IndexError):
            total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (folder / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return total
