"""Enrollment of a photo that a request brought."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from facepipe.enrollment import Outcome
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.audit import FaceRemark, remarks_on_new
from facepipe.images.face_crops import box_of
from facepipe.quality_rules import EnrollRules
from facepipe.server.errors import RefusedError
from facepipe.server.photo_tasks import AnalyzedPhoto, EncodeMainFace
from facepipe.server.services import Services


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What became of a photo.

    Attributes:
        outcome: Stored, or stored before.
        id: Of the new template; None: it was stored before.
        reasons: Codes that speak against the photo, where it was forced.
        sentence: The same for people.
        warnings: What is odd about the face beside the gallery's others.
    """

    outcome: Outcome
    id: int | None
    reasons: tuple[str, ...] = ()
    sentence: str = ""
    warnings: tuple[FaceRemark, ...] = ()


async def enroll_photo(
    services: Services, name: str, photo: bytes, *, known: bool | None, force: bool
) -> Enrolled:
    """Store the main face of a photo as a template of a person; what has returned is on disk.

    Args:
        services: Of the worker.
        name: The person.
        photo: Bytes of the file.
        known: Whether somebody must have this name already, or nobody may; None: either.
        force: Take the largest face though it breaks the rules.

    Raises:
        RefusedError: The face breaks the rules for enrollment and is not forced, or there is none.
        UnknownPersonError: Nobody has the name, and somebody must.
        NameTakenError: Somebody has the name, and nobody may.
    """
    found = await services.recognizer.analyze(photo, EncodeMainFace(EnrollRules()))
    assert found.main is not None
    reasons = tuple(refusal.reason.value for refusal in found.main.refusals)
    sentence = "; ".join(refusal.sentence for refusal in found.main.refusals)
    if found.main.face is None or (reasons and not force):
        raise RefusedError(422, reasons[0], sentence)
    template = _template(found, hashlib.sha256(photo).hexdigest())
    warnings, ids = await asyncio.to_thread(_store, services.gallery, name, template, known)
    if not ids:
        return Enrolled(Outcome.KNOWN, None, reasons, sentence)
    return Enrolled(Outcome.ENROLLED, ids[0], reasons, sentence, warnings)


def _store(
    gallery: Gallery, name: str, template: NewTemplate, known: bool | None
) -> tuple[tuple[FaceRemark, ...], list[int]]:
    """Store a template; returns what is odd about it beside the others, and its id if it is new."""
    return remarks_on_new(gallery, name, template.embedding), gallery.add(name, [template], known=known)


def _template(found: AnalyzedPhoto, digest: str) -> NewTemplate:
    assert found.main is not None
    assert found.main.face is not None
    assert found.faces.embeddings is not None
    row = found.main.face.row
    return NewTemplate(
        embedding=found.faces.embeddings[row],
        box_xyxy=box_of(found.faces, row),
        quality=found.main.face.measures.sharpness,
        photo_sha256=digest,
    )
