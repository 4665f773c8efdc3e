"""Bodies of requests: they arrive in time, and are read before an answer that did not want them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from litestar.datastructures import Headers
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from facepipe.server.errors import RefusedError
from facepipe.server.metrics import REFUSED
from facepipe.server.settings import Limits

_DRAINED_BODIES = 2
"""Times the largest body: as much of one that is too large is read, so that the client reads the answer."""


class Bodies:
    """Middleware: gives up bodies that arrive too slowly, and drains those that nobody read.

    A connection closed with unread bytes is reset, and clients lose the answer that says why.

    Args:
        app: Handles the requests.
        limits: See `Limits`.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        body = _Body(receive, Headers.from_scope(scope), self._limits)

        async def after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
            await send(message)

        await self._app(scope, body.receive, after_body)


class _Body:
    """The body of one request on its way."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._deadline_s = time.monotonic() + limits.body_s
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._is_whole = not has_body or "expect" in headers

    async def receive(self) -> HTTPReceiveMessage:
        """Return the next part.

        Raises:
            RefusedError: It does not arrive in time.
        """
        if self._is_whole:  # From here on it waits for the client to leave.
            return await self._receive()  # type: ignore[return-value]
        try:
            async with asyncio.timeout(max(0.0, self._deadline_s - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            REFUSED.labels("slow_body").inc()
            self._is_whole = True
            text = f"the body did not arrive within {self._limits.body_s:g} s"
            raise RefusedError(408, "slow_body", text) from error
        self._is_whole = message["type"] != "http.request" or not message["more_body"]
        return message  # type: ignore[return-value]

    async def drain(self) -> None:
        """Read the rest, within limits."""
        left_bytes = _DRAINED_BODIES * self._limits.body_bytes
        with suppress(RefusedError):
            while not self._is_whole and left_bytes > 0:
                message = await self.receive()
                left_bytes -= len(message["body"]) if message["type"] == "http.request" else 0
