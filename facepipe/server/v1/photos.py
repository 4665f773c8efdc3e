"""Routes that take photos: detect, embed, verify, identify, search."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from litestar import Request, Router, post
from litestar.params import Parameter

from facepipe.pipeline import NamingOptions, PhotoResult
from facepipe.quality_rules import NamingRules
from facepipe.server.errors import RefusedError
from facepipe.server.keys import Scope
from facepipe.server.photo_tasks import EVERY_FACE, AnalyzedPhoto, EncodeFaces, FindFaces
from facepipe.server.security import requires
from facepipe.server.services import Services
from facepipe.server.uploads import FIRST_AND_SECOND, PhotoOperation, TwoPhotosOperation, read_photos
from facepipe.server.v1.schemas import (
    EncodedFace,
    PhotoEmbeddings,
    PhotoFaces,
    PhotoSearch,
    SearchedFace,
    Verification,
    face_records,
    near_people,
)
from facepipe.shortcuts import compare

Threshold = Annotated[float | None, Parameter(ge=0, le=2, description="Instead of the gallery's.")]
_MOST_PEOPLE = 100
_PHOTO = "photo"


async def analyzed(request: Request[Any, Any, Any], services: Services, task: Any) -> AnalyzedPhoto:
    """Analyze the one photo of a request."""
    (photo,) = await read_photos(request)
    return await services.recognizer.analyze(photo, task)


def _photo_faces(found: AnalyzedPhoto) -> PhotoFaces:
    return PhotoFaces(_PHOTO, None, face_records(found.faces), _warnings(found))


def _warnings(found: AnalyzedPhoto) -> list[str]:
    result = PhotoResult(Path(_PHOTO), faces=found.faces, scale=found.scale)
    return [warning.value for warning in result.warnings]


@post("/detect", operation_id="detectFaces", operation_class=PhotoOperation, status_code=200)
async def detect(request: Request[Any, Any, Any], services: Services) -> PhotoFaces:
    """Find the faces of a photo."""
    return _photo_faces(await analyzed(request, services, FindFaces()))


@post("/embed", operation_id="embedFaces", operation_class=PhotoOperation, status_code=200)
async def embed(request: Request[Any, Any, Any], services: Services) -> PhotoEmbeddings:
    """Find the faces of a photo and encode them as unit vectors."""
    found = await analyzed(request, services, EncodeFaces(EVERY_FACE))
    assert found.faces.embeddings is not None
    faces = [
        EncodedFace(**asdict_of(record), embedding=row.tolist() if np.isfinite(row).all() else None)
        for record, row in zip(face_records(found.faces), found.faces.embeddings, strict=True)
    ]
    return PhotoEmbeddings(_PHOTO, None, faces, _warnings(found), services.pipeline.encoder.card.name)


def asdict_of(record: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a record."""
    return {name: getattr(record, name) for name in record.__struct_fields__}


@post("/identify", operation_id="identifyFaces", operation_class=PhotoOperation, status_code=200)
async def identify(
    request: Request[Any, Any, Any],
    services: Services,
    threshold_l2: Threshold = None,
    allow_repeats: Annotated[
        bool, Parameter(description="A person may be in the photo several times.")
    ] = False,
) -> PhotoFaces:
    """Find the faces of a photo and name them from the gallery as it is when the answer is made."""
    found = await analyzed(request, services, EncodeFaces(NamingRules()))
    options = NamingOptions(threshold_l2=threshold_l2, one_person_per_photo=not allow_repeats)
    name = services.pipeline.name
    matches = await asyncio.to_thread(name, found.faces, found.reasons, options)
    return PhotoFaces(_PHOTO, None, face_records(found.faces.with_matches(matches)), _warnings(found))


@post("/search", operation_id="searchPeople", operation_class=PhotoOperation, status_code=200)
async def search(
    request: Request[Any, Any, Any],
    services: Services,
    k: Annotated[int, Parameter(ge=1, le=_MOST_PEOPLE, description="How many people.")] = 5,
) -> PhotoSearch:
    """Find the people nearest to each face of a photo, with their distances, whatever the threshold."""
    found = await analyzed(request, services, EncodeFaces(NamingRules()))
    assert found.faces.embeddings is not None
    compared = [row for row, reason in enumerate(found.reasons) if reason is None]
    near = await asyncio.to_thread(services.gallery.search, found.faces.embeddings[compared], k)
    people = dict(zip(compared, near, strict=True))
    faces = zip(face_records(found.faces), found.reasons, strict=True)
    return PhotoSearch(
        [
            SearchedFace(one.box_xyxy, one.score, reason and reason.value, near_people(people.get(row, [])))
            for row, (one, reason) in enumerate(faces)
        ]
    )


@post("/verify", operation_id="verifyFaces", operation_class=TwoPhotosOperation, status_code=200)
async def verify(
    request: Request[Any, Any, Any], services: Services, threshold_l2: Threshold = None
) -> Verification:
    """Decide whether two photos show one person; of several faces in a photo the two nearest count."""
    photos = await read_photos(request, FIRST_AND_SECOND)
    task = EncodeFaces(NamingRules())
    found = await asyncio.gather(*(services.recognizer.analyze(photo, task) for photo in photos))
    first, second = (_comparable(one, name) for one, name in zip(found, FIRST_AND_SECOND, strict=True))
    answer = compare(services.pipeline, first.faces, second.faces, threshold_l2)
    share = answer.strangers_share
    return Verification(
        photos=list(FIRST_AND_SECOND),
        same_person=answer.same_person,
        distance_l2=round(answer.distance_l2, 4),
        threshold_l2=round(answer.threshold_l2, 4),
        strangers_share=share and float(f"{share:.2g}"),
        boxes_xyxy=[
            [round(float(side), 2) for side in face.box_xyxy] for face in (answer.first, answer.second)
        ],
        comparisons=answer.comparisons,
    )


def _comparable(found: AnalyzedPhoto, name: str) -> AnalyzedPhoto:
    """The faces that are good enough to be compared."""
    rows = [row for row, reason in enumerate(found.reasons) if reason is None]
    if not rows:
        why = ", ".join(sorted({reason.value for reason in found.reasons if reason})) or "no_face"
        message = f"{name}: no face that is good enough to be compared ({why})"
        raise RefusedError(422, "no_comparable_face", message)
    return AnalyzedPhoto(found.faces.select(rows), found.scale)


router = Router(
    "/v1",
    route_handlers=[detect, embed, verify, identify, search],
    guards=[requires(Scope.IDENTIFY)],
    tags=["photos"],
)
