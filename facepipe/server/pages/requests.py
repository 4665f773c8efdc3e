"""What the requests of pages have in common."""

from __future__ import annotations

from typing import Annotated

from litestar.params import Parameter
from litestar.response import Template

from facepipe.server.pages.views import FaceTile, Portion

Offset = Annotated[int, Parameter(ge=0)]


def as_part(faces: Portion[FaceTile]) -> Template:
    """Return the tiles of faces that are added to those of a page."""
    return Template("faces_part.html", context={"part": faces})
