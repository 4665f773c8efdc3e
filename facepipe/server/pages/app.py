"""The application behind `facepipe review`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Litestar, Request, Response, Router, get
from litestar.contrib.jinja import JinjaTemplateEngine
from litestar.datastructures import State
from litestar.di import Provide
from litestar.response import Redirect, Template
from litestar.static_files import create_static_files_router
from litestar.template.config import TemplateConfig

from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError, PhotoError
from facepipe.core.plain_text import text_of, visible
from facepipe.gallery.storage.errors import LostDatabaseError
from facepipe.server.admission import Admission
from facepipe.server.database import server_database
from facepipe.server.errors import EXCEPTION_HANDLERS, RefusedError, as_refused, log_failure
from facepipe.server.keys import ApiKeys
from facepipe.server.observation import RequestIds
from facepipe.server.pages.album import album_router
from facepipe.server.pages.analysis import AnalysisControl, analysis_router
from facepipe.server.pages.groups import groups_router
from facepipe.server.pages.history import history_router
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.people import people_router
from facepipe.server.pages.photos import photos_router
from facepipe.server.pages.picture_files import pictures_router
from facepipe.server.pages.questions import questions_router
from facepipe.server.pages.session import PageSession, require_session, sign_in
from facepipe.server.pages.views import share_checked
from facepipe.server.scopes import request_id_of
from facepipe.server.security import Security
from facepipe.server.settings import ServerSettings

_HERE = Path(__file__).parent


def create_page_app(
    library_thread: LibraryThread,
    analysis: AnalysisControl,
    session: PageSession,
    settings: ServerSettings,
) -> Litestar:
    """Make the application.

    Args:
        library_thread: Of the library that is shown.
        analysis: Of the photos of that library that wait.
        session: Of the browser that may use it.
        settings: Where it listens, and its limits.
    """

    app = Litestar(
        [sign_in, _home, _static_files(), _pages(library_thread, analysis)],
        exception_handlers={Exception: _failure},
        logging_config=None,
        openapi_config=None,
        request_max_body_size=settings.limits.body_bytes,
        state=State({"page_session": session}),
        template_config=TemplateConfig(instance=JinjaTemplateEngine.from_environment(_environment())),
    )
    keys = ApiKeys(server_database(settings.gallery))
    admitted = Admission(app.asgi_handler, settings.limits)
    app.asgi_handler = RequestIds(Security(admitted, settings, keys))
    return app


def _pages(library_thread: LibraryThread, analysis: AnalysisControl) -> Router:
    return Router(
        "/review",
        route_handlers=[
            people_router,
            questions_router,
            groups_router,
            photos_router,
            pictures_router,
            history_router,
            album_router,
            analysis_router,
        ],
        dependencies={
            "library_thread": Provide(lambda: library_thread, sync_to_thread=False),
            "analysis": Provide(lambda: analysis, sync_to_thread=False),
        },
        guards=[require_session],
    )


@get(["/", "/review"], sync_to_thread=False)
def _home() -> Redirect:
    return Redirect("/review/people")


def _static_files() -> Router:
    return create_static_files_router("/review/static", [_HERE / "static"], cache_control=None)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("facepipe.server.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(counted=counted, share_checked=share_checked, visible=visible)
    return environment


def _failure(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer a failure: with a page where a person opened an address, else as the API does."""
    if isinstance(error, FacepipeError) and not isinstance(error, RefusedError | PhotoError):
        error = _as_refused_here(error)
    if "text/html" not in request.headers.get("accept", ""):
        return EXCEPTION_HANDLERS[Exception](request, error)
    refused, request_id = as_refused(error), request_id_of(request.scope)
    log_failure(refused, error, request_id)
    context = {"message": str(refused), "request_id": request_id}
    return Template("failed.html", context=context, status_code=refused.status)


def _as_refused_here(error: FacepipeError) -> RefusedError:
    """Whoever has the page may read all that a command would print."""
    is_lost = isinstance(error, LostDatabaseError)
    status, code = (503, "gallery_unreachable") if is_lost else (409, "refused")
    refused = RefusedError(status, code, text_of(str(error)))
    refused.__cause__ = error
    return refused
