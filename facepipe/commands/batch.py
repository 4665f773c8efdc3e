"""`facepipe batch`: the photos of folders, and who is in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import (
    ANY_PATH,
    PHOTOS,
    Setup,
    exclude_option,
    gallery_option,
    option_group,
    with_naming,
    with_setup,
)
from facepipe.commands.output import INTERRUPTED, LOG_JSON, PARTIAL, echo, finish, log, redraw
from facepipe.core.counting import counted
from facepipe.core.errors import UsageError
from facepipe.core.logs import json_line

if TYPE_CHECKING:
    from facepipe.batch.engine import EngineOptions, PhotoEngine
    from facepipe.batch.job import Job
    from facepipe.batch.models import PhotoTask
    from facepipe.batch.ray_cluster import RayCluster
    from facepipe.batch.results import ResultOptions
    from facepipe.batch.run import Batch, BatchOptions, BatchProgress, Summary
    from facepipe.batch.shards import Shard
    from facepipe.gallery.address import GalleryAddress
    from facepipe.pipeline import FacePipeline, NamingOptions

_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.3

allow_missing_option = click.option(
    "--allow-missing", is_flag=True, help="Go on without folders that are gone or hold no photo."
)

xmp_option = click.option("--xmp", is_flag=True, help="Write the names into XMP sidecars beside the photos.")
xmp_tags_option = click.option(
    "--xmp-tags", is_flag=True, help="As --xmp, with the names as keywords of photo managers too."
)


def _shard(text: str) -> Shard:
    """`1/4` to a share of the photos."""
    from facepipe.batch.shards import parse_shard

    try:
        return parse_shard(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def _engine_options(workers: int | None, batch_size: int | None) -> EngineOptions:
    from facepipe.batch.engine import EngineOptions

    if batch_size is None:
        return EngineOptions(workers=workers)
    return EngineOptions(workers=workers, detector_batch=batch_size, encoder_batch=batch_size)


def _result_options(
    annotate: bool,
    crops: bool,
    xmp: bool,
    xmp_tags: bool,
    xmp_embed: bool,
    xmp_in_place: bool,
    no_paths: bool,
) -> ResultOptions:
    from facepipe.batch.results import ResultOptions
    from facepipe.xmp.exiftool import require_exiftool
    from facepipe.xmp.packets import require_lxml

    if xmp or xmp_tags or xmp_embed or xmp_in_place:
        require_lxml()
    if xmp_embed or xmp_in_place:
        require_exiftool()
    return ResultOptions(annotate, crops, xmp, xmp_tags, xmp_embed, xmp_in_place, paths=not no_paths)


_with_results = option_group(
    "wanted",
    _result_options,
    [
        click.option("--annotate", is_flag=True, help="Write photos with names drawn to DIR/annotated."),
        click.option("--crops", is_flag=True, help="Write each face as a picture to DIR/crops."),
        xmp_option,
        xmp_tags_option,
        click.option(
            "--xmp-embed",
            is_flag=True,
            help="Write copies of the photos with the names in them to DIR/embedded, by exiftool.",
        ),
        click.option(
            "--xmp-in-place",
            is_flag=True,
            help="Write the names into the photos themselves, by exiftool, each copy verified.",
        ),
        click.option(
            "--no-paths", is_flag=True, help="Leave paths and file names out of the report, to share it."
        ),
    ],
)
_with_engine = option_group(
    "engine",
    _engine_options,
    [
        click.option(
            "--workers",
            type=click.IntRange(1),
            metavar="N",
            help="Threads, of each process.  [default: --threads, else processors + 1]",
        ),
        click.option(
            "--batch-size", type=click.IntRange(1), metavar="N", help="Photos and faces that go together."
        ),
    ],
)


class ProgressReporter:
    """Progress on stderr: one line that is drawn over on a terminal, else a line every ten seconds.

    Args:
        quiet: Nothing at all.
        log_json: JSON Lines instead.
    """

    def __init__(self, quiet: bool, log_json: bool = False) -> None:
        self._quiet, self._as_json = quiet, log_json
        self._redraws = sys.stderr.isatty() and not log_json
        self._reported_at = 0.0
        self._last: BatchProgress | None = None

    def report(self, progress: BatchProgress) -> None:
        """Show it, where the last line is old enough."""
        self._last = progress
        every_s = _REDRAW_EVERY_S if self._redraws else _LINE_EVERY_S
        if not self._quiet and time.monotonic() - self._reported_at >= every_s:
            self._show(progress)

    def end(self) -> None:
        """Show how far it came."""
        if self._last is not None and not self._quiet:
            self._show(self._last)
            if self._redraws:
                echo("", err=True)
        self._last = None

    def _show(self, progress: BatchProgress) -> None:
        self._reported_at = time.monotonic()
        if self._as_json:
            echo(json_line("progress", **_as_record(progress)), err=True)
        elif self._redraws:
            redraw(_as_line(progress))
        else:
            echo(f"facepipe: {_as_line(progress)}", err=True)

    def summarize(self, summary: Summary, out: Path) -> None:
        """Show what came of it all."""
        if self._quiet:
            return
        counts = summary.counts
        known = f"{counts.known} known, {counts.faces - counts.known} unknown"
        log(
            f"{counted(counts.total, 'photo')}, {summary.here} of them analyzed now; "
            f"{counted(counts.faces, 'face')}, {known}; results in {out}"
        )
        if counts.failed:
            new = "none of them" if not counts.newly_failed else f"{counts.newly_failed} of them"
            failed = f"{counted(counts.failed, 'photo')} failed, {new} for the first time"
            log(f"{failed}; reasons in {out / 'results.jsonl'}; --retry-failed tries again", "WARNING")


_with_reporter = option_group(
    "reporter",
    ProgressReporter,
    [
        click.option("--quiet", is_flag=True, help="No progress on stderr."),
        click.option(LOG_JSON, is_flag=True, help="All lines on stderr as JSON with their time."),
    ],
)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=PHOTOS)
@click.option("--out", type=ANY_PATH, required=True, metavar="DIR", help="Folder of the job and its results.")
@exclude_option
@with_naming
@click.option("--retry-failed", is_flag=True, help="Analyze photos again that failed.")
@click.option("--again", is_flag=True, help="Analyze all photos again, in a new job if damaged.")
@allow_missing_option
@click.option("--forget", is_flag=True, help="Erase photos that are not in FOLDERS, and outdated pictures.")
@click.option(
    "--shard",
    type=_shard,
    metavar="K/N",
    help="Only share K of N shares of the photos, chosen by content; see batch-merge.",
)
@click.option("--strict", is_flag=True, help="Exit with 3 for photos that failed before, too.")
@_with_results
@_with_engine
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Analyze on a Ray cluster: HOST:PORT of its head, auto, or local to start one here.",
)
@_with_reporter
@gallery_option
@with_setup
def batch(
    setup: Setup,
    folders: tuple[str, ...],
    out: Path,
    exclude: tuple[str, ...],
    naming: NamingOptions,
    retry_failed: bool,
    again: bool,
    allow_missing: bool,
    forget: bool,
    shard: Shard | None,
    strict: bool,
    wanted: ResultOptions,
    engine: EngineOptions,
    ray_address: str | None,
    reporter: ProgressReporter,
    gallery_address: GalleryAddress,
) -> None:
    """Work through FOLDERS (files and globs too) and say who is in their photos.

    The work is remembered in DIR: killed or interrupted, the same command goes on where it was, and later
    analyzes only what is new or changed. Results: results.jsonl, faces.csv and report.html in DIR.
    """
    from facepipe.batch.analysis import AnalysisOptions
    from facepipe.batch.finding import find_batch_photos
    from facepipe.batch.job import Job
    from facepipe.batch.results import require_places
    from facepipe.batch.run import Batch, BatchOptions

    analysis = AnalysisOptions(max_pixels=setup.max_pixels())
    options = BatchOptions(exclude, retry_failed, again, allow_missing, analysis, naming, engine, shard)
    require_places(out)
    # First: nothing is made for folders without any.
    photos = find_batch_photos(folders, out, exclude=exclude, allow_missing=allow_missing)
    with (
        _cluster(ray_address, setup) as cluster,
        setup.pipeline(gallery_address, create=True, calls=engine.threads) as pipeline,
        Job(out, create=True, again=again) as job,
    ):
        make_engine = None if cluster is None else _engine_on(cluster, pipeline, setup, options)
        work = Batch(pipeline, job, options, make_engine)
        wanted = replace(wanted, max_pixels=analysis.max_pixels)
        summary, unwritten = _work_through(work, job, folders, photos, wanted, reporter, forget=forget)
    reporter.summarize(summary, out)
    if unwritten:
        log(f"{counted(unwritten, 'output')} could not be written; the next run tries again", "WARNING")
    finish(summary.counts.failed if strict else summary.counts.newly_failed, summary.counts.total)
    if unwritten:
        sys.exit(PARTIAL)


def _cluster(address: str | None, setup: Setup) -> AbstractContextManager[RayCluster | None]:
    """A connection to a cluster that is asked for."""
    if address is None:
        return nullcontext()
    from facepipe.batch.ray_cluster import RayCluster

    if setup.device not in ("auto", "cpu"):
        raise UsageError("--ray analyzes on processors: leave out --device, or analyze without --ray")
    return RayCluster(address)


def _engine_on(
    cluster: RayCluster, pipeline: FacePipeline, setup: Setup, options: BatchOptions
) -> Callable[[Iterable[PhotoTask]], PhotoEngine]:
    from facepipe.batch.ray_engine import RayEngine
    from facepipe.batch.ray_worker import WorkerSetup, installation_of

    networks = setup.networks()
    workers = WorkerSetup(networks, options.analysis, options.engine)
    here = installation_of(pipeline, networks.runtime)
    return lambda tasks: RayEngine(cluster, tasks, workers, here)


def _work_through(
    work: Batch,
    job: Job,
    folders: Sequence[str],
    photos: Sequence[Path],
    wanted: ResultOptions,
    reporter: ProgressReporter,
    *,
    forget: bool,
) -> tuple[Summary, int]:
    """Analyze the photos and write the results; answers how it went, and how many outputs are unwritten."""
    from facepipe.batch.forgetting import forget_left_out
    from facepipe.batch.results import write_results

    try:
        work.take(folders, photos)
        summary = work.run(reporter.report)
        reporter.end()
        if forget:
            log(f"forgotten: {counted(forget_left_out(job), 'photo')} that are not in the folders")
        unwritten = write_results(job, work.group_within_l2, wanted)
        if wanted.xmp_in_place:
            unwritten += work.write_into_photos()
        if not unwritten:
            job.note_failures_reported()
    except KeyboardInterrupt:
        reporter.end()
        _log_interrupted(job)
        sys.exit(INTERRUPTED)
    return summary, unwritten


def _log_interrupted(job: Job) -> None:
    counts = job.counts()
    done = f"{counts.done + counts.failed} of {counted(counts.total, 'photo')} are done and kept"
    log(f"interrupted; {done}; the same command goes on from there", "WARNING")


def _as_line(progress: BatchProgress) -> str:
    left_s = progress.left_s
    left = "" if left_s is None else f", {_clock(left_s)} left"
    return (
        f"{progress.done + progress.failed}/{counted(progress.total, 'photo')}, "
        f"{progress.photos_per_s:.1f}/s, "
        f"{counted(progress.faces, 'face')} ({progress.known} known, {progress.unknown} unknown), "
        f"{progress.failed} failed{left}"
    )


def _as_record(progress: BatchProgress) -> dict[str, float | None]:
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
