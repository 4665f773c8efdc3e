"""Pages of faces: what an audit found, and groups of unknown faces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from facepipe.core.counting import counted
from facepipe.gallery import Gallery, Template
from facepipe.gallery.audit import FEW_TEMPLATES, Audit, Suspect
from facepipe.images.face_crops import thumbnail
from facepipe.reports.html import Figure, page, paragraph, sheet, table
from facepipe.unknown_faces import UnknownGroup

_FACES_OF_PERSON = 4
_FACES_OF_GROUP = 12


def audit_page(gallery: Gallery, found: Audit) -> str:
    """Return the findings with pictures: kept crops, or cut again from photos that are where they were."""
    sections = {
        "Perhaps under a wrong name": _suspects(gallery, found.mislabelled),
        "Perhaps one person under two names": _pairs(gallery, found),
        f"Fewer than {FEW_TEMPLATES} photos": [
            table(("name", "photos"), [(person.name, person.template_count) for person in found.few_photos])
        ],
    }
    summary = (
        f"{counted(found.people, 'person')}, {counted(found.templates, 'face')}; "
        f"faces within {found.threshold_l2:.2f} of each other count as one person's."
    )
    return page("Gallery audit", {"Summary": [paragraph(summary)], **sections})


def groups_page(gallery: Gallery, groups: Sequence[UnknownGroup]) -> str:
    """Return each group with its most typical faces."""
    how = "Give a group a name with: facepipe enroll --cluster NUMBER --name NAME"
    sections = {
        f"Group {group.id}: {counted(len(group.faces), 'face')}": [
            sheet(
                Figure(thumbnail(face, gallery.unknown_crop(face.id)), "", (face.source or "",))
                for face in group.faces[:_FACES_OF_GROUP]
            )
        ]
        for group in groups
    }
    return page("Unknown faces", {counted(len(groups), "group"): [paragraph(how)], **sections})


def _suspects(gallery: Gallery, suspects: Sequence[Suspect]) -> Iterator[str]:
    """Yield each beside the person's own faces and those of the person it resembles."""
    if not suspects:
        yield paragraph("None found.")
    for suspect in suspects:
        template = suspect.template
        odd = Figure(_picture(gallery, template), template.person, tuple(map(str, suspect.remarks)))
        yield paragraph(f"Face {template.id}, {template.source or 'of an unknown photo'}")
        others = [] if suspect.other is None else _faces(gallery, suspect.other.name)
        yield sheet([odd, *_faces(gallery, template.person, template.id), *others])


def _pairs(gallery: Gallery, found: Audit) -> Iterator[str]:
    if not found.same_people and not found.similar_names:
        yield paragraph("None found.")
    for names in found.similar_names:
        yield paragraph(f"{' and '.join(map(repr, names))}: the names look the same")
    for pair in found.same_people:
        yield paragraph(f"{pair.first} and {pair.second}: {pair.distance_l2:.2f} apart")
        yield sheet([*_faces(gallery, pair.first), *_faces(gallery, pair.second)])


def _faces(gallery: Gallery, name: str, without_id: int | None = None) -> list[Figure]:
    templates = [template for template in gallery.templates(name) if template.id != without_id]
    return [Figure(_picture(gallery, template), name) for template in templates[:_FACES_OF_PERSON]]


def _picture(gallery: Gallery, template: Template) -> bytes | None:
    return thumbnail(template, gallery.crop(template.id))
