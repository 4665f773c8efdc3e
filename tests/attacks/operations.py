"""Commands killed at random moments, and begun again: what they told is there, and nothing is half there.

An operation is run undisturbed once; what it leaves is what a killed one may leave, or else what was there
before. All runs are at the same path, so that results with paths in them can be compared byte by byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attacks.cases import TIME_LIMIT_S, Case
from attacks.processes import (
    Ended,
    Rehearsal,
    Work,
    as_command,
    as_real_command,
    kill_at_random,
    rehearse,
    start,
)

_KILLS = 4
_REAL_SHARE = 0.1
"""Of the kills that meet an interpreter of their own, which takes a second to begin."""
State = Any
"""What an operation works on, in a form that can be compared."""


@dataclass(frozen=True)
class Operation:
    """What is killed.

    Attributes:
        prepare: Fills the folder; called once a case.
        words: The command, run in the folder; or, as a function of the folder, calls of the library.
        state: What is in the folder; None where there is nothing.
        is_allowed: Whether a killed process may leave `found`, of the states `before` and `after`.
        ends_alike: Begun again, it comes to the same end as if never killed.
        codes: Exit codes of an undisturbed run.
        environment: Of the command.
    """

    prepare: Callable[[Case, Path], None]
    words: tuple[str, ...] | Callable[[Path], object]
    state: Callable[[Case, Path], State]
    is_allowed: Callable[[State, State, State, Ended], bool]
    ends_alike: bool = True
    codes: tuple[int, ...] = (0,)
    environment: tuple[tuple[str, str], ...] = ()

    def work(self, folder: Path, *, real: bool = False) -> Work:
        """As a process does it."""
        if callable(self.words):
            return partial(self.words, folder)
        return (as_real_command if real else as_command)(self.words, folder, dict(self.environment))


def all_or_nothing(before: State, after: State, found: State, ended: Ended) -> bool:
    """Nothing was changed, or all; all, where the command ended well."""
    return bool(found == after or (found == before and ended.was_killed))


def kill_often(operation: Operation, case: Case) -> None:
    """Kill it several times, each time from the beginning, and then on what a killed one left."""
    folder, rehearsed = _rehearsed(operation, case)
    _, after, rehearsal = rehearsed
    for _ in range(_KILLS):
        _begin(folder)
        _killed_once(operation, case, folder, rehearsed)
    if operation.ends_alike:
        _kill_on_the_way(operation, case, folder, rehearsal)
        found = operation.state(case, folder)
        case.require(found == after, f"killed and begun again: {_difference(found, after)}")


def leave_nothing(operations: Mapping[str, Operation], case: Case) -> None:
    """Kill one of the operations and begin it again: no hidden file of what was being written may be left."""
    name = case.dice.choice([name for name, each in operations.items() if each.ends_alike])
    operation = operations[name]
    folder, (_, _, rehearsal) = _rehearsed(operation, case)
    _begin(folder)
    _kill_on_the_way(operation, case, folder, rehearsal)
    left = [str(file.relative_to(folder)) for file in folder.rglob(".*")]
    left += [str(file.relative_to(folder)) for file in folder.rglob("*.new-*")]
    case.require(not left, f"{name}: left {left}")
    case.count("clean")


def _rehearsed(operation: Operation, case: Case) -> tuple[Path, tuple[State, State, Rehearsal]]:
    folder = case.folder / "work"
    folder.mkdir()
    operation.prepare(case, folder)
    before = operation.state(case, folder)
    shutil.copytree(folder, case.folder / "beginning", symlinks=True)
    ended, rehearsal = rehearse(operation.work(folder), TIME_LIMIT_S)
    case.require_plain(ended, operation.codes)
    return folder, (before, operation.state(case, folder), rehearsal)


def _begin(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("beginning"), folder, symlinks=True)


def _killed_once(
    operation: Operation, case: Case, folder: Path, rehearsed: tuple[State, State, Rehearsal]
) -> None:
    before, after, rehearsal = rehearsed
    if not callable(operation.words) and case.dice.random() < _REAL_SHARE:
        seconds = case.run(operation.work(folder, real=True)).seconds
        _begin(folder)
        ended = start(operation.work(folder, real=True)).kill_after(
            case.dice.uniform(0, seconds), TIME_LIMIT_S
        )
    else:
        ended = kill_at_random(operation.work(folder), rehearsal, case.dice, TIME_LIMIT_S)
    if not ended.was_killed:
        case.require_plain(ended, operation.codes)
    found = operation.state(case, folder)
    kept = operation.is_allowed(before, after, found, ended)
    case.require(kept, f"after {ended.out[-600:]!r} (exit code {ended.code}): {_difference(found, after)}")
    if ended.was_killed:
        case.count("done" if found == after else "undone" if found == before else "in part")


def _kill_on_the_way(operation: Operation, case: Case, folder: Path, rehearsal: Rehearsal) -> None:
    """Kill it up to three times where the one before left it, then let it end."""
    for _ in range(case.dice.randint(1, 3)):
        kill_at_random(operation.work(folder), rehearsal, case.dice, TIME_LIMIT_S)
    case.run_plainly(operation.work(folder), operation.codes)


def _difference(found: State, expected: State) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        return "; ".join(
            f"{key}: {found.get(key)!r:.300}, not {expected.get(key)!r:.300}" for key in keys[:5]
        )
    return f"{found!r:.600}, not {expected!r:.600}"
