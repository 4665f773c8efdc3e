"""`facepipe gallery audit`: what looks wrong in a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, force_option, gallery_option
from facepipe.commands.output import echo, echo_record
from facepipe.core.counting import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from facepipe.gallery.address import GalleryAddress
    from facepipe.gallery.audit import Audit


@click.command()
@click.option("--threshold", type=float, metavar="L2", help="Faces within it count as one person's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--html", type=ANY_PATH, metavar="FILE", help="Write a page with the faces.")
@force_option
@gallery_option
def audit(
    gallery_address: GalleryAddress, threshold: float | None, as_json: bool, html: Path | None, force: bool
) -> None:
    """Find faces under wrong names, people under two names, names that look the same, and few photos."""
    from facepipe.core.json_lines import record_to_json
    from facepipe.core.overwriting import PAGE
    from facepipe.gallery import Gallery
    from facepipe.gallery.audit import audit as audited
    from facepipe.pipeline import known_identity
    from facepipe.reports.face_pages import audit_page
    from facepipe.reports.pictures import require_place, write_page

    if html is not None:
        require_place(html, PAGE, force=force)
    with Gallery.open(gallery_address) as gallery, gallery.one_state():
        gallery.encoder = known_identity(gallery.encoder)
        found = audited(gallery, threshold)
        if html is not None:
            write_page(html, audit_page(gallery, found))
    if as_json:
        echo_record(record_to_json(found.to_dict()))
        return
    for line in _lines(found):
        echo(line)
    echo(
        f"facepipe: {counted(found.people, 'person')}, {counted(found.templates, 'face')} compared", err=True
    )


def _lines(found: Audit) -> Iterator[str]:
    for suspect in found.mislabelled:
        template, said = suspect.template, ", ".join(map(str, suspect.remarks))
        yield f"face {template.id} of {template.person}: {said}  {template.source or ''}"
    for pair in found.same_people:
        yield f"one person? {pair.first} and {pair.second}: {pair.distance_l2:.2f} apart"
    for names in found.similar_names:
        yield f"one person? {' and '.join(map(repr, names))}: their names look the same"
    for person in found.few_photos:
        yield f"few photos: {person.name}: {person.template_count}"
