"""The app: routes, and around all of them observation, security and limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from litestar import Litestar, Router
from litestar.di import Provide

from facepipe.server import compreface, health, v1
from facepipe.server.admission import Admission
from facepipe.server.bodies import Bodies
from facepipe.server.errors import EXCEPTION_HANDLERS
from facepipe.server.keys import ApiKeys
from facepipe.server.observation import Observation, RequestIds
from facepipe.server.openapi import openapi_config
from facepipe.server.security import Security
from facepipe.server.services import Services
from facepipe.server.settings import ServerSettings


def create_app(services: Services, routers: Sequence[Router] = ()) -> Litestar:
    """Make the app of a worker. It closes the services when it ends.

    Handlers get the services as a parameter `services: Services`. Whatever a router brings, its requests have
    an id, a line in the log and a place in the metrics; foreign hosts and origins and wrong keys are refused;
    limits hold; answers have a content security policy without inline script. Which key a route needs, it
    says itself: `guards=[requires(Scope.READ)]`, or guards of its own.

    Args:
        services: What the routes work with.
        routers: Further routes.
    """

    @asynccontextmanager
    async def closing(_: Litestar) -> AsyncIterator[None]:
        try:
            yield
        finally:
            services.close()

    app = Litestar(
        [health.router, *v1.routers, *_compreface(services), *routers],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[closing],
        logging_config=None,
        openapi_config=openapi_config(),
        request_max_body_size=services.settings.limits.body_bytes,
        debug=False,
    )
    app.state.read_only = services.gallery.read_only
    protect(app, services.settings, services.keys)
    return app


def protect(app: Litestar, settings: ServerSettings, keys: ApiKeys) -> None:
    """Put observation, security and limits around all that an app answers."""
    admitted = Admission(app.asgi_handler, settings.limits)
    bounded = Bodies(Security(admitted, settings, keys), settings.limits)
    app.asgi_handler = RequestIds(Observation(bounded))


def _compreface(services: Services) -> list[Router]:
    return [compreface.router] if services.settings.compreface else []
