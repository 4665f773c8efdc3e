"""Checkpoints, which continue a run exactly; written atomically."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facepipe.core.errors import DataError, OutputError, WeightsError, one_line
from facepipe.core.files import atomic_write_bytes, sync_folder
from facepipe.weights.legacy import require_plain

LAST = "last.pt"
"""Continues a run."""
PREVIOUS = "previous.pt"
"""The checkpoint before `LAST`, for a run whose last one is damaged."""
BEST = "best.pt"

Checkpoint = dict[str, Any]
"""See `facepipe.training.engine.loop.TrainingLoop`."""

_NETWORK = "network."
"""Prefix of the parameters of the network itself in `TrainedDetector` and `TrainedEncoder`."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; never code.

    Raises:
        OutputError: The file can't be written; an older one of this name stays whole.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        atomic_write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise OutputError(
            f"{path}: can't write this checkpoint: {error}; free some space; the one before stays"
        ) from error


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write `LAST` of a run; the one that was there becomes `PREVIOUS`.

    Raises:
        OutputError: It can't be written; both older ones stay.
    """
    new = folder / "new.pt"
    save_checkpoint(new, state)
    if (folder / LAST).is_file():
        (folder / LAST).replace(folder / PREVIOUS)
    new.replace(folder / LAST)
    sync_folder(folder)


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run to continue."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


class LastCheckpoint(NamedTuple):
    """The checkpoint that a run continues from.

    Attributes:
        state: Of `LAST`, or of the newest whole checkpoint before it.
        damage: What is wrong with `LAST`; None: nothing.
    """

    state: dict[str, Any]
    damage: str | None


def load_last(folder: Path) -> LastCheckpoint:
    """Read the checkpoint that a run continues from.

    Raises:
        DataError: There is no checkpoint, or all are damaged.
    """
    try:
        return LastCheckpoint(load_checkpoint(folder / LAST), None)
    except DataError as error:
        paths = [folder / PREVIOUS, folder / BEST, *folder.glob("step_*.pt")]
        older = [state for state in map(_whole, paths) if state is not None]
        if not older:
            raise
        return LastCheckpoint(max(older, key=lambda state: int(state["step"])), str(error))


def _whole(path: Path) -> dict[str, Any] | None:
    try:
        return load_checkpoint(path)
    except DataError:
        return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU.

    Raises:
        DataError: Missing, damaged, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise DataError(f"{path}: not a readable checkpoint ({one_line(error, 200)})") from error
    if not isinstance(state, dict) or not _is_ours(state):
        raise DataError(f"{path}: not a facepipe checkpoint")
    try:
        require_plain(path, state["average"])
    except WeightsError as error:
        raise DataError(str(error)) from error
    return state


def _is_ours(state: Mapping[Any, Any]) -> bool:
    record, average = state.get("record"), state.get("average")
    return (
        type(state.get("step")) is int
        and isinstance(state.get("module"), Mapping)
        and isinstance(record, Mapping)
        and isinstance(record.get("network", {}), Mapping)
        and isinstance(average, Mapping)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in average.items())
    )


def averaged_network(states: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Average the EMA weights of the networks of one or more checkpoints; counters are those of the last.

    Projections and heads that are used for training only are left out, and may differ.

    Raises:
        DataError: They are of different networks.
    """
    *others, last = (_shipped(state["average"]) for state in states)
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (*others, last)]
    if any(shape != shapes[-1] for shape in shapes):
        raise DataError("the checkpoints are of different networks and have no mean")
    return {
        name: torch.stack([value, *(weights[name] for weights in others)]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in last.items()
    }


def _shipped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(_NETWORK): value for name, value in weights.items() if name.startswith(_NETWORK)
    }


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences of two records in lines like "loop.steps: 100 -> 200"."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _flat(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(record, Mapping):
        for key, value in record.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, list(record) if isinstance(record, tuple) else record
