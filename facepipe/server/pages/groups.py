"""Groups of unknown faces, to be named or ignored."""

from __future__ import annotations

import asyncio

from litestar import Router, get, post
from litestar.response import Redirect, Template
from msgspec import Struct

from facepipe.library.library import Library
from facepipe.library.models import FaceGroup
from facepipe.server.pages.library_thread import LibraryThread
from facepipe.server.pages.requests import Offset, as_part
from facepipe.server.pages.views import FaceTile, Portion, group_faces, group_of, groups, portion


class GroupCount(Struct):
    """How many groups of unknown faces there are."""

    groups: int


@get("/groups")
async def groups_page(library_thread: LibraryThread, gone: int | None = None, offset: Offset = 0) -> Template:
    """Show the groups, the largest first; from an offset on, only further tiles."""
    part: Portion[FaceGroup] = await library_thread.run(lambda library: portion(groups.of(library), offset))
    return Template("groups_part.html" if offset else "groups.html", context={"part": part, "gone": gone})


@get("/group")
async def group_page(library_thread: LibraryThread, number: int, offset: Offset = 0) -> Template | Redirect:
    """Show the faces of a group, the most typical first; from an offset on, only further tiles.

    Where there is no such group (any more), the others are shown.
    """

    def view(library: Library) -> Portion[FaceTile] | None:
        group = group_of(library, number)
        return None if group is None else group_faces(library, group, offset)

    faces = await library_thread.run(view)
    if faces is None:
        return Redirect("/review/groups", query_params={"gone": str(number)})
    if offset:
        return as_part(faces)
    return Template("group.html", context={"number": number, "faces": faces})


@post("/groups/again", status_code=200)
async def group_again(library_thread: LibraryThread) -> GroupCount:
    """Group the unknown faces anew; changes are made meanwhile."""
    faces, within_l2 = await library_thread.run(
        lambda library: (library.faces_to_group(), library.group_within_l2)
    )
    found = await asyncio.to_thread(faces.found_groups, within_l2)
    await library_thread.run(lambda library: library.take_groups(found))
    return GroupCount(await library_thread.run(lambda library: len(groups.of(library))))


groups_router = Router("/", route_handlers=[groups_page, group_page, group_again])
