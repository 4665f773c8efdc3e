"""The OpenAPI document: what the framework derives from the routes, with errors, keys and examples."""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from facepipe import __version__

_KEY_SCHEMES = {
    "bearer": SecurityScheme(type="http", scheme="bearer", description="An API key."),
    "apiKey": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header"),
}
_NEEDS_NO_KEY = ("getHealth", "getReadiness")
_ERROR_SCHEMA = {
    "title": "ApiError",
    "type": "object",
    "description": "Why a request failed.",
    "properties": {
        "code": {"type": "string", "description": "Stable, for programs.", "examples": ["photo"]},
        "message": {"type": "string", "description": "For people."},
        "request_id": {"type": "string", "description": "As in the log and in the header X-Request-ID."},
    },
    "required": ["code", "message", "request_id"],
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ApiError"}}}
_ERRORS = {
    "4XX": {
        "description": "The request can't be answered: `code` says why. 429 comes with Retry-After.",
        "content": _ERROR_CONTENT,
    },
    "5XX": {"description": "The server failed; its log says why.", "content": _ERROR_CONTENT},
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Id of the request in the log and in the answer; one is made up where there is none.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
_FACE = {
    "box_xyxy": [180.15, 55.55, 273.01, 175.59],
    "score": 0.9972,
    "landmarks": [[202.29, 102.92], [243.29, 101.59], [221.77, 125.25], [207.43, 143.09], [240.91, 142.93]],
    "name": "Eileen Collins",
    "distance_l2": 0.3514,
    "threshold_l2": 1.04,
    "runner_up": {"name": "Ada", "distance_l2": 1.3121},
    "status": "named",
    "candidate": None,
    "reason": None,
}
_PLACE = {"box_xyxy": _FACE["box_xyxy"], "score": 0.9972, "reason": None}
_EXAMPLES: dict[str, Any] = {
    "identifyFaces": {"photo": "photo", "error": None, "faces": [_FACE], "warnings": []},
    "searchPeople": {
        "faces": [_PLACE | {"people": [{"name": "Eileen Collins", "distance_l2": 0.3514}]}],
    },
    "verifyFaces": {
        "photos": ["first", "second"],
        "same_person": True,
        "distance_l2": 0.3514,
        "threshold_l2": 1.1766,
        "strangers_share": 1e-9,
        "boxes_xyxy": [_FACE["box_xyxy"], _FACE["box_xyxy"]],
        "comparisons": 1,
    },
    "createPerson": {
        "name": "Eileen Collins",
        "outcome": "enrolled",
        "id": 1,
        "reasons": [],
        "sentence": "",
        "warnings": [],
    },
}


class _Document(JsonRenderPlugin):
    """The document as JSON."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document with what is the same for all routes."""
        return self.render_json(request, completed(openapi_schema))


def openapi_config() -> OpenAPIConfig:
    """Return how the document is made and where it is: `/v1/openapi.json`.

    That is the path of all documentation: what is not found below it, Litestar answers with a page of HTML.
    """
    return OpenAPIConfig(
        title="facepipe",
        version=__version__,
        description="Find the faces in photos and say who they are.",
        path="/v1/openapi.json",
        render_plugins=[_Document(path=["/", "/openapi.json"])],
        components=Components(security_schemes=dict(_KEY_SCHEMES)),
        security=[{"bearer": []}, {"apiKey": []}],
        use_handler_docstrings=True,
    )


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with the errors, the keys, the request ids and the examples of its operations."""
    paths = {
        path: {method: _operation(operation) for method, operation in operations.items()}
        for path, operations in document["paths"].items()
    }
    components = {
        **document["components"],
        "schemas": {**document["components"].get("schemas", {}), "ApiError": _ERROR_SCHEMA},
        "parameters": {"RequestId": _REQUEST_ID},
    }
    return {**document, "paths": paths, "components": components}


def _operation(operation: dict[str, Any]) -> dict[str, Any]:
    own = {status: answer for status, answer in operation["responses"].items() if not status.startswith("4")}
    example = _EXAMPLES.get(operation["operationId"])
    if example is not None:
        own = {status: _with_example(answer, example) for status, answer in own.items()}
    keyless: dict[str, Any] = {"security": []} if operation["operationId"] in _NEEDS_NO_KEY else {}
    parameters = [*operation.get("parameters", ()), {"$ref": "#/components/parameters/RequestId"}]
    return {**operation, "parameters": parameters, "responses": own | _ERRORS, **keyless}


def _with_example(answer: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {kind: {**form, "example": example} for kind, form in answer["content"].items()}
    return {**answer, "content": content}
