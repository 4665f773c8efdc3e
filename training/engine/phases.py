"""The folder of a run in phases, with what is needed to continue it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from facepipe.core.errors import DataError, OutputError, UsageError, one_line
from facepipe.core.files import atomic_write_bytes, make_private_folder
from facepipe.training.engine.checkpoints import holds_run, load_last
from facepipe.training.engine.config import Phase, from_plain, read_configuration, to_plain
from facepipe.training.engine.distributed import is_main

Config = TypeVar("Config")
_PHASES = "phases.json"


def holds_phases(folder: Path) -> bool:
    """Return whether a folder holds a run in phases."""
    return (folder / _PHASES).is_file()


def phase_folder(folder: Path, number: int, name: str) -> Path:
    """Return the folder of a phase, `1_NAME` and so on."""
    return folder / f"{number}_{name}"


def is_finished(folder: Path) -> bool:
    """Return whether the run of a phase has done all its steps.

    Raises:
        DataError: Its checkpoints are damaged.
    """
    if not holds_run(folder):
        return False
    state = load_last(folder).state
    return int(state["step"]) >= int(state["record"]["loop"]["steps"])


def with_initial(config: Any, checkpoint: Path) -> Any:
    """Return a configuration whose network begins as in a checkpoint."""
    return replace(config, network=replace(config.network, initial=str(checkpoint)))


def begin_phases(folder: Path, phases: Sequence[Phase[Any]]) -> None:
    """Write down what is to be done, so that it can be continued; the first of several processes does.

    Raises:
        UsageError: The folder holds a run that has saved something already.
        OutputError: It can't be written.
    """
    if holds_run(folder) or any(map(holds_run, folder.glob("[0-9]*_*"))):
        raise UsageError(f"{folder}: holds a run; continue it with --resume, or choose another folder")
    if not is_main():
        return
    record = [{"name": phase.name, "config": to_plain(phase.config)} for phase in phases]
    try:
        make_private_folder(folder)
        atomic_write_bytes(folder / _PHASES, f"{json.dumps(record, indent=1)}\n".encode())
    except OSError as error:
        raise OutputError(f"{folder}: can't be written to ({error.strerror}); choose another") from error


def phases_of_run(kind: type[Config], folder: Path, overrides: Sequence[str] = ()) -> list[Phase[Config]]:
    """Read the phases that a run was begun with, for continuing it.

    Args:
        kind: Of configuration.
        folder: Of all phases.
        overrides: Settings that change in the phases that have not ended; see `read_configuration`.

    Raises:
        DataError: The file is damaged.
        UsageError: The run is another trainer's, or an override is wrong.
    """
    file = folder / _PHASES
    try:
        record = json.loads(file.read_bytes())
        found = [(str(item["name"]), dict(item["config"])) for item in record]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not the phases of a run ({one_line(error, 200)})") from error
    if not found:
        raise DataError(f"{file}: not the phases of a run (there are none)")
    try:
        phases = [Phase(name, from_plain(kind, values)) for name, values in found]
    except UsageError as error:
        raise UsageError(
            f"{folder}: this run is of another trainer or version of facepipe ({error}); begin a new one"
        ) from error
    return [
        Phase(phase.name, read_configuration(kind, values, overrides))
        if not is_finished(phase_folder(folder, number, phase.name))
        else phase
        for number, (phase, (_, values)) in enumerate(zip(phases, found, strict=True), 1)
    ]
