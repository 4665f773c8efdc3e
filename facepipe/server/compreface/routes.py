"""CompreFace's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from litestar import Request, Router, delete, get, post, put
from litestar.di import Provide
from litestar.params import Parameter
from msgspec import Struct

from facepipe.gallery.matching import PersonAt
from facepipe.quality_rules import NamingRules
from facepipe.server.compreface.forms import (
    answer_error,
    face_form,
    image_id,
    largest_faces,
    plugins_of,
    similarity,
    template_id,
)
from facepipe.server.compreface.subjects import Subjects
from facepipe.server.enrolling import enroll_photo
from facepipe.server.errors import RefusedError
from facepipe.server.keys import Scope
from facepipe.server.photo_tasks import AnalyzedPhoto, EncodeFaces, FindFaces
from facepipe.server.security import requires
from facepipe.server.services import Services
from facepipe.server.uploads import read_photos
from facepipe.shortcuts import compare

_FILE = ("file",)
_SOURCE_AND_TARGET = ("source_image", "target_image")
_MOST_PREDICTIONS = 1000
reads, identifies, changes = requires(Scope.READ), requires(Scope.IDENTIFY), requires(Scope.MANAGE)


class Asked(Struct, frozen=True):
    """What a request for faces asks for besides them."""

    limit: int
    min_score: float
    plugins: frozenset[str]
    status: bool


def asked(
    limit: Annotated[int, Parameter(ge=0)] = 0,
    det_prob_threshold: Annotated[float, Parameter(ge=0, le=1)] = 0.0,
    face_plugins: Annotated[str | None, Parameter()] = None,
    status: Annotated[str, Parameter()] = "false",
) -> Asked:
    """Read the options that all requests for faces share."""
    return Asked(limit, det_prob_threshold, plugins_of(face_plugins), status.lower() == "true")


class SubjectName(Struct, frozen=True):
    """A subject."""

    subject: str


# Subjects


@get("/recognition/subjects", guards=[reads], sync_to_thread=True)
def list_subjects(services: Services) -> dict[str, list[str]]:
    """Return all subjects."""
    return {"subjects": Subjects(services.gallery, services.database).names()}


@post("/recognition/subjects", guards=[changes], sync_to_thread=True)
def add_subject(services: Services, data: SubjectName) -> SubjectName:
    """Add a subject without a face."""
    return SubjectName(Subjects(services.gallery, services.database).add(data.subject))


@put("/recognition/subjects/{subject:str}", guards=[changes], sync_to_thread=True)
def rename_subject(services: Services, subject: str, data: SubjectName) -> dict[str, bool]:
    """Rename a subject; a subject that has the new name gets the faces."""
    Subjects(services.gallery, services.database).rename(unquote(subject), data.subject)
    return {"updated": True}


@delete("/recognition/subjects/{subject:str}", status_code=200, guards=[changes], sync_to_thread=True)
def delete_subject(services: Services, subject: str) -> SubjectName:
    """Erase a subject and all of its faces."""
    Subjects(services.gallery, services.database).remove(unquote(subject))
    return SubjectName(unquote(subject))


@delete("/recognition/subjects", status_code=200, guards=[changes], sync_to_thread=True)
def delete_all_subjects(services: Services) -> dict[str, int]:
    """Erase all subjects and their faces."""
    subjects = Subjects(services.gallery, services.database)
    names = subjects.names()
    for name in names:
        subjects.remove(name)
    return {"deleted": len(names)}


# Examples


@get("/recognition/faces", guards=[reads], sync_to_thread=True)
def list_examples(
    services: Services,
    page: Annotated[int, Parameter(ge=0, le=2**31)] = 0,
    size: Annotated[int, Parameter(ge=1, le=_MOST_PREDICTIONS)] = 20,
    subject: str | None = None,
) -> dict[str, Any]:
    """Return a page of the examples, subject by subject."""
    first, found, at = page * size, list[dict[str, str]](), 0
    with services.gallery.one_state():
        people = [one for one in services.gallery.people() if subject in (None, one.name)]
        for person in people:
            if at < first + size and at + person.template_count > first:
                templates = services.gallery.templates(person.name)
                some = templates[max(0, first - at) : first + size - at]
                found += [{"image_id": image_id(one.id), "subject": person.name} for one in some]
            at += person.template_count
    pages = {"page_number": page, "page_size": size, "total_pages": -(-at // size), "total_elements": at}
    return {"faces": found, **pages}


@post("/recognition/faces", guards=[changes])
async def add_example(
    request: Request[Any, Any, Any], services: Services, subject: str, asked: Asked
) -> dict[str, str]:
    """Add an example to a subject, who need not be there yet."""
    (photo,) = await read_photos(request, _FILE)
    enrolled = await enroll_photo(services, subject, photo, known=None, force=False)
    await asyncio.to_thread(Subjects(services.gallery, services.database).fill, subject)
    added = enrolled.id
    if added is None:
        added = await asyncio.to_thread(_stored_before, services, subject, photo)
    return {"image_id": image_id(added), "subject": subject}


def _stored_before(services: Services, subject: str, photo: bytes) -> int:
    digest = sha256(photo).hexdigest()
    templates = services.gallery.templates(subject)
    return next(template.id for template in templates if template.photo_sha256 == digest)


@delete("/recognition/faces", status_code=200, guards=[changes], sync_to_thread=True)
def delete_examples(services: Services, subject: str | None = None) -> dict[str, int]:
    """Erase all examples of a subject, or of all."""
    people = [one for one in services.gallery.people() if subject in (None, one.name)]
    return {"deleted": sum(services.gallery.remove(person.name) for person in people)}


@delete("/recognition/faces/{example:str}", status_code=200, guards=[changes], sync_to_thread=True)
def delete_example(services: Services, example: str) -> dict[str, str]:
    """Erase one example."""
    template = services.gallery.template(template_id(example))
    services.gallery.remove_templates([template.id])
    return {"image_id": image_id(template.id), "subject": template.person}


# Faces


@post("/recognition/recognize", status_code=200, guards=[identifies])
async def recognize(
    request: Request[Any, Any, Any],
    services: Services,
    asked: Asked,
    prediction_count: Annotated[int, Parameter(ge=0, le=_MOST_PREDICTIONS)] = 1,
) -> dict[str, Any]:
    """Find the faces of a photo, each with the subjects most like it."""
    found = await _encoded(request, services, asked)
    near = await asyncio.to_thread(_nearest, services, found, prediction_count)
    limit_l2 = await asyncio.to_thread(services.pipeline.threshold_l2)
    faces = [
        face_form(found, row, asked.plugins)
        | {
            "subjects": [
                {"subject": one.name, "similarity": similarity(one.distance_l2, limit_l2)} for one in people
            ]
        }
        for row, people in enumerate(near)
    ]
    return {"result": faces, **_versions(services, asked)}


def _nearest(services: Services, found: AnalyzedPhoto, count: int) -> list[Sequence[PersonAt]]:
    """Return the people nearest to each face; nobody where it is not good enough to be compared."""
    assert found.faces.embeddings is not None
    compared = [row for row, reason in enumerate(found.reasons) if reason is None]
    near = services.gallery.search(found.faces.embeddings[compared], count) if count else []
    by_row = dict(zip(compared, near, strict=False))
    return [by_row.get(row, []) for row in range(len(found.faces))]


@post("/recognition/faces/{example:str}/verify", status_code=200, guards=[identifies])
async def verify_example(
    request: Request[Any, Any, Any], services: Services, example: str, asked: Asked
) -> dict[str, Any]:
    """Compare the faces of a photo with an example."""
    stored = await asyncio.to_thread(services.gallery.template_vector, template_id(example))
    found = await _encoded(request, services, asked)
    limit_l2 = await asyncio.to_thread(services.pipeline.threshold_l2)
    assert found.faces.embeddings is not None
    distances = np.linalg.norm(found.faces.embeddings - stored, axis=1)
    faces = [
        face_form(found, row, asked.plugins) | _similar(float(distance), limit_l2)
        for row, distance in enumerate(distances)
    ]
    return {"result": faces, **_versions(services, asked)}


def _similar(distance_l2: float, threshold_l2: float) -> dict[str, float]:
    """The similarity; 0 of a face that was not good enough to be compared."""
    return {"similarity": similarity(distance_l2, threshold_l2) if np.isfinite(distance_l2) else 0.0}


@post("/verification/verify", status_code=200, guards=[identifies])
async def verify(request: Request[Any, Any, Any], services: Services, asked: Asked) -> dict[str, Any]:
    """Compare the largest face of one photo with the faces of another."""
    task = EncodeFaces(NamingRules())
    photos = await read_photos(request, _SOURCE_AND_TARGET)
    analyzed = await asyncio.gather(*(services.recognizer.analyze(photo, task) for photo in photos))
    source = largest_faces(analyzed[0], asked.min_score, 1)
    target = largest_faces(analyzed[1], asked.min_score, asked.limit)
    if source.reasons[0] is not None:
        message = f"source_image: the face is not good enough to be compared ({source.reasons[0].value})"
        raise RefusedError(400, "photo", message)
    matches = [
        face_form(target, row, asked.plugins) | _similar(*_compared(services, source, target, row))
        for row in range(len(target.faces))
    ]
    result = {"source_image_face": face_form(source, 0, asked.plugins), "face_matches": matches}
    return {"result": [result | _versions(services, asked)]}


def _compared(
    services: Services, source: AnalyzedPhoto, target: AnalyzedPhoto, row: int
) -> tuple[float, float]:
    """Distance and threshold of two faces."""
    if target.reasons[row] is not None:
        return float("nan"), 0.0
    answer = compare(services.pipeline, source.faces.select([0]), target.faces.select([row]))
    return answer.distance_l2, answer.threshold_l2


@post("/detection/detect", status_code=200, guards=[identifies])
async def detect(request: Request[Any, Any, Any], services: Services, asked: Asked) -> dict[str, Any]:
    """Find the faces of a photo."""
    if "calculator" in asked.plugins:
        found = await _encoded(request, services, asked)
    else:
        (photo,) = await read_photos(request, _FILE)
        found = await services.recognizer.analyze(photo, FindFaces())
        found = largest_faces(found, asked.min_score, asked.limit)
    faces = [face_form(found, row, asked.plugins) for row in range(len(found.faces))]
    return {"result": faces, **_versions(services, asked)}


async def _encoded(request: Request[Any, Any, Any], services: Services, asked: Asked) -> AnalyzedPhoto:
    (photo,) = await read_photos(request, _FILE)
    found = await services.recognizer.analyze(photo, EncodeFaces(NamingRules()))
    return largest_faces(found, asked.min_score, asked.limit)


def _versions(services: Services, asked: Asked) -> dict[str, dict[str, str]]:
    """The weights in use, where they are asked for."""
    if not asked.status:
        return {}
    pipeline = services.pipeline
    versions = {"detector": pipeline.detector.card.name, "calculator": pipeline.encoder.card.name}
    return {"plugins_versions": versions}


router = Router(
    "/api/v1",
    route_handlers=[
        list_subjects,
        add_subject,
        rename_subject,
        delete_subject,
        delete_all_subjects,
        list_examples,
        add_example,
        delete_examples,
        delete_example,
        recognize,
        verify_example,
        verify,
        detect,
    ],
    dependencies={"asked": Provide(asked, sync_to_thread=False)},
    exception_handlers={Exception: answer_error},
    include_in_schema=False,
    tags=["compreface"],
)
