"""The OpenAPI document: whole enough for generated clients, and kept by the server whatever it is sent."""

from __future__ import annotations

from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_helpers import Server

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = server.client.get("/v1/openapi.json").json()
    return document


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_operations_have_ids_descriptions_errors_and_keys(document: dict[str, Any]) -> None:
    operations = _operations(document)
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) >= 20
    assert {"detectFaces", "verifyFaces", "identifyFaces", "createPerson", "removePerson"} <= set(ids)
    for operation in operations:
        assert operation["description"]
        assert {"4XX", "5XX"} <= set(operation["responses"])
    assert document["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
    examples = [str(operation) for operation in operations if "'example':" in str(operation)]
    assert len(examples) >= 4


def test_examples_are_of_the_schemas(document: dict[str, Any]) -> None:
    for operation in _operations(document):
        for answer in operation["responses"].values():
            for form in answer["content"].values():
                if "example" in form:
                    jsonschema_rs.validate({**document, **form["schema"]}, form["example"])


def test_whatever_is_sent_is_answered_as_the_document_says(
    server: Server, document: dict[str, Any], portrait: bytes
) -> None:
    photos = strategies.sampled_from([portrait, portrait[:3000], b"GIF89a", b"x"])
    schemathesis.openapi.media_type("application/octet-stream", photos)
    schemathesis.openapi.format("binary", photos)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == len(_operations(document))
    for operation in operations:
        _send(operation)


def _send(operation: Any) -> None:
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def send(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    send()
