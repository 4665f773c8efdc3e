"""Limits of requests before they are read: how many a minute, how large, how many bytes at once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from litestar.datastructures import Headers
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from facepipe.server.errors import RETRY_AFTER_S, RefusedError
from facepipe.server.metrics import REFUSED
from facepipe.server.scopes import as_http
from facepipe.server.security import send_error
from facepipe.server.settings import Limits

_MINUTE_S = 60
_CALLERS = 10_000
"""Callers that are remembered; beyond, those go who have not asked for long."""


class Admission:
    """Middleware: refuses what comes too often, is too large, or would fill the memory.

    Args:
        app: Handles what is admitted.
        limits: See `Limits`.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._held_bytes = 0
        self._rates = Rates(limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        scope = as_http(scope)
        try:
            self._count(scope)
            size = self._admitted_bytes(Headers.from_scope(scope))
        except RefusedError as refused:
            REFUSED.labels(refused.code).inc()
            await send_error(refused, scope, send)
            return
        self._held_bytes += size
        try:
            await self._app(scope, receive, send)
        finally:
            self._held_bytes -= size

    def _count(self, scope: HTTPScope) -> None:
        """Count a request of a key, or of an address without a key."""
        key, client = scope["state"].get("api_key"), scope.get("client")
        address = client[0] if client else ""
        wait_s = self._rates.wait_s(key.id if key else address, time.monotonic())
        if wait_s:
            message = f"more than {self._limits.requests_per_minute} requests a minute"
            raise RefusedError(429, "too_many_requests", message, wait_s)

    def _admitted_bytes(self, headers: Headers) -> int:
        """Return how many bytes the body may take; those of unknown length may take all of the limit."""
        length = headers.get("content-length", "")
        most = self._limits.body_bytes
        size = int(length) if length.isdecimal() else most if "transfer-encoding" in headers else 0
        if size > most:
            message = f"a body has at most {most} bytes, this one has {size}: send a smaller photo"
            raise RefusedError(413, "body_too_large", message)
        if self._held_bytes + size > self._limits.waiting_bytes:
            raise RefusedError(429, "busy", "too much is being worked on: try again", RETRY_AFTER_S)
        return size


@dataclass(slots=True)
class _Allowance:
    """How many requests a caller may send at once, and since when."""

    requests: float
    since_s: float


class Rates:
    """How often each caller may ask: so many times at once, and again as many as minutes pass.

    Args:
        per_minute: Requests a minute.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._allowances: dict[str, _Allowance] = {}

    def wait_s(self, caller: str, now_s: float) -> int:
        """Count a request; returns how long to wait where it is one too many, else 0."""
        per_s = self._per_minute / _MINUTE_S
        left = self._allowances.pop(caller, _Allowance(self._per_minute, now_s))
        requests = min(self._per_minute, left.requests + (now_s - left.since_s) * per_s)
        is_allowed = requests >= 1
        self._allowances[caller] = _Allowance(requests - is_allowed, now_s)  # the last is the latest
        if len(self._allowances) > _CALLERS:
            del self._allowances[next(iter(self._allowances))]
        return 0 if is_allowed else math.ceil((1 - requests) / per_s)
