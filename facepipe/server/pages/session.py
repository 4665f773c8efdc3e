"""Who may use the page: whoever opened it with the token that the command printed, once."""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from litestar import Response, get
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.handlers.base import BaseRouteHandler
from litestar.response import Template

from facepipe.server.errors import RefusedError

SIGN_IN_PATH = "/review/sign-in"
_NOT_SIGNED_IN = (
    "This page opens once, with the address that `facepipe review` printed, and then for that browser only. "
    "End the command with Ctrl-C and start it again for a new address."
)


class PageSession:
    """The session of one browser, which a one-time token opens.

    Args:
        port: Of the server. Cookies are shared by all ports of a host, so that its name holds the port.

    Attributes:
        port: As given.
        token: To be given once, in the address `SIGN_IN_PATH?token=...`.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.token = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)
        self._is_token_used = False
        self._cookie_name = f"facepipe-review-{port}"

    def sign_in(self, token: str) -> Cookie | None:
        """Return the session's cookie for the token; None: it is wrong, or was used."""
        if self._is_token_used or not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        self._is_token_used = True
        return Cookie(
            key=self._cookie_name, value=self._secret, path="/review", httponly=True, samesite="strict"
        )

    def is_open(self, connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
        """Whether a request comes from the browser that signed in."""
        value = connection.cookies.get(self._cookie_name, "")
        return hmac.compare_digest(value.encode(), self._secret.encode())


def require_session(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse a request without the session's cookie: a guard of Litestar."""
    session: PageSession = connection.app.state.page_session
    if not session.is_open(connection):
        raise RefusedError(403, "not_signed_in", _NOT_SIGNED_IN)


@get(SIGN_IN_PATH, include_in_schema=False, sync_to_thread=False)
def sign_in(request: ASGIConnection[Any, Any, Any, Any], token: str = "") -> Response[Any]:
    """Exchange the token for a cookie.

    The answer is a page that leads on, not a redirect: a browser sends a strict cookie only to where a page
    of the same site led, and the address may have been opened from another program.
    """
    session: PageSession = request.app.state.page_session
    if session.is_open(request):
        return Template("signed_in.html")
    cookie = session.sign_in(token)
    if cookie is None:
        raise RefusedError(403, "not_signed_in", _NOT_SIGNED_IN)
    return Template("signed_in.html", cookies=[cookie])
