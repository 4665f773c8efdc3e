"""Routes of people and their enrolled faces."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import unquote

from litestar import Request, Router, delete, get, patch, post
from litestar.params import Parameter
from msgspec import UnsetType

from facepipe.gallery.names import NAME_LENGTH_MAX, clean_name
from facepipe.server.enrolling import Enrolled, enroll_photo
from facepipe.server.errors import RefusedError, not_found
from facepipe.server.keys import Scope
from facepipe.server.security import requires
from facepipe.server.services import Services
from facepipe.server.uploads import PhotoOperation, read_photos
from facepipe.server.v1.schemas import (
    Enrollment,
    EnrollmentWarning,
    Erased,
    Merge,
    PeoplePage,
    PersonChange,
    PersonDetails,
    PersonPhoto,
    PersonRecord,
)

_MOST_PEOPLE = 1000
_ID_MAX = 2**63 - 1
Force = Annotated[bool, Parameter(description="Take the largest face though it breaks the rules.")]
NameInPath = Annotated[str, Parameter(description="The person's name, percent-encoded.")]
NameInQuery = Annotated[str, Parameter(min_length=1, max_length=NAME_LENGTH_MAX)]
reads, changes = requires(Scope.READ), requires(Scope.MANAGE)


def in_path(name: str) -> str:
    """Return the name that a path gives, percent-encoded.

    Raises:
        RefusedError: It is not UTF-8.
        BadNameError: It can't be a person's.
    """
    try:
        return clean_name(unquote(name, errors="strict"))
    except UnicodeDecodeError as error:
        raise RefusedError(400, "name", "the name is not UTF-8, percent-encoded") from error


def _person(services: Services, name: str) -> PersonRecord:
    """Return a person.

    Raises:
        RefusedError: Nobody has this name.
    """
    for person in services.gallery.people():
        if person.name == name:
            return PersonRecord.of(person)
    raise not_found(f"nobody is named {name!r}")


def _enrollment(name: str, enrolled: Enrolled) -> Enrollment:
    return Enrollment(
        name,
        enrolled.outcome.value,  # type: ignore[arg-type]
        enrolled.id,
        list(enrolled.reasons),
        enrolled.sentence,
        [EnrollmentWarning.of(warning) for warning in enrolled.warnings],
    )


@get("/", operation_id="listPeople", guards=[reads], sync_to_thread=True)
def list_people(
    services: Services,
    offset: Annotated[int, Parameter(ge=0, le=_ID_MAX)] = 0,
    limit: Annotated[int, Parameter(ge=1, le=_MOST_PEOPLE)] = 100,
) -> PeoplePage:
    """Return people by name."""
    people = services.gallery.people()
    return PeoplePage(len(people), [PersonRecord.of(one) for one in people[offset : offset + limit]])


@post("/", operation_id="createPerson", operation_class=PhotoOperation, guards=[changes])
async def create_person(
    request: Request[Any, Any, Any], services: Services, name: NameInQuery, force: Force = False
) -> Enrollment:
    """Add a person with a first photo; 409 where somebody has the name."""
    name = clean_name(name)
    (photo,) = await read_photos(request)
    return _enrollment(name, await enroll_photo(services, name, photo, known=False, force=force))


@get("/{name:str}", operation_id="getPerson", guards=[reads], sync_to_thread=True)
def get_person(services: Services, name: NameInPath) -> PersonDetails:
    """Return a person and their enrolled faces."""
    name = in_path(name)
    with services.gallery.one_state():
        person, templates = _person(services, name), services.gallery.templates(name)
    fields = {field: getattr(person, field) for field in person.__struct_fields__}
    return PersonDetails(**fields, faces=[PersonPhoto.of(template) for template in templates])


@patch("/{name:str}", operation_id="changePerson", guards=[changes], sync_to_thread=True)
def change_person(services: Services, name: NameInPath, data: PersonChange) -> PersonRecord:
    """Rename a person or change their own threshold; 409 where somebody has the new name."""
    name = in_path(name)
    if not isinstance(data.name, UnsetType):
        services.gallery.rename(name, data.name)
        name = clean_name(data.name)
    if not isinstance(data.threshold_l2, UnsetType):
        services.gallery.set_person_threshold(name, data.threshold_l2)
    return _person(services, name)


@delete("/{name:str}", operation_id="removePerson", status_code=200, guards=[changes], sync_to_thread=True)
def remove_person(services: Services, name: NameInPath) -> Erased:
    """Erase a person: from when this is answered, no worker gives the name to a face."""
    return Erased(services.gallery.remove(in_path(name)))


@post(
    "/{name:str}/merge",
    operation_id="mergePerson",
    status_code=200,
    guards=[changes],
    sync_to_thread=True,
)
def merge_person(services: Services, name: NameInPath, data: Merge) -> Erased:
    """Give all faces of a person to another, and forget the first."""
    name, into = in_path(name), clean_name(data.into)
    if name == into:
        raise RefusedError(400, "same_person", "a person can't be merged into the same person")
    return Erased(services.gallery.merge(name, into))


@post("/{name:str}/photos", operation_id="addPhoto", operation_class=PhotoOperation, guards=[changes])
async def add_photo(
    request: Request[Any, Any, Any], services: Services, name: NameInPath, force: Force = False
) -> Enrollment:
    """Add a photo to a person; the same photo again changes nothing."""
    name = in_path(name)
    (photo,) = await read_photos(request)
    return _enrollment(name, await enroll_photo(services, name, photo, known=True, force=force))


@delete(
    "/{name:str}/photos/{face_id:int}",
    operation_id="removePhoto",
    status_code=200,
    guards=[changes],
    sync_to_thread=True,
)
def remove_photo(
    services: Services, name: NameInPath, face_id: Annotated[int, Parameter(ge=1, le=_ID_MAX)]
) -> Erased:
    """Erase one face of a person; with the last one the person is erased."""
    name = in_path(name)
    if services.gallery.template(face_id).person != name:
        raise not_found(f"{name!r} has no face {face_id}")
    return Erased(services.gallery.remove_templates([face_id]))


router = Router(
    "/v1/people",
    route_handlers=[
        list_people,
        create_person,
        get_person,
        change_person,
        remove_person,
        merge_person,
        add_photo,
        remove_photo,
    ],
    tags=["people"],
)
