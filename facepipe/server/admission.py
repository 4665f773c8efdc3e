"""Limits of requests before they are read: how many a minute, how large, how slow, how many bytes at once."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from litestar.datastructures import Headers
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Receive, Scope, Send

from facepipe.server.errors import RETRY_AFTER_S, RefusedError
from facepipe.server.metrics import REFUSED
from facepipe.server.security import send_error
from facepipe.server.settings import Limits

_MINUTE_S = 60


class Admission:
    """Middleware: refuses what comes too often, is too large or too slow, or would fill the memory.

    Args:
        app: Handles what is admitted.
        limits: See `Limits`.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._held_bytes = 0
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._minute = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        assert scope["type"] == "http"
        try:
            self._count(scope)
            size = self._admitted_bytes(Headers.from_scope(scope))
        except RefusedError as refused:
            REFUSED.labels(refused.code).inc()
            await send_error(refused, scope, send)
            return
        self._held_bytes += size
        try:
            await self._app(scope, self._in_time(receive), send)
        finally:
            self._held_bytes -= size

    def _count(self, scope: HTTPScope) -> None:
        """Count a request of a key or an address; all counts begin anew each minute."""
        now_s = time.monotonic()
        if (minute := int(now_s // _MINUTE_S)) != self._minute:
            self._minute = minute
            self._counts.clear()
        key, client = scope["state"].get("api_key"), scope.get("client")
        who = f"{key.id if key else ''} {client[0] if client and (not key or key.id == 'local') else ''}"
        self._counts[who] += 1
        if self._counts[who] > self._limits.requests_per_minute:
            wait_s = int(_MINUTE_S - now_s % _MINUTE_S) + 1
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

    def _in_time(self, receive: Receive) -> Receive:
        deadline_s = time.monotonic() + self._limits.body_s
        is_whole = False

        async def timed() -> HTTPReceiveMessage:
            nonlocal is_whole
            if is_whole:  # From here on it waits for the client to leave.
                return await receive()  # type: ignore[return-value]
            try:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    message = await receive()
            except TimeoutError as error:
                REFUSED.labels("slow_body").inc()
                message_text = f"the body did not arrive within {self._limits.body_s:g} s"
                raise RefusedError(408, "slow_body", message_text) from error
            is_whole = message["type"] == "http.request" and not message["more_body"]
            return message  # type: ignore[return-value]

        return timed
