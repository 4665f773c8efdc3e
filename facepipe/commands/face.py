"""Commands on one face: what is known of it, whose it is, and erasing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facepipe.commands.options import ANY_PATH, Command, gallery_place, key_file_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.errors import UsageError

if TYPE_CHECKING:
    from facepipe.core.faces import Match
    from facepipe.gallery import Gallery
    from facepipe.gallery.address import GalleryAddress
    from facepipe.gallery.audit import TemplateReport
    from facepipe.library.library import Library
    from facepipe.library.models import LibraryFace

_ID_DIGITS = 18
"""Of a template's number at most: more do not fit into 64 bits."""


class TemplateFace:
    """A template of a gallery, as these commands act on it.

    Args:
        gallery: Open.
        face_id: Its number, as `gallery audit` and `gallery show` print it.

    Raises:
        UsageError: That is no number.
    """

    def __init__(self, gallery: Gallery, face_id: str) -> None:
        if not (face_id.isascii() and face_id.isdigit() and len(face_id) <= _ID_DIGITS):
            raise UsageError(
                f"{face_id}: expected the number of a face in the gallery, as `facepipe gallery audit` and "
                "`facepipe gallery show NAME` print it"
            )
        self._gallery, self._id = gallery, int(face_id)

    def show(self, as_json: bool) -> None:
        """Print what is known of it."""
        from facepipe.core.json_lines import record_to_json
        from facepipe.gallery.audit import template_report

        report = template_report(self._gallery, self._id)
        if as_json:
            echo_record(record_to_json(report.to_dict()))
            return
        for line in _lines(report):
            echo(line)

    def give_to(self, name: str) -> str:
        """Make it a face of the person `name`; returns what was done."""
        from facepipe.gallery.names import clean_name

        before, name = self._gallery.template(self._id).person, clean_name(name)
        if self._gallery.move_templates([self._id], name):
            return f"face {self._id} of {before!r} is now one of {name!r}"
        if before == name:
            return f"face {self._id} is one of {name!r}; nothing was changed"
        return f"{name!r} has face {self._id} of {before!r} already; {before!r} has it no more"

    def reject(self) -> str:
        """Refuse: a template always has a person.

        Raises:
            UsageError: Always.
        """
        self._gallery.template(self._id)
        raise UsageError(
            f"face {self._id} is enrolled, so it is somebody's: erase it (`facepipe face remove {self._id}`) "
            f"or give it to somebody else (`facepipe face move {self._id} NAME`)"
        )

    def remove(self) -> str:
        """Erase it; returns what was done."""
        before = self._gallery.template(self._id).person
        self._gallery.remove_templates([self._id])
        is_forgotten = not self._gallery.knows(before)
        forgotten = f"; it was the last of {before!r}, who is forgotten" if is_forgotten else ""
        return f"erased face {self._id} of {before!r}{forgotten}"


def _lines(report: TemplateReport) -> Iterator[str]:
    template = report.template
    yield f"face {template.id} of {template.person}"
    yield f"photo    {template.source or 'not known'}"
    if template.box_xyxy is not None:
        sides = ", ".join(f"{side:.0f}" for side in template.box_xyxy)
        yield f"box      {sides} px (left, top, right, bottom)"
    if template.quality is not None:
        yield f"quality  sharpness {template.quality:.2f}"
    yield f"added    {template.added_at}"
    if report.own_l2 is not None:
        yield f"nearest  {report.own_l2:.3f}  another face of {template.person}"
    for other in report.others:
        yield f"other    {other.distance_l2:.3f}  {other.name}"


class LibraryFaceTarget:
    """A face of a library, as these commands act on it.

    Args:
        library: Open.
        face_id: Its id, or a unique beginning of it.

    Raises:
        UsageError: There is no such face.
    """

    def __init__(self, library: Library, face_id: str) -> None:
        self._library, self._face = library, library.face(face_id)

    def show(self, as_json: bool) -> None:
        """Print what is known of it."""
        from facepipe.core.json_lines import record_to_json

        face, photo = self._face, self._library.photos[self._face.photo_id]
        if as_json:
            echo_record(record_to_json({"photo": photo.path, **_face_to_dict(face)}))
            return
        echo(f"face {face.id}: {face.match.label}{' (confirmed)' if face.is_confirmed else ''}")
        echo(f"photo    {photo.path}")
        sides = ", ".join(f"{side:.0f}" for side in face.box_xyxy)
        echo(f"box      {sides} px (left, top, right, bottom)")
        if face.decision is not None and face.decision.not_names:
            echo(f"not      {', '.join(sorted(face.decision.not_names))}")
        for line in _match_lines(face.match):
            echo(line)

    def give_to(self, name: str) -> str:
        """Confirm that it is the person `name`; returns what was done."""
        return self._library.confirm([self._face.id], name).label

    def reject(self) -> str:
        """Say that it is not the person whose name it has, or may have; returns what was done.

        Raises:
            UsageError: It has no name.
        """
        name = self._face.name or self._face.match.candidate_name
        if name is None:
            raise UsageError(f"face {self._face.id} has no name that could be rejected")
        return self._library.reject([self._face.id], name).label

    def remove(self) -> str:
        """Say that it is not a face; returns what was done."""
        return self._library.mark_not_faces([self._face.id]).label


