"""A job file that is not as it was written."""

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
