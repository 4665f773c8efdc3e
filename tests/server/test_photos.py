"""The routes that take photos, in every form that a photo comes in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from server_helpers import Server, as_jpeg, code_of, raw

from facepipe.cli import main
from facepipe.core.faces import UInt8Array


def _base64(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def _forms(photo: bytes) -> list[dict[str, Any]]:
    text = _base64(photo)
    return [
        raw(photo),
        {"content": photo, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"photo": ("a.jpg", photo, "image/jpeg")}},
        {"json": {"photo": text}},
        {"json": {"photo": f"data:image/jpeg;base64,{text}"}},
    ]


def test_detects_in_every_form_what_the_command_finds(
    server: Server, portrait: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(portrait)
    done = CliRunner().invoke(main, ["detect", "--json", str(file)])
    expected = json.loads(done.stdout.splitlines()[-1]) | {"photo": "photo"}
    for face in expected["faces"]:
        face.pop("id", None)  # of faces that a job keeps
    for form in _forms(portrait):
        answer = server.client.post("/v1/detect", **form)
        assert answer.status_code == 200
        assert answer.json() == expected


def test_names_a_face_with_all_fields_of_the_documents(
    server: Server, portrait: bytes, mirrored: bytes
) -> None:
    server.client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    (face,) = server.client.post("/v1/identify", **raw(mirrored)).json()["faces"]
    assert (face["name"], face["status"], face["runner_up"]) == ("Eileen", "named", None)
    assert 0 < face["distance_l2"] < face["threshold_l2"]
    (face,) = server.client.post("/v1/identify?threshold_l2=0.001", **raw(mirrored)).json()["faces"]
    assert (face["name"], face["reason"], face["threshold_l2"]) == (None, "nobody_near", 0.001)


def test_one_person_is_in_a_photo_once_unless_repeats_are_allowed(
    server: Server, portrait: bytes, astronaut: UInt8Array
) -> None:
    twice = as_jpeg(np.concatenate([astronaut, astronaut], axis=1))
    server.client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    for query, count in (("", 1), ("?allow_repeats=true", 2)):
        faces = server.client.post(f"/v1/identify{query}", **raw(twice)).json()["faces"]
        assert sum(face["name"] == "Eileen" for face in faces) == count


def test_embeds_as_unit_vectors(server: Server, portrait: bytes) -> None:
    answer = server.client.post("/v1/embed", **raw(portrait)).json()
    (face,) = answer["faces"]
    assert len(face["embedding"]) == 128
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-5)


def test_searches_the_nearest_people(server: Server, portrait: bytes, mirrored: bytes) -> None:
    server.client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    server.client.post("/v1/people?name=Mirror", **raw(mirrored)).raise_for_status()
    (face,) = server.client.post("/v1/search?k=5", **raw(portrait)).json()["faces"]
    assert [person["name"] for person in face["people"]] == ["Eileen", "Mirror"]
    assert face["people"][0]["distance_l2"] < 0.01 < face["people"][1]["distance_l2"]
    (face,) = server.client.post("/v1/search?k=1", **raw(mirrored)).json()["faces"]
    assert [person["name"] for person in face["people"]] == ["Mirror"]


def test_verifies_two_photos(server: Server, portrait: bytes, mirrored: bytes) -> None:
    forms: list[dict[str, Any]] = [
        {"files": {"first": portrait, "second": mirrored}},
        {
            "json": {
                "first": base64.b64encode(portrait).decode(),
                "second": base64.b64encode(mirrored).decode(),
            }
        },
    ]
    for form in forms:
        answer = server.client.post("/v1/verify", **form).json()
        assert (answer["same_person"], answer["comparisons"]) == (True, 1)
        answer = server.client.post("/v1/verify?threshold_l2=0.001", **form).json()
        assert answer["same_person"] is False


def test_refuses_what_is_no_photo_with_a_reason(
    server: Server, portrait: bytes, astronaut: UInt8Array
) -> None:
    plain = as_jpeg(np.full((200, 200, 3), 128, np.uint8))
    client = server.client
    assert code_of(client.post("/v1/detect", **raw(b"no photo"))) == (422, "photo")
    assert code_of(client.post("/v1/detect", **raw(portrait[:5000]))) == (422, "photo")
    assert code_of(client.post("/v1/detect", **raw(b""))) == (400, "photo_missing")
    assert code_of(client.post("/v1/detect", files={"other": portrait})) == (400, "photo_missing")
    assert code_of(client.post("/v1/detect", json={"photo": "no base64!"})) == (400, "base64")
    assert code_of(client.post("/v1/detect", json=[1])) == (400, "json")
    assert code_of(client.post("/v1/detect", content=b"x", headers={"Content-Type": "text/plain"})) == (
        415,
        "media_type",
    )
    broken = {"content": b"--a\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}
    assert code_of(client.post("/v1/detect", **broken)) == (400, "form")  # type: ignore[arg-type]
    assert code_of(client.post("/v1/verify", files={"first": portrait, "second": plain})) == (
        422,
        "no_comparable_face",
    )
    assert client.post("/v1/detect", **raw(plain)).json()["faces"] == []