def _face_to_dict(face: LibraryFace) -> dict[str, Any]:
    decision = face.decision
    return {
        "id": face.id,
        "box_xyxy": face.box_xyxy,
        "score": round(face.score, 4),
        "match": asdict(face.match),
        "verdict": decision and decision.verdict and decision.verdict.value,
        "not_names": sorted(decision.not_names) if decision else [],
        "group": face.group,
    }


def _match_lines(match: Match) -> Iterator[str]:
    if match.distance_l2 is not None:
        yield f"nearest  {match.distance_l2:.3f}  (threshold {match.threshold_l2:.3f})"
    if match.runner_up_distance_l2 is not None:
        yield f"next     {match.runner_up_distance_l2:.3f}  {match.runner_up_name}"
    if match.reason is not None:
        yield f"reason   {match.reason}"


@contextmanager
def _opened_face(
    gallery_address: GalleryAddress | None,
    library_folder: Path | None,
    face_id: str,
    *,
    reading: bool = False,
) -> Iterator[TemplateFace | LibraryFaceTarget]:
    from facepipe.commands.library import opened_library
    from facepipe.gallery import Gallery
    from facepipe.gallery.address import default_address

    if library_folder is not None:
        with opened_library(library_folder, gallery_address, reading=reading) as library:
            yield LibraryFaceTarget(library, face_id)
        return
    with Gallery.open(gallery_address or default_address()) as gallery:
        yield TemplateFace(gallery, face_id)


@click.group()
def face() -> None:
    """Act on one face: of a gallery, by its number, or of a batch (--library), by its id.

    `gallery show NAME` and `gallery audit` print the numbers; `cluster --library DIR --json` prints ids.
    """


def _face_options(command: Command) -> Command:
    """ID, and where it is: `--library DIR --gallery DIR|URL --key-file FILE`."""
    library = click.option(
        "--library",
        "library_folder",
        type=ANY_PATH,
        metavar="DIR",
        help="Folder of a batch, its --out: ID is one of its faces, 12 hexadecimal digits.",
    )
    gallery = click.option(
        "--gallery",
        "gallery_address",
        type=gallery_place,
        metavar="DIR|URL",
        help="Folder or URL of the gallery.  [default: that of the batch, else as of other commands]",
    )
    face_id = click.argument("face_id", metavar="ID")
    return face_id(library(gallery(key_file_option(command))))


@face.command("show")
@_face_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def face_show(
    gallery_address: GalleryAddress | None, library_folder: Path | None, face_id: str, as_json: bool
) -> None:
    """Whose it is, its photo, and the other people whom it looks like, with distances."""
    with _opened_face(gallery_address, library_folder, face_id, reading=True) as opened:
        opened.show(as_json)


@face.command("name")
@_face_options
@click.argument("name")
def face_name(
    gallery_address: GalleryAddress | None, library_folder: Path | None, face_id: str, name: str
) -> None:
    """Say whose it is; who had it, has it no more."""
    with _opened_face(gallery_address, library_folder, face_id) as opened:
        done = opened.give_to(name)
    echo(f"facepipe: {done}", err=True)


@face.command("move")
@_face_options
@click.argument("name")
def face_move(
    gallery_address: GalleryAddress | None, library_folder: Path | None, face_id: str, name: str
) -> None:
    """Give it to another person, who need not be enrolled yet."""
    with _opened_face(gallery_address, library_folder, face_id) as opened:
        done = opened.give_to(name)
    echo(f"facepipe: {done}", err=True)


@face.command("reject")
@_face_options
def face_reject(gallery_address: GalleryAddress | None, library_folder: Path | None, face_id: str) -> None:
    """Say that it is not the person whose name it has; of a batch only."""
    with _opened_face(gallery_address, library_folder, face_id) as opened:
        done = opened.reject()
    echo(f"facepipe: {done}", err=True)


@face.command("remove")
@_face_options
def face_remove(gallery_address: GalleryAddress | None, library_folder: Path | None, face_id: str) -> None:
    """Erase an enrolled face; who has no other is forgotten. In a batch: say that it is not a face."""
    with _opened_face(gallery_address, library_folder, face_id) as opened:
        done = opened.remove()
    echo(f"facepipe: {done}", err=True)
