"""`facepipe sort`: the photos of a batch, into a folder per person."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from facepipe.commands.options import ANY_PATH, key_file_option
from facepipe.commands.output import echo, finish
from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError


@click.command()
@click.argument("job_folder", type=ANY_PATH)
@click.option("--to", "target", type=ANY_PATH, required=True, metavar="DIR", help="Where the folders go.")
@click.option("--link", is_flag=True, help="Link to the photos instead of copying them.")
@click.option("--move", is_flag=True, help="Move the photos instead of copying them.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@key_file_option
def sort(job_folder: Path, target: Path, link: bool, move: bool, dry_run: bool) -> None:
    """Copy photos into a folder per person, from the results in JOB_FOLDER (the --out of a batch).

    A photo of several people goes to each of them; with --move to the one with the largest face. A sidecar
    (PHOTO.xmp) goes with its photo. Nothing is replaced, and nothing is removed but what --move moves; a move
    that was killed is finished or undone by the next sort. A folder has the person's name; some names are
    changed for file systems and then end with 10 digits of their own. Exit code 3 where a photo is gone or
    can't be put there.
    """
    from facepipe.batch.job import Job
    from facepipe.batch.sort import TransferMode, finish_move, plan_sorting, require_source, transfer

    if link and move:
        raise click.UsageError("--link and --move exclude each other.")
    mode = TransferMode.LINK if link else TransferMode.MOVE if move else TransferMode.COPY
    count, failed, total, there = 0, 0, 0, 0
    with Job(job_folder) as job:
        put = require_source if dry_run else partial(transfer, mode=mode, job=job)
        finished = None if dry_run else finish_move(job, target)
        if finished is not None:
            echo(f"{finished.source} -> {finished.target}")
        for placement in plan_sorting(job, target, mode):
            total += 1
            if placement.is_done:
                there += 1
                continue
            try:
                put(placement)
            except FacepipeError as error:  # one photo's trouble
                failed += 1
                echo(f"facepipe: {error}", err=True)
            else:
                count += 1
                echo(f"{placement.source} -> {placement.target}")
    done = "to be sorted" if dry_run else "sorted"
    before = f", {there} there already" if there else ""
    echo(f"facepipe: {counted(count, 'photo')} {done} into {target} ({mode.value}){before}", err=True)
    finish(failed, total)
