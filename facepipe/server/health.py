"""Routes for those who run the server: is it alive, is it ready, what does it do."""

from __future__ import annotations

from typing import Literal

import msgspec
from litestar import MediaType, Response, Router, get

from facepipe.core.errors import FacepipeError
from facepipe.server import metrics
from facepipe.server.errors import RETRY_AFTER_S, RefusedError
from facepipe.server.keys import Scope
from facepipe.server.security import requires
from facepipe.server.services import Services


class Health(msgspec.Struct, frozen=True):
    """The state of the server."""

    status: Literal["ok", "ready"]


@get("/healthz", operation_id="getHealth", tags=["health"], sync_to_thread=False)
def healthz() -> Health:
    """Return that the process answers."""
    return Health("ok")


@get("/readyz", operation_id="getReadiness", tags=["health"], sync_to_thread=True)
def readyz(services: Services) -> Health:
    """Return that networks are loaded and the gallery can be read; else 503."""
    try:
        assert services.gallery.state
    except FacepipeError as error:
        raise RefusedError(503, "not_ready", "the gallery can't be read", RETRY_AFTER_S) from error
    return Health("ready")


@get(
    "/metrics",
    operation_id="getMetrics",
    tags=["health"],
    media_type=MediaType.TEXT,
    guards=[requires(Scope.READ)],
    sync_to_thread=True,
)
def metrics_text() -> Response[bytes]:
    """Return counts and times in Prometheus' text form, of all workers together."""
    return Response(metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})


router = Router("/", route_handlers=[healthz, readyz, metrics_text])
