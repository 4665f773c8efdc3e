"""A job file that can't be worked with now: it is damaged, or another process has it."""

from __future__ import annotations

from pathlib import Path

from facepipe.core.errors import OutputError


class DamagedJobError(OutputError):
    """A job file is torn, or holds what no facepipe writes.

    Attributes:
        finding: What is wrong, without the cure.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.finding = f"{file}: the job is damaged ({what})"
        super().__init__(
            f"{self.finding}: run the batch with --again, which begins a new one, or choose another --out"
        )


class JobBusyError(OutputError):
    """Another process works with a job file."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file}: another facepipe works with it: wait for it, or choose another --out")


class ReadOnlyJobError(OutputError):
    """A job that another process works with was to be changed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder}: another facepipe works with it: until that has ended, nothing can be changed"
        )
