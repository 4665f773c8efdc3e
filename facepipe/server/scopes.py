"""Scopes of ASGI: what a middleware knows of a request."""

from __future__ import annotations

from typing import TypeGuard, cast

from litestar.types import HTTPScope, Scope


def is_http(scope: Scope) -> TypeGuard[HTTPScope]:
    """Return whether a scope is that of an HTTP request."""
    return str(scope["type"]) == "http"


def as_http(scope: Scope) -> HTTPScope:
    """Return the scope of an HTTP request; `facepipe.server.security` lets nothing else pass."""
    return cast(HTTPScope, scope)


def request_id_of(scope: Scope) -> str:
    """Return the id that the request was given; see `facepipe.server.observation`."""
    return str(scope.get("state", {}).get("request_id", ""))
