"""Results as they come: progress, lines on stdout, pictures, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from facepipe.pipeline import PhotoResult

PARTIAL = 3
INTERRUPTED = 130
Item = TypeVar("Item")


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, counted on a progress bar where stderr is a terminal and there is more than one."""
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    with tqdm(desc=what, total=total, unit="photo", leave=False) as bar:
        for item in items:
            bar.clear()  # what is printed next may go to the same terminal
            yield item
            bar.update()


def finish(failed: int, total: int) -> None:
    """Leave with 3 where some photos failed, with 1 where all did."""
    if failed:
        sys.exit(1 if failed == total else PARTIAL)


class Output:
    """Where results go: stdout in the asked-for form, and the asked-for pictures. Refuses before any work."""

    def __init__(
        self, photos: Sequence[Path], as_json: bool, as_csv: bool, annotate: Path | None, crops: Path | None
    ) -> None:
        from facepipe.outputs import PictureFolder
        from facepipe.report import printer

        if as_json and as_csv:
            raise click.UsageError("--json and --csv exclude each other.")
        self._total = len(photos)
        self._lines = printer("json" if as_json else "csv" if as_csv else "table")
        self._annotated = PictureFolder(annotate, photos) if annotate else None
        self._cropped = PictureFolder(crops, photos) if crops else None

    def show(self, results: Iterable[PhotoResult]) -> None:
        """Print and write results as they come; leaves with 3 or 1 where photos failed."""
        failed = 0
        for header in self._lines.header:
            click.echo(header)
        for result in with_progress(results, self._total, "looking"):
            if result.error is not None:
                failed += 1
                click.echo(f"facepipe: {result.error}", err=True)
            else:
                self._write_pictures(result)
            for line in self._lines.of(result):
                click.echo(line)
        finish(failed, self._total)

    def _write_pictures(self, result: PhotoResult) -> None:
        if self._annotated:
            self._annotated.write_annotated(result)
        if self._cropped:
            self._cropped.write_crops(result)
