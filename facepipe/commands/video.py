"""Command on videos and webcams."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, force_option, gallery_option, with_setup
from facepipe.commands.output import INTERRUPTED, PARTIAL, bom_option, echo, echo_record, time_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facepipe.gallery.address import GalleryAddress
    from facepipe.pipeline import FacePipeline
    from facepipe.tracking import Track, VideoOptions


@click.command()
@click.argument("source", metavar="FILE|INDEX|ADDRESS")
@click.option("--every", type=float, default=0.2, show_default=True, metavar="S", help="Look this often.")
@click.option("--seconds", type=float, metavar="S", help="Stop after so much; webcams otherwise at Ctrl-C.")
@click.option("--threshold", type=float, metavar="L2", help="Largest distance at which a face is named.")
@click.option("--csv", "as_csv", is_flag=True, help="One CSV row per track, not JSON Lines.")
@bom_option
@click.option("--annotate", type=ANY_PATH, metavar="FILE.mp4", help="Write the video with names drawn.")
@force_option
@gallery_option
@with_setup
def video(
    setup: Setup,
    source: str,
    every: float,
    seconds: float | None,
    threshold: float | None,
    as_csv: bool,
    bom: bool,
    annotate: Path | None,
    force: bool,
    gallery_address: GalleryAddress,
) -> None:
    """Say who is in a video FILE, before the webcam of number INDEX or in the stream at ADDRESS, and when.

    An ADDRESS, such as rtsp://camera/1, is read from the network; a FILE never causes a connection.

    Prints a timeline: each person's or stranger's appearance with its first and last second. After Ctrl-C it
    holds what was seen until then.
    """
    from facepipe.core.overwriting import VIDEO
    from facepipe.pipeline import NamingOptions
    from facepipe.reports.pictures import require_place
    from facepipe.tracking import VideoOptions
    from facepipe.video import is_cut_off, is_stream, require_target

    if bom and not as_csv:
        raise click.UsageError("--bom goes with --csv.")
    webcam = source.isdecimal() and not Path(source).exists()
    if annotate and (webcam or is_stream(source)):
        raise click.UsageError("--annotate reads the video a second time: it needs a file.")
    if annotate:
        require_target(source, annotate)
        require_place(annotate, VIDEO, force=force, inputs=[Path(source)])
    options = VideoOptions(every_s=every, naming=NamingOptions(threshold_l2=threshold))
    with setup.pipeline(gallery_address) as pipeline:
        tracks, end_s, interrupted = _watched(pipeline, int(source) if webcam else source, options, seconds)
    _print_timeline(tracks, as_csv, bom)
    if interrupted and not webcam:
        left_out = "; no annotated video was written" if annotate else ""
        echo(f"facepipe: interrupted: the timeline ends at {end_s:.1f} s{left_out}", err=True)
        sys.exit(INTERRUPTED)
    if annotate:
        _annotate(source, annotate, tracks, end_s, seconds)
    if not webcam and is_cut_off(source) and (seconds is None or end_s + every < seconds):
        told = f"the file is cut off: the timeline ends at {end_s:.1f} s; copy it again from where it came"
        echo(f"facepipe: {source}: {told}", err=True)
        sys.exit(PARTIAL)


def _watched(
    pipeline: FacePipeline, source: str | int, options: VideoOptions, for_s: float | None
) -> tuple[list[Track], float, bool]:
    """Return the tracks, the time of the last frame that was analyzed, and whether Ctrl-C ended it."""
    from facepipe.tracking import Tracker
    from facepipe.video import read_frames, stated_duration_s

    tracker, end_s, interrupted = Tracker(pipeline, options), 0.0, False
    lengths_s = [length_s for length_s in (stated_duration_s(source), for_s) if length_s]
    with time_progress(min(lengths_s, default=None), "analyzing") as show:
        try:
            for frame in read_frames(source, options.every_s, for_s=for_s):
                tracker.add(frame)
                end_s = frame.time_s
                show(end_s)
        except KeyboardInterrupt:
            interrupted = True
    return tracker.tracks(), end_s, interrupted


def _print_timeline(tracks: Sequence[Track], as_csv: bool, bom: bool) -> None:
    from facepipe.core.csv_files import BOM, csv_line
    from facepipe.tracking import TIMELINE_COLUMNS, timeline_json, timeline_rows

    if as_csv:
        header = f"{BOM if bom else ''}{csv_line(TIMELINE_COLUMNS)}"
        lines = [header, *map(csv_line, timeline_rows(tracks))]
    else:
        lines = list(timeline_json(tracks))
    for line in lines:
        echo_record(line)


def _annotate(source: str, target: Path, tracks: Sequence[Track], end_s: float, for_s: float | None) -> None:
    from facepipe.video import write_annotated

    with time_progress(end_s, "drawing") as show:
        write_annotated(source, target, tracks, show, for_s=for_s)
