"""`facepipe gallery reembed`: another encoder for a gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, gallery_option, with_setup
from facepipe.commands.output import echo, echo_record, with_progress
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.reembedding import Reembedding


@click.command()
@click.option(
    "--photos-from",
    type=ANY_PATH,
    multiple=True,
    metavar="PATH",
    help="Photos that were moved are here: a folder, file or glob; repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--drop-missing", is_flag=True, help="Erase faces that can't be encoded again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@gallery_option
@with_setup
def reembed(
    setup: Setup,
    gallery_address: GalleryAddress,
    photos_from: tuple[Path, ...],
    dry_run: bool,
    drop_missing: bool,
    as_json: bool,
) -> None:
    """Make the gallery anew for another encoder, --encoder-weights, with the same people and ids.

    Faces are encoded from their kept crops, else from the photos, which must be unchanged. Shows which faces
    would get another name if they were new, then switches: in one step, or not at all where a face can't be
    encoded. Take a backup first (`gallery backup`) if you may want to go back.
    """
    from facepipe.gallery import Gallery
    from facepipe.reembedding import reembed as reembedded
    from facepipe.reembedding import switch

    with setup.pipeline() as pipeline, Gallery.open(gallery_address) as gallery:
        found = reembedded(
            gallery,
            pipeline,
            photos_from=photos_from,
            max_pixels=setup.max_pixels(),
            progress=lambda faces, total: with_progress(faces, total, "encoding"),
        )
        _show(found, as_json)
        if dry_run:
            return
        erased = switch(gallery, found, drop_missing=drop_missing)
    with Gallery.open(gallery_address, found.change.encoder) as opened:  # Wipes what is left of old vectors.
        opened.rebuild_index()
    gone = f"; {counted(erased, 'face')} erased" if erased else ""
    echo(f"facepipe: {gallery_address} is a gallery of {found.change.encoder.name} now{gone}", err=True)


def _show(found: Reembedding, as_json: bool) -> None:
    from facepipe.core.json_lines import record_to_json

    if as_json:
        echo_record(record_to_json(found.to_dict()))
    else:
        for line in _lines(found):
            echo(line)
    for sentence in _summary(found):
        echo(f"facepipe: {sentence}", err=True)


def _lines(found: Reembedding) -> Iterator[str]:
    for encoded in found.missing:
        name = getattr(encoded.face, "person", None)
        of = f"face {encoded.face.id} of {name}" if name else f"unknown face {encoded.face.id}"
        yield f"missing: {of}: {encoded.problem}"
    for threshold in found.thresholds:
        yield f"threshold: {threshold}"
    for names in found.changed:
        template = names.template
        both = f"{names.before.label} -> {names.after.label}"
        yield f"name: face {template.id} of {template.person}: {both}  {template.source or ''}"


def _summary(found: Reembedding) -> Iterator[str]:
    from facepipe.stored_faces import Origin

    crops, photos = found.count_from(Origin.CROP), found.count_from(Origin.PHOTO)
    yield (
        f"{counted(crops + photos, 'face')} encoded by {found.change.encoder.name}: {crops} from kept crops, "
        f"{photos} from photos; {len(found.missing)} can't be"
    )
    templates = len(found.change.templates)
    yield (
        f"each named by all others, {found.right_before} of {templates} get their name now, "
        f"{found.right_after} then; {counted(len(found.changed), 'face')} would be named differently"
    )
