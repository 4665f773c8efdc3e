"""`facepipe cluster`: groups of unknown faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, force_option, gallery_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.unknown_faces import UnknownGroup

distance_option = click.option(
    "--distance", type=float, metavar="L2", help="Largest mean distance in a group of unknown faces."
)


@click.command()
@click.option(
    "--library",
    "library_folder",
    type=ANY_PATH,
    metavar="DIR",
    help="Folder of a batch, its --out: the groups of its unknown faces.",
)
@distance_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per group and line.")
@click.option("--html", type=ANY_PATH, metavar="FILE", help="Write a page with sample faces.")
@force_option
@gallery_option
def cluster(
    gallery_address: GalleryAddress,
    library_folder: Path | None,
    distance: float | None,
    as_json: bool,
    html: Path | None,
    force: bool,
) -> None:
    """Group unknown faces that are good enough to be enrolled.

    With --library, those of a batch: name a group with `facepipe name GROUP NAME --library DIR`. Else those
    that `identify --remember-unknown` kept: name a group with `enroll --cluster GROUP --name NAME`.
    """
    if library_folder is not None:
        if html is not None or distance is not None:
            raise click.UsageError("--html and --distance do not go with --library: see its report.html.")
        _list_library_groups(library_folder, as_json)
        return
    from facepipe.core.overwriting import PAGE
    from facepipe.gallery import Gallery
    from facepipe.reports.face_pages import groups_page
    from facepipe.reports.pictures import require_place, write_page
    from facepipe.unknown_faces import unknown_groups

    if html is not None:
        require_place(html, PAGE, force=force)
    with Gallery.open(gallery_address) as gallery, gallery.one_state():
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


def _list_library_groups(folder: Path, as_json: bool) -> None:
    from facepipe.commands.library import opened_library
    from facepipe.core.json_lines import record_to_json

    with opened_library(folder, None, reading=True) as library:
        groups = library.groups()
        for group in groups:
            faces = [library.faces[id] for id in group.face_ids]
            photos = [library.photos[face.photo_id].path for face in faces]
            if as_json:
                shown = [
                    {"id": face.id, "photo": photo, "box_xyxy": face.box_xyxy}
                    for face, photo in zip(faces, photos, strict=True)
                ]
                echo_record(record_to_json({"group": group.number, "faces": shown}))
            else:
                echo(_group_line(group.number, len(faces), {str(photo) for photo in photos}))
    count = sum(len(group.face_ids) for group in groups)
    echo(f"facepipe: {counted(len(groups), 'group')} of {counted(count, 'unknown face')}", err=True)


def _line(group: UnknownGroup) -> str:
    return _group_line(group.id, len(group.faces), {face.source for face in group.faces if face.source})


def _group_line(number: int, face_count: int, photos: set[str]) -> str:
    named = sorted(photos)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{number:6d}  {counted(face_count, 'face')}  {', '.join(named[:3])}{more}"
