"""Figures of a run on disk: `log.csv` in long form, and TensorBoard where it is installed and asked for."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from facepipe.core.errors import DataError, MissingExtraError, OutputError
from facepipe.core.files import atomic_write_bytes
from facepipe.training.engine.distributed import sum_over_ranks, world_size

_COLUMNS = ["step", "seconds", "figure", "value"]
Curves = dict[str, list[tuple[int, float]]]


class RunLog:
    """Appends figures to `folder/log.csv`, one line each: step, seconds of training, figure, value.

    Args:
        folder: Of the run.
        tensorboard: Write events there too, for `tensorboard --logdir`.
        step: Where the run begins: what TensorBoard knows of later steps is hidden.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool, step: int = 0) -> None:
        self._path = folder / "log.csv"
        self._events = _event_writer(folder, step) if tensorboard else None

    def write(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Add the figures of one step.

        Raises:
            OutputError: They can't be written.
        """
        lines = io.StringIO(newline="")
        writer = csv.writer(lines)
        if not self._path.exists():
            writer.writerow(_COLUMNS)
        writer.writerows((step, round(seconds, 1), key, value) for key, value in figures.items())
        with _named(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            file.write(lines.getvalue())
        if self._events is not None:
            for key, value in figures.items():
                self._events.add_scalar(key, value, step)
            self._events.flush()

    def forget_after(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last checkpoint: a resumed run writes them again.

        Raises:
            OutputError: The log can't be written.
        """
        if not self._path.exists():
            return
        with _named(self._path):
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= step]
            atomic_write_bytes(self._path, "".join(kept).encode())


class LogWindow:
    """Sums of losses and seconds since the last line of the log."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.sums: dict[str, float] = {}
        self.steps, self.seconds = 0, 0.0

    def add(self, losses: dict[str, float], seconds: float) -> None:
        """Add the losses of a step."""
        self.latest = losses
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    def means(self, device: torch.device) -> dict[str, float]:
        """Average the losses over steps and processes."""
        values = torch.tensor(list(self.sums.values()), device=device) / self.steps
        return dict(zip(self.sums, (sum_over_ranks(values) / world_size()).tolist(), strict=True))


def read_log(path: Path) -> Curves:
    """Return the curve of every figure in a `log.csv`: (step, value) in the order of steps.

    Raises:
        DataError: Missing or not such a file.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        curves: Curves = defaultdict(list)
        for row in rows:
            if row != _COLUMNS:
                curves[row[2]].append((int(row[0]), float(row[3])))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a readable log of a training run: {error}") from error
    return dict(curves)


def _step_of(line: str) -> int:
    """Return the line's step; the header and a line cut short by a crash count as 0 and as far away."""
    if line.startswith(_COLUMNS[0]):
        return 0
    number = line.partition(",")[0]
    whole = number.isdecimal() and line.count(",") == len(_COLUMNS) - 1 and line.endswith("\n")
    return int(number) if whole else 2**62


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: can't write the log of the run: {error}; free some space") from error


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("writing TensorBoard logs", "train") from error
    return SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=step + 1)
