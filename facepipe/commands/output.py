"""Results as they come: progress, lines on stdout, pictures, and the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from facepipe.core.errors import OutputError
from facepipe.core.logs import json_line
from facepipe.core.plain_text import visible_line

if TYPE_CHECKING:
    from facepipe.pipeline import PhotoResult

PARTIAL = 3
INTERRUPTED = 130
LOG_JSON = "--log-json"
"""Option of commands whose lines on stderr may be JSON; a key of the context's `meta` where they are."""
_COLUMNS, _ROWS = 80, 24
"""Size of a terminal that does not know its own, as in many containers and build machines."""
Item = TypeVar("Item")


def log(message: str, level: str = "INFO") -> None:
    """Write a message of the running command to stderr: as `facepipe: ...`, or as JSON with --log-json."""
    as_json = LOG_JSON in click.get_current_context().meta
    echo(json_line("log", level=level, message=message) if as_json else f"facepipe: {message}", err=True)


def echo(line: object, *, err: bool = False) -> None:
    """Print a line for people, on stdout or stderr; whatever it holds, it stays one line of plain text."""
    click.echo(visible_line(line), err=err)


def redraw(line: str) -> None:
    """Draw a line on stderr, a terminal, over the one before."""
    click.echo(f"\r\x1b[K{visible_line(line)}", err=True, nl=False)


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items, counted on a progress bar where stderr is a terminal and there is more than one."""
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    # Rows are given so that tqdm does not hide the bar on a terminal that has none.
    with tqdm(desc=what, total=total, unit="photo", leave=False, ncols=_columns(), nrows=_ROWS) as bar:
        for item in items:
            bar.clear()  # what is printed next may go to the same terminal
            yield item
            bar.update()


@contextmanager
def time_progress(total_s: float | None, what: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that shows how far into a video the work is, on a bar where stderr is a terminal.

    Args:
        total_s: Length of the video; None: not known.
        what: What is being done.
    """
    from tqdm import tqdm

    end = "" if total_s is None else f" of {tqdm.format_interval(total_s)}"
    form = "{desc}{postfix}" if total_s is None else "{desc}: {percentage:3.0f}%|{bar}|{postfix}"
    size = {"ncols": _columns(), "nrows": _ROWS}  # as in `with_progress`
    hidden = not sys.stderr.isatty()
    with tqdm(desc=what, total=total_s, leave=False, disable=hidden, bar_format=form, **size) as bar:

        def show(time_s: float) -> None:
            bar.set_postfix_str(f"{tqdm.format_interval(time_s)}{end}", refresh=False)
            bar.update(min(time_s, total_s or time_s) - bar.n)

        yield show


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def echo_record(line: str) -> None:
    """Print a line of JSON or CSV for programs: in UTF-8, whatever the locale or the terminal."""
    click.echo(line.encode("utf-8", "backslashreplace"))


bom_option = click.option(
    "--bom", is_flag=True, help="Begin the CSV with a byte-order mark, for spreadsheets."
)


def finish(failed: int, total: int) -> None:
    """Leave with 3 where some photos failed, with 1 where all did."""
    if failed:
        sys.exit(1 if failed == total else PARTIAL)


class Output:
    """Where results go: stdout in the asked-for form, and the asked-for pictures. Refuses before any work."""

    def __init__(
        self,
        photos: Sequence[Path],
        as_json: bool,
        as_csv: bool,
        annotate: Path | None,
        crops: Path | None,
        bom: bool = False,
    ) -> None:
        from facepipe.reports.records import printer

        if as_json and as_csv:
            raise click.UsageError("--json and --csv exclude each other.")
        if bom and not as_csv:
            raise click.UsageError("--bom goes with --csv.")
        self._echo = echo_record if as_json or as_csv else echo
        self._total = len(photos)
        self._lines = printer("json" if as_json else "csv" if as_csv else "table", bom=bom)
        self._writers: list[Callable[[PhotoResult], object]] = []
        if annotate or crops:
            from facepipe.reports.pictures import PictureFolder

            if annotate:
                self._writers.append(PictureFolder(annotate, photos).write_annotated)
            if crops:
                self._writers.append(PictureFolder(crops, photos).write_crops)

    def show(self, results: Iterable[PhotoResult]) -> None:
        """Print and write results as they come; leaves with 3 or 1 where photos or their pictures failed."""
        failed = 0
        for header in self._lines.header:
            self._echo(header)
        for result in with_progress(results, self._total, "analyzing"):
            errors = list(self._write_pictures(result)) if result.error is None else [result.error]
            failed += bool(errors)
            for error in errors:
                echo(f"facepipe: {error}", err=True)
            for line in self._lines.of(result):
                self._echo(line)
        finish(failed, self._total)

    def _write_pictures(self, result: PhotoResult) -> Iterator[str]:
        """Write the pictures of one photo; yields what could not be written, which is no reason to stop."""
        for write in self._writers:
            try:
                write(result)
            except OutputError as error:
                yield str(error)
