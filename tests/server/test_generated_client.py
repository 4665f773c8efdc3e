"""A client that is generated from the OpenAPI document without a warning, and has types for all answers."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from inspect import get_annotations
from typing import Any

import pytest
from server_helpers import Server

PACKAGE = "facepipe_generated_client"
TYPED = (
    "ApiError",
    "EncodedFace",
    "Enrollment",
    "EnrollmentWarning",
    "FaceRecord",
    "Job",
    "PeoplePage",
    "PersonDetails",
    "PersonRecord",
    "PhotoEmbeddings",
    "PhotoFaces",
    "PhotoSearch",
    "RunnerUp",
    "Thresholds",
    "Verification",
)


class GeneratedClient:
    """The modules of a generated client, and a client of its own that sends requests to a server."""

    def __init__(self, server: Server) -> None:
        self.models: Any = importlib.import_module(f"{PACKAGE}.models")
        self.types: Any = importlib.import_module(f"{PACKAGE}.types")
        self._client = importlib.import_module(PACKAGE).Client(base_url=server.url)

    def call(self, operation: str, *path: str | int, **arguments: Any) -> Any:
        """Send the request of an operation, `tag.operation`; returns the answer as a model."""
        module = importlib.import_module(f"{PACKAGE}.api.{operation}")
        return module.sync(*path, client=self._client, **arguments)

    def file(self, photo: bytes) -> Any:
        """A photo as a body, or as a part of a form."""
        return self.types.File(payload=io.BytesIO(photo), file_name="photo.jpg", mime_type="image/jpeg")


@pytest.fixture(scope="module")
def package(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The generated package, where imports find it."""
    folder = tmp_path_factory.mktemp("generated")
    document, settings = folder / "openapi.json", folder / "settings.json"
    document.write_bytes(shared_server.client.get("/v1/openapi.json").content)
    settings.write_text(json.dumps({"post_hooks": []}))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    command += ["--meta", "none", "--path", str(document), "--config", str(settings)]
    command += ["--output-path", str(folder / PACKAGE)]
    generated = subprocess.run(command, capture_output=True, text=True)
    assert generated.returncode == 0, generated.stdout + generated.stderr
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def client(package: None, server: Server) -> GeneratedClient:
    """A generated client of a server with an empty gallery."""
    return GeneratedClient(server)


def test_answers_have_types(client: GeneratedClient) -> None:
    for name in TYPED:
        types = get_annotations(getattr(client.models, name))
        del types["additional_properties"]
        assert types
        for field, text in types.items():
            assert not re.search(r"\b(Any|object)\b", text), (name, field, text)


def test_photos_are_sent_in_each_form(client: GeneratedClient, portrait: bytes) -> None:
    models = client.models
    text = base64.b64encode(portrait).decode()
    bodies = (
        client.file(portrait),
        models.DetectFacesFilesBody(photo=client.file(portrait)),
        models.DetectFacesJsonBody(photo=text),
    )
    found = [client.call("photos.detect_faces", body=body) for body in bodies]
    assert {type(answer) for answer in found} == {models.PhotoFaces}
    assert found[0] == found[1] == found[2]
    (face,) = found[0].faces
    assert isinstance(face, models.FaceRecord)
    assert len(face.box_xyxy) == 4
    assert 0.9 < face.score <= 1


def test_people_are_enrolled_named_and_removed(
    client: GeneratedClient, portrait: bytes, mirrored: bytes
) -> None:
    models = client.models
    created = client.call("people.create_person", body=client.file(portrait), name="Eileen / Collins")
    assert isinstance(created, models.Enrollment)
    assert created.outcome is models.EnrollmentOutcome.ENROLLED
    people = client.call("people.list_people")
    assert [(people.total, one.name, one.photos) for one in people.people] == [(1, "Eileen / Collins", 1)]
    (face,) = client.call("photos.identify_faces", body=client.file(mirrored)).faces
    assert (face.name, face.status) == ("Eileen / Collins", models.MatchStatus.NAMED)
    (near,) = client.call("photos.search_people", body=client.file(mirrored)).faces[0].people
    assert near.distance_l2 == pytest.approx(face.distance_l2, abs=1e-3)
    twice = models.VerifyFacesFilesBody(first=client.file(portrait), second=client.file(mirrored))
    assert client.call("photos.verify_faces", body=twice).same_person
    assert client.call("people.remove_person", "Eileen / Collins").faces == 1
    assert client.call("people.list_people").total == 0


def test_thresholds_are_set_and_taken_away(client: GeneratedClient) -> None:
    models = client.models
    for own_l2 in (1.1, None):
        thresholds = client.call("gallery.set_threshold", body=models.ThresholdChange(gallery_l2=own_l2))
        assert isinstance(thresholds, models.Thresholds)
        assert thresholds.gallery_l2 == own_l2
        assert client.call("gallery.get_thresholds") == thresholds


def test_refusals_have_a_type(client: GeneratedClient) -> None:
    refused = client.call("people.get_person", "Nobody")
    assert isinstance(refused, client.models.ApiError)
    assert refused.code == "not_found"
