"""What runs of all trainers share: their folder, what they leave behind, and what a card says of them."""

from __future__ import annotations

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
from facepipe.images.reading import write_image
from facepipe.training.engine.checkpoints import BEST, LAST, holds_run, load_last
from facepipe.training.engine.config import read_configuration
from facepipe.training.engine.curves import draw_curves
from facepipe.training.engine.distributed import is_main
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop import TrainingLoop

Config = TypeVar("Config")

_LOG = logging.getLogger("facepipe.training")


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a run left behind.

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


def check_folder(folder: Path, resume: bool) -> None:
    """A new run wants a folder without one, and a resumed run one with it.

    Raises:
        UsageError: It is the other way round.
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
    """The configuration that a run was started with, from its last checkpoint, for resuming it.

    Raises:
        UsageError: There is no run, it is another trainer's, or an override is wrong.
        DataError: Its checkpoint is damaged.
    """
    if not holds_run(folder):
        raise UsageError(f"{folder}: holds no run to continue ({LAST})")
    return read_configuration(kind, load_last(folder).state["record"], overrides)


def outcome_of(loop: TrainingLoop[Any], folder: Path, samples: Path | None = None) -> TrainingOutcome:
    """What a loop left behind; draws its curves.

    Raises:
        OutputError: The picture can't be written.
    """
    curves = folder / "curves.png"
    if is_main():
        log = folder / "log.csv"
        write_image(curves, draw_curves(read_log(log) if log.exists() else {}))
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
    """For a card: how a checkpoint, or the mean of several, was trained."""
    return {
        "steps": state["step"],
        "epochs": round(state.get("epoch", 0.0), 2),
        "hours": round(state["seconds"] / 3600, 2),
        "checkpoints_averaged": checkpoints,
        "recipe": _without_folders(state["record"]),
    }


def validation_record(state: dict[str, Any]) -> dict[str, Any]:
    """For a card: a checkpoint's latest figures with their setting."""
    figures, setting = state.get("figures"), state["record"].get("validation")
    if not figures:
        return {}
    rounded: dict[str, Any] = {key: round(value, 4) for key, value in figures.items()}
    return {"validation": rounded | ({"setting": _without_folders(setting)} if setting else {})}


def _without_folders(value: Any) -> Any:
    """Where files lay on this computer is nobody's business; what they are called is."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value
