"""The folder of a run, its outcome, and its record on a card."""

from __future__ import annotations

import itertools
import logging
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from facepipe.core.errors import OutputError, UsageError
from facepipe.core.files import make_private_folder
from facepipe.training.engine.checkpoints import BEST, LAST, holds_run, load_last
from facepipe.training.engine.config import from_plain, read_configuration
from facepipe.training.engine.curves import write_curves
from facepipe.training.engine.distributed import is_main
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop import TrainingLoop

Config = TypeVar("Config")

_LOG = logging.getLogger("facepipe.training")


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """Outcome of a run.

    Attributes:
        step, steps: Finished, and of the whole run; fewer after Ctrl-C.
        last: Continues the run.
        best: The checkpoint with the best validation score; None without validation.
        score: That score.
        figures: The latest validation's.
        curves: A picture of losses and figures over the steps.
        samples: A page of detections, once a detector's run is finished.
    """

    step: int
    steps: int
    last: Path
    best: Path | None
    score: float | None
    figures: dict[str, float]
    curves: Path
    samples: Path | None = None


def new_run_folder(folder: Path) -> Path:
    """Return a folder for a new run: this one, or with the next number behind its name where it is there."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a new run in a folder that holds one, and a resumed one in a folder that holds none.

    Raises:
        UsageError: Names the cure.
    """
    if holds_run(folder) != resume:
        cure = "holds no run to continue" if resume else "holds a run; continue it with --resume"
        raise UsageError(f"{folder}: {cure}, or choose another folder")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made where missing; the first of several processes does.

    Raises:
        UsageError: Another run works in it.
        OutputError: It can't be written to.
    """
    if not is_main():
        yield
        return
    try:
        make_private_folder(folder)
        lock = sqlite3.connect(folder / ".lock", timeout=0, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise OutputError(f"{folder}: can't be written to: {error}") from error
    with closing(lock):
        try:
            lock.execute("BEGIN EXCLUSIVE")  # the system lets go of it however the process ends
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UsageError(
                    f"{folder}: another run trains in this folder now; wait for its end, or choose another"
                ) from error
            _LOG.warning("%s: nothing keeps other runs out of this folder: %s", folder, error)
        yield


def configuration_of_run(kind: type[Config], folder: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration that a run was started with, from its last checkpoint, for resuming it.

    Raises:
        UsageError: There is no run, it is another trainer's, or an override is wrong.
        DataError: Its checkpoint is damaged.
    """
    if not holds_run(folder):
        raise UsageError(f"{folder}: holds no run to continue ({LAST})")
    record = load_last(folder).state["record"]
    try:
        from_plain(kind, record)
    except UsageError as error:
        raise UsageError(
            f"{folder}: this run is of another trainer or version of facepipe ({error}); begin a new one "
            f"from its weights: --set network.initial={folder / LAST}"
        ) from error
    return read_configuration(kind, record, overrides)


def outcome_of(loop: TrainingLoop[Any], folder: Path, samples: Path | None = None) -> TrainingOutcome:
    """Draw the curves of a run and return its outcome.

    Raises:
        OutputError: The picture can't be written.
    """
    curves = folder / "curves.png"
    if is_main():
        log = folder / "log.csv"
        write_curves(read_log(log) if log.exists() else {}, curves)
    validated = math.isfinite(loop.best)
    return TrainingOutcome(
        step=loop.step,
        steps=loop.config.steps,
        last=folder / LAST,
        best=folder / BEST if validated else None,
        score=loop.best if validated else None,
        figures=loop.figures,
        curves=curves,
        samples=samples,
    )


def training_record(state: dict[str, Any], checkpoints: int) -> dict[str, Any]:
    """Return the training of a checkpoint, or of the mean of several, for a card."""
    return {
        "steps": state["step"],
        "epochs": round(state.get("epoch", 0.0), 2),
        "hours": round(state["seconds"] / 3600, 2),
        "checkpoints_averaged": checkpoints,
        "recipe": _without_folders(state["record"]),
    }


def validation_record(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's latest figures with their setting, for a card."""
    figures, setting = state.get("figures"), state["record"].get("validation")
    if not figures:
        return {}
    rounded: dict[str, Any] = {key: round(value, 4) for key, value in figures.items()}
    return {"validation": rounded | ({"setting": _without_folders(setting)} if setting else {})}


def _without_folders(value: Any) -> Any:
    """Shorten absolute paths to their last two parts: a card is public. Names of maps are no paths."""
    if isinstance(value, dict):
        return {key: item if key == "taps" else _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value
