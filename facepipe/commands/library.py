"""Commands on a library: names for groups, decisions to and fro, and undoing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, force_option, library_options
from facepipe.commands.output import echo, log
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.library.library import Library


@contextmanager
def opened_library(
    folder: Path, gallery_address: GalleryAddress | None, *, reading: bool = False
) -> Iterator[Library]:
    """Open a library; at the end all faces and results have the names that follow from a change.

    Args:
        folder: Of the batch.
        gallery_address: See `Library.open`.
        reading: Nothing will be changed: it is opened also where another process works with it.
    """
    from facepipe.library.library import Library

    with Library.open(folder, gallery_address, reading=reading) as library:
        if library.is_read_only:
            log(f"{folder}: another facepipe works with it; this is how it is now")
        before = library.version
        yield library
        if library.version != before:
            library.name_everything()
            library.write_results()


@click.command()
@click.argument("group", type=click.IntRange(1))
@click.argument("name")
@library_options
def name(group: int, name: str, library_folder: Path, gallery_address: GalleryAddress | None) -> None:
    """Give GROUP of a library's unknown faces a NAME, and name all faces again.

    Groups and their numbers are those of the report, the page and `facepipe cluster --library DIR`.
    """
    with opened_library(library_folder, gallery_address) as library:
        count = len(library.group(group).face_ids)
        library.name_group(group, name)
        library.name_everything()
        library.regroup()
        found = len(library.faces_of(name))
    echo(f"facepipe: {counted(count, 'face')} of group {group} confirmed as {name!r}", err=True)
    echo(f"facepipe: {counted(found, 'face')} of the library have this name now", err=True)


@click.group()
def library() -> None:
    """Manage what people decided about the faces of a batch."""


@library.command("export")
@click.argument("file", type=ANY_PATH)
@library_options
@force_option
def library_export(
    file: Path, library_folder: Path, force: bool, gallery_address: GalleryAddress | None
) -> None:
    """Write all decisions to a JSON FILE."""
    from facepipe.core.overwriting import DECISIONS
    from facepipe.library.transfer import export_decisions
    from facepipe.reports.pictures import require_place

    require_place(file, DECISIONS, force=force)
    with opened_library(library_folder, gallery_address, reading=True) as opened:
        count = export_decisions(opened, file)
    echo(f"facepipe: {counted(count, 'decision')} in {file}", err=True)


@library.command("import")
@click.argument("file", type=ANY_PATH)
@library_options
def library_import(file: Path, library_folder: Path, gallery_address: GalleryAddress | None) -> None:
    """Take over the decisions in FILE. Of two about one face the newer one holds."""
    from facepipe.library.transfer import import_decisions

    with opened_library(library_folder, gallery_address) as opened:
        report = import_decisions(opened, file)
    echo(f"facepipe: {counted(report.taken, 'decision')} taken over, {report.older} older left out", err=True)
    if report.waiting:
        waiting = counted(report.waiting, "decision")
        echo(f"facepipe: {waiting} about photos that the next batch may find", err=True)


@library.command("templates")
@click.argument("name")
@library_options
def library_templates(name: str, library_folder: Path, gallery_address: GalleryAddress | None) -> None:
    """List the confirmed faces of a person: templates of the gallery, and those set aside as redundant."""
    from facepipe.core.errors import UsageError

    with opened_library(library_folder, gallery_address, reading=True) as opened:
        useful, aside = opened.template_faces(name)
        if not useful and not aside:
            raise UsageError(f"{library_folder}: no face was confirmed as {name!r}: see `facepipe name`")
        for kind, faces in (("template", useful), ("set aside", aside)):
            for face in faces:
                echo(f"{kind:<9}  {face.id}  {opened.photos[face.photo_id].path}")


@library.command("undo")
@library_options
def library_undo(library_folder: Path, gallery_address: GalleryAddress | None) -> None:
    """Take back the last change that was not taken back."""
    with opened_library(library_folder, gallery_address) as opened:
        step = opened.undo()
    echo(f"facepipe: undone: {step.label}" if step else "facepipe: there is nothing to undo", err=True)
