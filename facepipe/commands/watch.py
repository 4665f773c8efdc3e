"""Command that watches a folder."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.batch import ProgressReporter, allow_missing_option, xmp_option, xmp_tags_option
from facepipe.commands.options import (
    ANY_PATH,
    GivenPath,
    Setup,
    exclude_option,
    gallery_option,
    with_naming,
    with_setup,
)
from facepipe.commands.output import PARTIAL, echo

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.pipeline import NamingOptions


@click.command()
@click.argument("folder", type=GivenPath(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=ANY_PATH, required=True, metavar="DIR", help="Folder of the job and its results.")
@exclude_option
@with_naming
@allow_missing_option
@xmp_option
@xmp_tags_option
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@gallery_option
@with_setup
def watch(
    setup: Setup,
    folder: Path,
    out: Path,
    exclude: tuple[str, ...],
    naming: NamingOptions,
    allow_missing: bool,
    xmp: bool,
    xmp_tags: bool,
    quiet: bool,
    gallery_address: GalleryAddress,
) -> None:
    """Analyse new photos in FOLDER as they arrive, until Ctrl-C.

    The job and the results in DIR are those of `facepipe batch FOLDER --out DIR`: what is there already is
    worked through first, and either command goes on where the other was.
    """
    from facepipe.batch.analysis import AnalysisOptions
    from facepipe.batch.engine import EngineOptions
    from facepipe.batch.job import Job
    from facepipe.batch.results import ResultOptions, require_places, write_results
    from facepipe.batch.run import Batch, BatchOptions
    from facepipe.batch.watch import watch as watch_folder

    options = BatchOptions(
        exclude=exclude,
        allow_missing=allow_missing,
        analysis=AnalysisOptions(max_pixels=setup.max_pixels()),
        naming=naming,
    )
    require_places(out)
    reporter = ProgressReporter(quiet)
    calls = EngineOptions().threads
    with setup.pipeline(gallery_address, create=True, calls=calls) as pipeline, Job(out, create=True) as job:
        batch = Batch(pipeline, job, options)
        wanted = ResultOptions(xmp=xmp, xmp_tags=xmp_tags, max_pixels=setup.max_pixels())
        unwritten = 0

        def results() -> None:
            nonlocal unwritten
            reporter.end()
            unwritten = write_results(job, batch.group_within_l2, wanted)

        try:
            watch_folder(
                batch, folder, on_results=results, stop=threading.Event(), on_progress=reporter.report
            )
        except KeyboardInterrupt:
            echo("facepipe: stopped watching; the same command goes on from there", err=True)
    if unwritten:
        sys.exit(PARTIAL)
