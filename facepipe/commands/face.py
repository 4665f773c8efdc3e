"""Commands on one face: what is known of it, whose it is, and erasing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import gallery_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.errors import UsageError

if TYPE_CHECKING:
    from facepipe.gallery import Gallery
    from facepipe.gallery.audit import TemplateReport

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


@contextmanager
def _opened_face(gallery_path: Path, face_id: str) -> Iterator[TemplateFace]:
    from facepipe.gallery import Gallery

    with Gallery.open(gallery_path) as gallery:
        yield TemplateFace(gallery, face_id)


@click.group()
def face() -> None:
    """Act on one face, by the number that `gallery show NAME` and `gallery audit` print."""


face_argument = click.argument("face_id", metavar="ID")


@face.command("show")
@face_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@gallery_option
def face_show(gallery_path: Path, face_id: str, as_json: bool) -> None:
    """Whose it is, its photo, and the other people whom it looks like, with distances."""
    with _opened_face(gallery_path, face_id) as opened:
        opened.show(as_json)


@face.command("name")
@face_argument
@click.argument("name")
@gallery_option
def face_name(gallery_path: Path, face_id: str, name: str) -> None:
    """Say whose it is; who had it, has it no more."""
    with _opened_face(gallery_path, face_id) as opened:
        done = opened.give_to(name)
    echo(f"facepipe: {done}", err=True)


@face.command("move")
@face_argument
@click.argument("name")
@gallery_option
def face_move(gallery_path: Path, face_id: str, name: str) -> None:
    """Give it to another person, who need not be enrolled yet."""
    with _opened_face(gallery_path, face_id) as opened:
        done = opened.give_to(name)
    echo(f"facepipe: {done}", err=True)


@face.command("reject")
@face_argument
@gallery_option
def face_reject(gallery_path: Path, face_id: str) -> None:
    """Say that it is not the person whose name it has."""
    with _opened_face(gallery_path, face_id) as opened:
        done = opened.reject()
    echo(f"facepipe: {done}", err=True)


@face.command("remove")
@face_argument
@gallery_option
def face_remove(gallery_path: Path, face_id: str) -> None:
    """Erase it: embedding, crop and path. Whoever has no other face is forgotten."""
    with _opened_face(gallery_path, face_id) as opened:
        done = opened.remove()
    echo(f"facepipe: {done}", err=True)
