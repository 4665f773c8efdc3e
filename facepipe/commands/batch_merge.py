"""Command that makes one job of several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, batch_gallery_option
from facepipe.commands.output import PARTIAL, log, with_progress
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress

_NAMED_SHARES = 8


@click.command("batch-merge")
@click.argument("jobs", nargs=-1, required=True, type=ANY_PATH)
@click.option("--out", type=ANY_PATH, required=True, metavar="DIR", help="Folder of the new job.")
@batch_gallery_option
def batch_merge(jobs: tuple[Path, ...], out: Path, gallery_address: GalleryAddress | None) -> None:
    """Make one job of JOBS, each the --out of a batch: of its shares, or of other folders.

    DIR has the results of one batch over all their photos, and goes on as such a batch does. JOBS stay as
    they are. DIR appears when all is done; a killed merge is repeated.
    """
    from facepipe.library.merging import merge_jobs

    summary = merge_jobs(
        jobs, out, gallery_address, show=lambda photos: with_progress(photos, len(photos), "merging")
    )
    counts = summary.counts
    known = f"{counts.known} known, {counts.faces - counts.known} unknown"
    log(f"{counted(counts.total, 'photo')}, {counted(counts.faces, 'face')}, {known}; results in {out}")
    if summary.missing:
        shares = ", ".join(map(str, summary.missing[:_NAMED_SHARES]))
        more = ", ..." if len(summary.missing) > _NAMED_SHARES else ""
        log(f"share {shares}{more} is not among the jobs: its photos are missing", "WARNING")
    if counts.waiting:
        waiting = counted(counts.waiting, "photo")
        log(f"{waiting} not analyzed yet: `facepipe batch` with --out {out} does that", "WARNING")
    if summary.unwritten:
        log(f"{counted(summary.unwritten, 'output')} could not be written", "WARNING")
        sys.exit(PARTIAL)
