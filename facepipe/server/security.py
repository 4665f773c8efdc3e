"""What holds for every request whatever its route: hosts, origins, keys, headers of the answer."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Guard, HTTPScope, Message, Receive, Send
from litestar.types import Scope as AsgiScope

from facepipe.server.errors import ApiError, RefusedError, as_refused, log_failure
from facepipe.server.keys import ApiKey, ApiKeys, Scope
from facepipe.server.scopes import is_http, request_id_of
from facepipe.server.settings import ServerSettings, is_address

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ANSWER_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_RAW_PREFIXES = (b"/v1/", b"/api/v1/")
_PATHS_WITHOUT_KEY = ("/healthz", "/readyz")
"""Answered also while the keys can't be read."""
_LOCAL_KEY = ApiKey("local", "local", Scope.MANAGE, "")
"""Of requests from this machine where no key was ever created."""


class Security:
    """Middleware: refuses foreign hosts, origins and keys; adds security headers to every answer.

    - Host (DNS rebinding): `localhost`, any IP address, and the names of the settings.
    - Origin (CSRF): changes are refused where a browser says that another site asks for them.
    - Key: a wrong one is refused; what a right one allows is checked by `requires`, route by route.
    - Caching: answers are nobody else's, unless a route says so (`Cache-Control`).

    Args:
        app: Handles what is not refused.
        settings: Of the server.
        keys: Whose are valid.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: ApiKeys) -> None:
        self._app, self._keys = app, keys
        self._hosts = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._is_local, self._proxies = settings.is_local, settings.proxies

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """See the class."""
        if not is_http(scope):
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders(message)
                for name, value in _ANSWER_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers.from_scope(scope)
        try:
            self._check(scope, headers)
            if scope["path"] not in _PATHS_WITHOUT_KEY:
                scope["state"]["api_key"] = await self._key_of(headers)
        except Exception as error:  # also an unexpected one gets the form, the id and the line of the others
            refused = as_refused(error)
            log_failure(refused, error, request_id_of(scope))
            await send_error(refused, scope, with_headers)
            return
        _keep_slashes_in_names(scope)
        await self._app(scope, receive, with_headers)

    def _check(self, scope: HTTPScope, headers: Headers) -> None:
        self._require_known_host(headers)
        if scope["method"] not in _SAFE_METHODS:
            _require_same_origin(headers)

    async def _key_of(self, headers: Headers) -> ApiKey | None:
        """Look the request's key up; a database on another machine is waited for by another thread."""
        if self._keys.is_remote:
            return await asyncio.to_thread(self._found_key, headers)
        return self._found_key(headers)

    def _require_known_host(self, headers: Headers) -> None:
        host = _name_of(headers.get("host", ""))
        if not (host in self._hosts or is_address(host)):
            raise RefusedError(
                421, "unknown_host", "this server is not called so: start it with --allowed-host NAME"
            )

    def _found_key(self, headers: Headers) -> ApiKey | None:
        """Return the request's key; None: it needs none, because this machine asks and none was created.

        A request that carries no key where one is needed passes here: some routes need none.
        """
        text = _key_text(headers)
        if text:
            key = self._keys.find(text)
            if key is None and not self._is_open(headers):
                raise RefusedError(401, "unknown_key", "this API key is not valid")
            return key or _LOCAL_KEY
        return _LOCAL_KEY if self._is_open(headers) else None

    def _is_open(self, headers: Headers) -> bool:
        """Whether no key is needed: none was ever created, and no proxy brings others' requests."""
        if not self._is_local or any(name in headers for name in _FORWARDED):
            return False
        return self._keys.none_created


def requires(scope: Scope) -> Guard:
    """Make a guard that refuses requests whose key allows less, and changes of a read-only gallery."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        key: ApiKey | None = connection.scope["state"].get("api_key")
        if key is None:
            raise RefusedError(
                401, "key_missing", "give an API key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`"
            )
        if key.scope < scope:
            raise RefusedError(403, "scope", f"this needs a key of scope {scope}; yours has {key.scope}")
        if scope is Scope.MANAGE and connection.app.state.get("read_only"):
            raise RefusedError(409, "read_only", "the gallery may not be written")

    return guard


async def send_error(refused: RefusedError, scope: HTTPScope, send: Send) -> None:
    """Answer with an error from outside of the app."""
    body = msgspec.json.encode(ApiError(refused.code, str(refused), request_id_of(scope)))
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",  # A body that was not read would be taken for the next request.
        **refused.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _require_same_origin(headers: Headers) -> None:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    is_foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if is_foreign or site not in ("same-origin", "none"):
        raise RefusedError(403, "foreign_origin", "changes are not taken from other sites")


def _key_text(headers: Headers) -> str:
    scheme, _, text = headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _name_of(host: str) -> str:
    """The host of a header `host:port`, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _keep_slashes_in_names(scope: HTTPScope) -> None:
    """Leave the API's paths percent-encoded until they are routed: a person's name may hold a slash."""
    raw = scope.get("raw_path") or b""
    if raw.startswith(_RAW_PREFIXES):
        scope["path"] = raw.partition(b"?")[0].decode("latin-1")
