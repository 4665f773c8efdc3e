"""The application behind `facepipe review`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Litestar, Request, Response, Router, get
from litestar.contrib.jinja import JinjaTemplateEngine
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.response import Redirect, Template
from litestar.static_files import create_static_files_router
from litestar.template.config import TemplateConfig
from typing import Any

from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError
from facepipe.core.plain_text import visible
from facepipe.server.pages.groups import groups_router
from facepipe.server.pages.history import history_router
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.people import people_router
from facepipe.server.pages.photos import photos_router
from facepipe.server.pages.picture_files import pictures_router
from facepipe.server.pages.questions import questions_router
from facepipe.server.pages.session import NotSignedInError, PageSession, refused, require_session, sign_in
from facepipe.server.pages.views import share_checked

_HERE = Path(__file__).parent


def create_page_app(library_thread: LibraryThread, session: PageSession) -> Litestar:
    """Return the application.

    Args:
        library_thread: Of the library that is shown.
        session: Of the browser that may use it.
    """
    return Litestar(
        route_handlers=[
            sign_in, _static_files(), _pages(library_thread)],
        openapi_config=None,
        template_config=TemplateConfig(engine=JinjaTemplateEngine.from_environment(_environment())),
        state=State({"page_session": session}),
        exception_handlers={
            FacepipeError: _refused_by_library,
            HTTPException: _failed_request,
            NotSignedInError: lambda *_: refused(),
        },
        after_request=_with_headers,
    )
