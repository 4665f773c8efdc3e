"""`facepipe cluster`: groups of unknown faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, force_option, gallery_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.unknown_faces import UnknownGroup

distance_option = click.option(
    "--distance", type=float, metavar="L2", help="Largest mean distance in a group of unknown faces."
)


@click.command()
@distance_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per group and line.")
@click.option("--html", type=ANY_PATH, metavar="FILE", help="Write a page with sample faces.")
@force_option
@gallery_option
def cluster(
    gallery_path: Path, distance: float | None, as_json: bool, html: Path | None, force: bool
) -> None:
    """Group the faces that `identify --remember-unknown` kept: those good enough to be enrolled.

    Give a group a name with `enroll --cluster NUMBER --name NAME`.
    """
    from facepipe.core.overwriting import PAGE
    from facepipe.gallery import Gallery
    from facepipe.reports.face_pages import groups_page
    from facepipe.reports.pictures import require_place, write_page
    from facepipe.unknown_faces import unknown_groups

    if html is not None:
        require_place(html, PAGE, force=force)
    with Gallery.open(gallery_path) as gallery, gallery.one_state():
        groups = unknown_groups(gallery, distance)
        if html is not None:
            write_page(html, groups_page(gallery, groups))
    for group in groups:
        if as_json:
            echo_record(group.to_json())
        else:
            echo(_line(group))
    count = sum(len(group.faces) for group in groups)
    echo(f"facepipe: {counted(len(groups), 'group')} of {counted(count, 'unknown face')}", err=True)


def _line(group: UnknownGroup) -> str:
    photos = sorted({face.source for face in group.faces if face.source})
    more = f" and {len(photos) - 3} more" if len(photos) > 3 else ""
    return f"{group.id:6d}  {counted(len(group.faces), 'face')}  {', '.join(photos[:3])}{more}"
