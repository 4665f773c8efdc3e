"""A case of an attack: repeated by its seed, in a folder of its own, with a verdict."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attacks.processes import Ended, Work, start
from attacks.workshop import Workshop

TIME_LIMIT_S = 300.0
"""Longer than any command of an attack takes on a busy machine: whatever runs longer hangs."""


class BrokenPromiseError(Exception):
    """What must not happen did; the message tells what."""


@dataclass
class Case:
    """One run of an attack.

    Attributes:
        dice: Decides everything that varies; seeded by the attack and the number of the case.
        folder: Empty, and of this case alone.
        workshop: What all cases share: photos, galleries, results.
        tries: How often something was killed, damaged or read.
        found: How the tries went, by kind of outcome.
        peak_bytes: The most memory of a process tree that was measured.
    """

    dice: random.Random
    folder: Path
    workshop: Workshop
    tries: int = 0
    found: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0

    def require(self, kept: bool, broken: str) -> None:
        """Fail with the sentence `broken` unless the promise was kept."""
        if not kept:
            raise BrokenPromiseError(broken)

    def run(self, work: Work, *, measured: bool = False) -> Ended:
        """Run `work` in a process to its end, which must come in time."""
        ended = start(work).wait(TIME_LIMIT_S, measured=measured)
        self.peak_bytes = max(self.peak_bytes, ended.peak_bytes)
        self.require(not ended.timed_out, f"still running after {TIME_LIMIT_S:.0f} s: {ended.err[-300:]}")
        return ended

    def run_plainly(self, work: Work, codes: tuple[int, ...], *, measured: bool = False) -> Ended:
        """`run` a command that must end with one of the exit codes, and an error in plain words."""
        ended = self.run(work, measured=measured)
        self.require_plain(ended, codes)
        return ended

    def require_plain(self, ended: Ended, codes: tuple[int, ...]) -> None:
        """Require one of the exit codes, no traceback, and a reason where the command failed."""
        told = f"exit code {ended.code}: {ended.err[-600:]}"
        self.require(ended.code in codes and "Traceback (most recent call last)" not in ended.err, told)
        self.require(ended.code == 0 or bool(ended.err.strip()), f"{told}no reason on stderr")

    def count(self, outcome: str) -> None:
        """Count a try."""
        self.tries += 1
        self.found[outcome] += 1


@dataclass(frozen=True)
class Attack:
    """A kind of attack on a target; `run` raises `BrokenPromiseError` where a promise was broken."""

    kind: str
    target: str
    run: Callable[[Case], None]

    @property
    def name(self) -> str:
        """Names it on the command line: `kills/enroll`."""
        return f"{self.kind}/{self.target}"


@dataclass(frozen=True)
class Verdict:
    """What a case came to; `failure` is None where every promise was kept."""

    case: Case
    seconds: float
    failure: str | None


def run_case(attack: Attack, workshop: Workshop, seed: int, number: int) -> Verdict:
    """Run the case of this number; the same seed and number make the same case."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=workshop.folder))
    case = Case(random.Random(f"{seed} {attack.name} {number}"), folder, workshop)
    failure = None
    try:
        attack.run(case)
    except BrokenPromiseError as error:
        failure = str(error)
    except Exception:  # The library failed under the oracle itself: as bad, and no reason to end the night.
        failure = traceback.format_exc(limit=-4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Verdict(case, time.monotonic() - began, failure)
