"""CompreFace's forms: faces, similarities, ids of examples, errors."""

from __future__ import annotations

import math
from typing import Any
from uuid import UUID

import numpy as np
from litestar import Request, Response
from msgspec import Struct

from facepipe.core.errors import PhotoError
from facepipe.core.faces import Faces, FloatArray
from facepipe.server.errors import RefusedError, as_refused, log_failure
from facepipe.server.photo_tasks import AnalyzedPhoto
from facepipe.server.scopes import request_id_of

_STEEPNESS = 10.0
_PLUGINS = ("calculator", "landmarks")
"""Of CompreFace's face plugins, those whose results we have."""

_NOT_FOUND, _INVALID, _NO_FACE, _TOO_MANY_FACES, _UNDEFINED = 11, 26, 28, 31, 0
"""CompreFace's codes of errors."""


class FaceBox(Struct, frozen=True):
    """Where a face is, and how sure that is."""

    probability: float
    x_max: int
    y_max: int
    x_min: int
    y_min: int


def face_form(found: AnalyzedPhoto, row: int, plugins: frozenset[str]) -> dict[str, Any]:
    """Return a face with its box and what the asked-for plugins add."""
    faces = found.faces
    left, top, right, bottom = (round(float(side)) for side in faces.boxes_xyxy[row])
    form: dict[str, Any] = {"box": FaceBox(round(float(faces.scores[row]), 5), right, bottom, left, top)}
    if "landmarks" in plugins:
        form["landmarks"] = [[round(float(x)), round(float(y))] for x, y in faces.landmarks[row]]
    if "calculator" in plugins and faces.embeddings is not None:
        form["embedding"] = faces.embeddings[row].tolist() if np.isfinite(faces.embeddings[row]).all() else []
    return form


def similarity(distance_l2: float, threshold_l2: float) -> float:
    """Return a similarity in 0..1 that falls with the distance and is 0.5 at the threshold."""
    return round(1 / (1 + math.exp(_STEEPNESS * (distance_l2 - threshold_l2))), 5)


def plugins_of(text: str | None) -> frozenset[str]:
    """Return the asked-for plugins.

    Raises:
        RefusedError: One whose results there are not.
    """
    names = frozenset(name for name in (text or "").split(",") if name)
    if missing := sorted(names.difference(_PLUGINS)):
        message = f"face plugins: {', '.join(missing)} not available; there are {', '.join(_PLUGINS)}"
        raise RefusedError(400, "plugin", message)
    return names


def largest_faces(found: AnalyzedPhoto, min_score: float, limit: int) -> AnalyzedPhoto:
    """Return the faces that are sure enough, the largest first, at most `limit`; 0: all.

    Raises:
        RefusedError: There is none.
    """
    rows = _largest_first(found.faces)
    rows = [row for row in rows if found.faces.scores[row] >= min_score][: limit or None]
    if not rows:
        raise RefusedError(400, "no_face", "No face is found in the given image")
    reasons = tuple(found.reasons[row] for row in rows) if found.reasons else ()
    return AnalyzedPhoto(found.faces.select(rows), found.scale, reasons)


def _largest_first(faces: Faces) -> list[int]:
    sides: FloatArray = faces.boxes_xyxy[:, 2:] - faces.boxes_xyxy[:, :2]
    return [int(row) for row in np.argsort(-sides.prod(axis=1), kind="stable")]


def image_id(template_id: int) -> str:
    """Return the id of an example: the template's, as a UUID."""
    return str(UUID(int=template_id))


def template_id(text: str) -> int:
    """Return the template that an example's id names.

    Raises:
        RefusedError: It is no UUID.
    """
    try:
        number = UUID(text).int
    except ValueError as error:
        raise RefusedError(400, "bad_request", f"image_id: expected a UUID, got {text[:80]!r}") from error
    return number


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """Answer a failure in CompreFace's form: a message and a code."""
    refused = as_refused(error)
    log_failure(refused, error, request_id_of(request.scope))
    is_photo = isinstance(error, PhotoError) or refused.status in (409, 415, 422)
    status = 400 if is_photo else refused.status
    body = {"message": str(refused), "code": _code(refused)}
    return Response(body, status_code=status, headers=refused.headers, media_type="application/json")


def _code(refused: RefusedError) -> int:
    by_code = {"no_face": _NO_FACE, "several_faces": _TOO_MANY_FACES, "not_found": _NOT_FOUND}
    return by_code.get(refused.code, _INVALID if 400 <= refused.status < 500 else _UNDEFINED)
