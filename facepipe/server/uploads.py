"""Photos as requests bring them: raw, in a form, or in JSON as base64. All in memory, nothing on disk."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from facepipe.server.errors import RefusedError

_MOST_PARTS = 16
_BYTES = "application/octet-stream"
_RAW = (_BYTES, "image/")
PHOTO = "photo"
"""Field of a form or of JSON that holds the photo."""


async def read_photos(request: Request[Any, Any, Any], names: tuple[str, ...] = (PHOTO,)) -> list[bytes]:
    """Return the photos of a request, in the order of their names; a raw body holds one.

    Raises:
        RefusedError: The body is of another form, a photo is missing, or empty.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    body = await request.body()
    if kind.startswith(_RAW) and len(names) == 1:
        found = {names[0]: body}
    elif kind == "multipart/form-data":
        found = _form(body, options.get("boundary", ""))
    elif kind == "application/json":
        found = _json(body)
    else:
        raise RefusedError(415, "media_type", f"expected {_expected(names)}, got {kind[:80] or 'no type'}")
    if missing := [name for name in names if not found.get(name)]:
        raise RefusedError(400, "photo_missing", f"no photo in the field {missing[0]!r}")
    return [found[name] for name in names]


def _expected(names: tuple[str, ...]) -> str:
    raw = "image/* (the file itself), " if len(names) == 1 else ""
    return f"{raw}multipart/form-data or application/json (base64) with {' and '.join(names)}"


def _form(body: bytes, boundary: str) -> dict[str, bytes]:
    fields: dict[str, bytearray] = {}
    name = ""
    try:
        with PushMultipartParser(boundary, len(body), max_segment_count=_MOST_PARTS) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    name = event.name
                    fields[name] = bytearray()
                elif event is not None:
                    fields[name] += event
            parser.close()
    except (MultipartError, UnicodeError) as error:
        raise RefusedError(400, "form", f"the form can't be read: {error}") from error
    return {name: bytes(data) for name, data in fields.items()}


def _json(body: bytes) -> dict[str, bytes]:
    try:
        values = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise RefusedError(400, "json", f"the JSON can't be read: {error}") from error
    return {name: _decoded(name, text) for name, text in values.items() if isinstance(text, str)}


def _decoded(name: str, text: str) -> bytes:
    """Decode base64, also of a `data:` URL."""
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "base64", f"{name}: expected a photo in base64") from error


# In the OpenAPI document


def _properties(names: tuple[str, ...], field: Schema) -> Schema:
    properties = dict.fromkeys(names, field)
    return Schema(type=OpenAPIType.OBJECT, properties=dict(properties), required=list(names))


def _photo_body(names: tuple[str, ...]) -> RequestBody:
    binary = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    text = Schema(type=OpenAPIType.STRING, content_encoding="base64")
    raw = {_BYTES: OpenAPIMediaType(schema=binary)} if len(names) == 1 else {}
    return RequestBody(
        required=True,
        description="JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC; a body that is the photo itself may be "
        "image/jpeg and so on, too.",
        content={
            **raw,
            "multipart/form-data": OpenAPIMediaType(schema=_properties(names, binary)),
            "application/json": OpenAPIMediaType(schema=_properties(names, text)),
        },
    )


@dataclass
class PhotoOperation(Operation):
    """A route that takes a photo."""

    request_body: RequestBody | Any = field(default_factory=lambda: _photo_body((PHOTO,)))

    def __post_init__(self) -> None:
        self.request_body = _photo_body(self.names())

    @staticmethod
    def names() -> tuple[str, ...]:
        """Fields that hold photos."""
        return (PHOTO,)


FIRST_AND_SECOND = ("first", "second")


@dataclass
class TwoPhotosOperation(PhotoOperation):
    """A route that takes two photos."""

    @staticmethod
    def names() -> tuple[str, ...]:
        """Fields that hold photos."""
        return FIRST_AND_SECOND
