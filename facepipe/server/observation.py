"""Each request seen from outside: its id, its line in the log, its place in the metrics."""

from __future__ import annotations

import logging
import re
import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from facepipe.core.logs import log_event
from facepipe.server.metrics import REQUEST_SECONDS, REQUESTS
from facepipe.server.scopes import is_http, request_id_of

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNKNOWN_ROUTE = "(none)"
_QUIET_ROUTES = ("/healthz", "/readyz", "/metrics")
_logger = logging.getLogger("facepipe")


@dataclass(slots=True)
class _Answer:
    """What the log tells of an answer."""

    status: int = 499
    """Until one began: the client was gone before."""


class _HttpMiddleware(ABC):
    """Middleware for HTTP requests; whatever else connects goes to the app as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if is_http(scope):
            await self._observe(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @abstractmethod
    async def _observe(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Have the app answer a request."""


class RequestIds(_HttpMiddleware):
    """Middleware: gives each request an id, its own or a new one, which the answer has as a header."""

    async def _observe(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request_id = _request_id(Headers.from_scope(scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders(message)["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, with_id)


class Observation(_HttpMiddleware):
    """Middleware: logs each request without names or paths, and counts it. `RequestIds` is around it."""

    async def _observe(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        answer, start = _Answer(), time.perf_counter()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            answer.status = 500
            raise
        finally:
            _record(scope, answer.status, time.perf_counter() - start)


def _request_id(given: str) -> str:
    return given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)


def _record(scope: HTTPScope, status: int, seconds: float) -> None:
    route = str(scope.get("path_template") or _UNKNOWN_ROUTE)
    method = scope["method"] if route != _UNKNOWN_ROUTE else "*"  # clients can make any up
    REQUESTS.labels(method, route, str(status)).inc()
    REQUEST_SECONDS.labels(route).observe(seconds)
    if route in _QUIET_ROUTES and status < 400:
        return
    key, client = scope["state"].get("api_key"), scope.get("client")
    fields = {
        "request_id": request_id_of(scope),
        "method": method,
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 1),
        "key": None if key is None else key.id,
        "client": None if client is None else client[0],
    }
    log_event(_logger, "request", fields)
