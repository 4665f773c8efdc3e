"""Commands on folders: batch, sort."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, exclude_option, gallery_option, with_setup
from facepipe.commands.output import INTERRUPTED, finish
from facepipe.words import counted

if TYPE_CHECKING:
    from facepipe.batch.job import Job
    from facepipe.batch.run import Progress, Summary

_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.3


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(readable=False))
@click.option("--out", type=ANY_PATH, required=True, metavar="DIR", help="Folder of the job and its results.")
@exclude_option
@click.option("--threshold", type=float, metavar="L2", help="Largest distance at which a face is named.")
@click.option("--allow-repeats", is_flag=True, help="One person may be in a photo several times.")
@click.option("--retry-failed", is_flag=True, help="Look again at photos that failed.")
@click.option("--again", is_flag=True, help="Look again at all photos.")
@click.option("--annotate", is_flag=True, help="Write photos with names drawn to DIR/annotated.")
@click.option("--crops", is_flag=True, help="Write each face as a picture to DIR/crops.")
@click.option("--xmp", is_flag=True, help="Write the names into XMP sidecars beside the photos.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads.  [default: cores + 1]")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Photos and faces a network call.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.option("--log-json", is_flag=True, help="Progress and messages on stderr as JSON Lines.")
@gallery_option
@with_setup
def batch(
    setup: Setup,
    folders: tuple[str, ...],
    out: Path,
    exclude: tuple[str, ...],
    threshold: float | None,
    allow_repeats: bool,
    retry_failed: bool,
    again: bool,
    annotate: bool,
    crops: bool,
    xmp: bool,
    workers: int | None,
    batch_size: int | None,
    quiet: bool,
    log_json: bool,
    gallery_path: Path,
) -> None:
    """Work through FOLDERS (files and globs too) and say who is in their photos.

    The work is remembered in DIR: killed or interrupted, the same command goes on where it was, and later
    looks only at what is new or changed. Results: results.jsonl, faces.csv and report.html in DIR.
    """
    from facepipe.batch.engine import EngineOptions
    from facepipe.batch.job import Job
    from facepipe.batch.look import LookOptions
    from facepipe.batch.run import Batch, BatchOptions, NamingOptions
    from facepipe.xmp import require_lxml

    standard = EngineOptions()
    options = BatchOptions(
        exclude=exclude,
        retry_failed=retry_failed,
        again=again,
        look=LookOptions(max_pixels=setup.max_pixels()),
        naming=NamingOptions(threshold, one_person_per_photo=not allow_repeats),
        engine=EngineOptions(
            workers=workers,
            detector_batch=batch_size or standard.detector_batch,
            encoder_batch=batch_size or standard.encoder_batch,
        ),
    )
    if xmp:
        require_lxml()
    if log_json:
        _log_as_json()
    teller = ProgressTeller(quiet, log_json)
    with setup.pipeline(gallery_path, calls=options.engine.threads) as pipeline, Job(out, create=True) as job:
        try:
            work = Batch(pipeline, job, options)
            work.find(folders)
            summary = work.run(teller.tell)
            teller.end()
            write_results(job, work.group_within_l2, options.look.max_pixels, annotate, crops, xmp)
        except KeyboardInterrupt:
            teller.end()
            counts = job.counts()
            done = f"{counts.done + counts.failed} of {counts.total} photos are done and kept"
            click.echo(f"facepipe: interrupted; {done}; the same command goes on from there", err=True)
            sys.exit(INTERRUPTED)
    if not quiet:
        _tell_end(summary, out)
    finish(summary.counts.failed, summary.counts.total)


def write_results(
    job: Job, group_within_l2: float, max_pixels: int, annotate: bool, crops: bool, xmp: bool
) -> None:
    """Records and report, and the files that were asked for."""
    from facepipe.batch.page import write_report
    from facepipe.batch.results import (
        make_annotated,
        make_crops,
        make_products,
        make_sidecar,
        write_records,
    )

    write_records(job)
    write_report(job, group_within_l2)
    photos = job.photos()
    if annotate:
        make_products(job, "annotated", make_annotated(job.folder / "annotated", photos, max_pixels))
    if crops:
        make_products(job, "crops", make_crops(job.folder / "crops", photos, max_pixels))
    if xmp:
        make_products(job, "xmp in the stored frame", make_sidecar)  # those of another frame are made again


def _tell_end(summary: Summary, out: Path) -> None:
    counts = summary.counts
    known = f"{counts.known} known, {counts.faces - counts.known} unknown"
    click.echo(
        f"facepipe: {counts.total} photos, {summary.here} of them looked at now; "
        f"{counts.faces} faces, {known}; results in {out}",
        err=True,
    )
    if counts.failed:
        told = f"{counts.failed} photos failed, reasons in {out / 'results.jsonl'}"
        click.echo(f"facepipe: {told}; --retry-failed looks at them again", err=True)


class ProgressTeller:
    """Progress on stderr: one line that is drawn over on a terminal, else a line every ten seconds.

    Args:
        quiet: Nothing at all.
        as_json: JSON Lines instead.
    """

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self._quiet, self._as_json = quiet, as_json
        self._redraws = sys.stderr.isatty() and not as_json
        self._told_at = 0.0
        self._last: Progress | None = None

    def tell(self, progress: Progress) -> None:
        """Say it, where the last line is old enough."""
        self._last = progress
        every_s = _REDRAW_EVERY_S if self._redraws else _LINE_EVERY_S
        if not self._quiet and time.monotonic() - self._told_at >= every_s:
            self._say(progress)

    def end(self) -> None:
        """Say how far it came."""
        if self._last is not None and not self._quiet:
            self._say(self._last)
            if self._redraws:
                click.echo(err=True)
        self._last = None

    def _say(self, progress: Progress) -> None:
        self._told_at = time.monotonic()
        if self._as_json:
            click.echo(json.dumps({"event": "progress", **_as_record(progress)}), err=True)
        elif self._redraws:
            click.echo(f"\r\x1b[K{_as_line(progress)}", err=True, nl=False)
        else:
            click.echo(f"facepipe: {_as_line(progress)}", err=True)


def _as_line(progress: Progress) -> str:
    left_s = progress.left_s
    left = "" if left_s is None else f", {_clock(left_s)} left"
    return (
        f"{progress.done + progress.failed}/{progress.total} photos, {progress.photos_per_s:.1f}/s, "
        f"{progress.faces} faces ({progress.known} known, {progress.unknown} unknown), "
        f"{progress.failed} failed{left}"
    )


def _as_record(progress: Progress) -> dict[str, float | None]:
    left_s = progress.left_s
    return asdict(progress) | {
        "unknown": progress.unknown,
        "photos_per_s": round(progress.photos_per_s, 2),
        "left_s": None if left_s is None else round(left_s, 1),
        "elapsed_s": round(progress.elapsed_s, 1),
    }


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _log_as_json() -> None:
    class AsJson(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return json.dumps({"event": "log", "level": record.levelname, "message": record.getMessage()})

    for handler in logging.getLogger("facepipe").handlers:
        handler.setFormatter(AsJson())


@click.command()
@click.argument("job_folder", type=ANY_PATH)
@click.option("--to", "target", type=ANY_PATH, required=True, metavar="DIR", help="Where the folders go.")
@click.option("--link", is_flag=True, help="Link to the photos instead of copying them.")
@click.option("--move", is_flag=True, help="Move the photos instead of copying them.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
def sort(job_folder: Path, target: Path, link: bool, move: bool, dry_run: bool) -> None:
    """Copy photos into a folder per person, from the results in JOB_FOLDER (the --out of a batch).

    A photo of several people goes to each of them; with --move to the one with the largest face. Nothing is
    replaced, and nothing is removed but what --move moves. A folder has the person's name; some names are
    changed for file systems and then end with 10 digits of their own. Exit code 3 where a photo is gone or
    can't be put there.
    """
    from facepipe.batch.job import Job
    from facepipe.batch.sorting import Way, carry_out, plan_sorting, require_source
    from facepipe.errors import FacepipeError

    if link and move:
        raise click.UsageError("--link and --move exclude each other.")
    way = Way.LINK if link else Way.MOVE if move else Way.COPY
    carry = require_source if dry_run else partial(carry_out, way=way)
    count, failed, total = 0, 0, 0
    with Job(job_folder) as job:
        for placement in plan_sorting(job, target, way):
            total += 1
            if placement.is_done:
                continue
            try:
                carry(placement)
            except FacepipeError as error:  # one photo's trouble
                failed += 1
                click.echo(f"facepipe: {error}", err=True)
            else:
                count += 1
                click.echo(f"{placement.source} -> {placement.target}")
    told = "to be sorted" if dry_run else "sorted"
    click.echo(f"facepipe: {counted(count, 'photo')} {told} into {target} ({way.value})", err=True)
    finish(failed, total)
