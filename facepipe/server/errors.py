"""Errors as answers: one JSON form for all, and the status of each kind."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from facepipe.core.errors import FacepipeError, PhotoError, UsageError, one_line
from facepipe.core.plain_text import text_of
from facepipe.gallery.names import BadNameError, NameTakenError, UnknownPersonError
from facepipe.gallery.storage.errors import BusyDatabaseError, LostDatabaseError, UnknownOutcomeError
from facepipe.gallery.storage.face_table import UnknownFaceError
from facepipe.server.scopes import request_id_of

RETRY_AFTER_S = 1
"""Advice to clients that found the server busy."""
_logger = logging.getLogger("facepipe")


class ApiError(msgspec.Struct, frozen=True):
    """Why a request failed.

    Attributes:
        code: Stable, for programs.
        message: For people.
        request_id: As in the log and in the header `X-Request-ID`.
    """

    code: str
    message: str
    request_id: str


class RefusedError(FacepipeError):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        code: Stable, for programs.
        message: For people.
        retry_after_s: When to try again; None: not at all.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer besides its form."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})


def not_found(what: str) -> RefusedError:
    """404: there is no such thing."""
    return RefusedError(404, "not_found", what)


def as_refused(error: Exception) -> RefusedError:
    """Return what is answered to a failure; a defect of ours tells clients nothing of itself."""
    match error:
        case RefusedError():
            return error
        case PhotoError():
            return RefusedError(422, "photo", text_of(str(error)))
        case UsageError():
            return RefusedError(400, "bad_request", text_of(str(error)))
        case UnknownPersonError() | UnknownFaceError():
            return RefusedError(404, "not_found", str(error))
        case NameTakenError():
            return RefusedError(409, "name_taken", str(error))
        case BadNameError():
            return RefusedError(400, "name", str(error))
        case BusyDatabaseError():
            return RefusedError(503, "busy", "the gallery is busy: try again", RETRY_AFTER_S)
        case UnknownOutcomeError():
            return RefusedError(503, "unknown_outcome", "whether it was done is not known: look first")
        case LostDatabaseError():
            return RefusedError(
                503,
                "gallery_unreachable",
                "the gallery's database can't be reached: try again",
                RETRY_AFTER_S,
            )
        case HTTPException() if error.status_code < 500:
            return RefusedError(error.status_code, _code_of(error.status_code), _detail(error))
        case RecursionError() if "deserializing" in str(error):  # msgspec's, of a body
            return RefusedError(400, "bad_request", "JSON is nested too deeply")
        case _:
            return RefusedError(500, "internal", "the server failed; its log says why, under the request id")


def _detail(error: HTTPException) -> str:
    parts = error.extra if isinstance(error.extra, list) else []
    found = [_problem(part.get("key", ""), part["message"]) for part in parts if "message" in part]
    return one_line("; ".join(found) or error.detail)


def _problem(key: str, message: str) -> str:
    """Litestar's message of what is missing is no more than its name in quotes."""
    return f"{key}: {'missing' if message == repr(key) else message}"


def _code_of(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")


def log_failure(refused: RefusedError, error: Exception, request_id: str) -> None:
    """Log why a request failed, where the answer does not say it."""
    cause = error.__cause__ if isinstance(error, RefusedError) else error
    if isinstance(cause, LostDatabaseError):
        _logger.error("request %s failed: %s", request_id, cause)
    elif refused.status >= 500:
        _logger.error("request %s failed", request_id, exc_info=error)


def _answer(request: Request[Any, Any, Any], error: Exception) -> Response[ApiError]:
    refused = as_refused(error)
    request_id = request_id_of(request.scope)
    log_failure(refused, error, request_id)
    body = ApiError(refused.code, str(refused), request_id)
    allow = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return Response(
        body, status_code=refused.status, headers=allow | refused.headers, media_type="application/json"
    )


EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: _answer}
