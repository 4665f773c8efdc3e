"""Command on videos and webcams."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, gallery_option, with_setup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from facepipe.video import Frame


@click.command()
@click.argument("source", metavar="FILE|INDEX")
@click.option("--every", type=float, default=0.2, show_default=True, metavar="S", help="Look this often.")
@click.option("--seconds", type=float, metavar="S", help="Stop after so much; webcams otherwise at Ctrl-C.")
@click.option("--threshold", type=float, metavar="L2", help="Largest distance at which a face is named.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per track, not JSON Lines.")
@click.option("--annotate", type=ANY_PATH, metavar="FILE.mp4", help="Write the video with names drawn.")
@gallery_option
@with_setup
def video(
    setup: Setup,
    source: str,
    every: float,
    seconds: float | None,
    threshold: float | None,
    as_csv: bool,
    annotate: Path | None,
    gallery_path: Path,
) -> None:
    """Say who is in a video FILE, or before the webcam of number INDEX, and when.

    Prints a timeline: each person's or stranger's appearance with its first and last second.
    """
    from facepipe.outputs import require_place
    from facepipe.video import (
        TIMELINE_COLUMNS,
        VideoOptions,
        find_tracks,
        read_frames,
        timeline_json,
        timeline_rows,
        write_annotated,
    )

    webcam = source.isdecimal() and not Path(source).exists()
    if annotate and webcam:
        raise click.UsageError("--annotate reads the video a second time: it needs a file.")
    if annotate:
        require_place(annotate)
    options = VideoOptions(every_s=every, threshold_l2=threshold)
    with setup.pipeline(gallery_path) as pipeline:
        frames = read_frames(int(source) if webcam else source, every, for_s=seconds)
        tracks = find_tracks(pipeline, _until_interrupted(frames) if webcam else frames, options)
    if as_csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        rows.writerow(TIMELINE_COLUMNS)
        rows.writerows(timeline_rows(tracks))
    else:
        for line in timeline_json(tracks):
            click.echo(line)
    if annotate:
        write_annotated(source, annotate, tracks)


def _until_interrupted(frames: Iterable[Frame]) -> Iterator[Frame]:
    try:
        yield from frames
    except KeyboardInterrupt:
        return
