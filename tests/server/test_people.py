"""The routes of people, their photos and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from server_helpers import Server, as_jpeg, code_of, raw

from facepipe.core.faces import UInt8Array

ODD_NAMES = ("Ada", "Ada/Lovelace", "100%", "a%2Fb", "Zoë Ω", "../etc/passwd", "?x=1#y", "names.json", ".")


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def test_people_of_any_name_are_created_read_renamed_and_removed(server: Server, portrait: bytes) -> None:
    client = server.client
    for name in ODD_NAMES:
        created = client.post("/v1/people", params={"name": name}, **raw(portrait))
        assert (created.status_code, created.json()["outcome"], created.json()["name"]) == (
            201,
            "enrolled",
            name,
        )
        path = f"/v1/people/{_quoted(name)}".replace("/.", "/%2E")
        assert client.get(path).json()["name"] == name
        assert client.patch(path, json={"name": "New"}).json()["name"] == "New"
        assert code_of(client.get(path)) == (404, "not_found")
        assert client.delete("/v1/people/New").json() == {"faces": 1}
    assert client.get("/v1/people").json() == {"total": 0, "people": []}


def test_lists_people_by_name_page_by_page(server: Server, portrait: bytes) -> None:
    for name in ("Cy", "ada", "Bo"):
        server.client.post("/v1/people", params={"name": name}, **raw(portrait)).raise_for_status()
    page = server.client.get("/v1/people?offset=1&limit=1").json()
    assert (page["total"], [person["name"] for person in page["people"]]) == (3, ["Bo"])


def test_adds_and_removes_photos(server: Server, portrait: bytes, mirrored: bytes) -> None:
    client = server.client
    client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    assert client.post("/v1/people/Eileen/photos", **raw(portrait)).json()["outcome"] == "known"
    added = client.post("/v1/people/Eileen/photos", **raw(mirrored)).json()
    assert added["outcome"] == "enrolled"
    faces = client.get("/v1/people/Eileen").json()["faces"]
    assert [face["id"] for face in faces] == [faces[0]["id"], added["id"]]
    assert code_of(client.delete("/v1/people/Eileen/photos/999999")) == (404, "not_found")
    assert client.delete(f"/v1/people/Eileen/photos/{added['id']}").json() == {"faces": 1}
    assert len(client.get("/v1/people/Eileen").json()["faces"]) == 1
    assert client.delete(f"/v1/people/Eileen/photos/{faces[0]['id']}").json() == {"faces": 1}
    assert code_of(client.get("/v1/people/Eileen")) == (404, "not_found")


def test_merges_two_people(server: Server, portrait: bytes, mirrored: bytes) -> None:
    client = server.client
    client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    client.post("/v1/people?name=Mirror", **raw(mirrored)).raise_for_status()
    assert code_of(client.post("/v1/people/Mirror/merge", json={"into": "Mirror"})) == (400, "same_person")
    assert code_of(client.post("/v1/people/Mirror/merge", json={"into": "Nobody"})) == (404, "not_found")
    assert client.post("/v1/people/Mirror/merge", json={"into": "Eileen"}).json() == {"faces": 1}
    (face,) = client.post("/v1/identify", **raw(mirrored)).json()["faces"]
    assert face["name"] == "Eileen"


def test_refuses_what_can_not_be(server: Server, portrait: bytes, astronaut: UInt8Array) -> None:
    client = server.client
    client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    client.post("/v1/people?name=Other", **raw(portrait)).raise_for_status()
    assert code_of(client.post("/v1/people?name=Eileen", **raw(portrait))) == (409, "name_taken")
    assert code_of(client.post("/v1/people?name=%20", **raw(portrait))) == (400, "name")
    assert code_of(client.post("/v1/people/Nobody/photos", **raw(portrait))) == (404, "not_found")
    assert code_of(client.delete("/v1/people/Nobody")) == (404, "not_found")
    assert code_of(client.get("/v1/people/%FF")) == (400, "name")
    assert code_of(client.patch("/v1/people/Eileen", json={"name": "Other"})) == (409, "name_taken")
    assert code_of(client.patch("/v1/people/Eileen", json={"nme": "x"}))[0] == 400
    twice = as_jpeg(np.concatenate([astronaut, astronaut], axis=1))
    assert code_of(client.post("/v1/people?name=Two", **raw(twice))) == (422, "several_faces")
    assert client.post("/v1/people?name=Two&force=true", **raw(twice)).json()["reasons"] == ["several_faces"]
    plain = as_jpeg(np.full((200, 200, 3), 128, np.uint8))
    assert code_of(client.post("/v1/people?name=No&force=true", **raw(plain))) == (422, "no_face")


def test_sets_thresholds_of_gallery_and_person(server: Server, portrait: bytes, mirrored: bytes) -> None:
    client = server.client
    client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    try:
        assert client.put("/v1/thresholds", json={"gallery_l2": 0.001}).json()["applied_l2"] == 0.001
        (face,) = client.post("/v1/identify", **raw(mirrored)).json()["faces"]
        assert (face["name"], face["threshold_l2"]) == (None, 0.001)
        assert client.patch("/v1/people/Eileen", json={"threshold_l2": 1.5}).json()["threshold_l2"] == 1.5
        assert client.get("/v1/thresholds").json()["people"] == {"Eileen": 1.5}
        (face,) = client.post("/v1/identify", **raw(mirrored)).json()["faces"]
        assert (face["name"], face["threshold_l2"]) == ("Eileen", 1.5)
    finally:
        client.put("/v1/thresholds", json={"gallery_l2": None}).raise_for_status()


def test_tells_the_gallery_in_figures(server: Server, portrait: bytes) -> None:
    server.client.post("/v1/people?name=Eileen", **raw(portrait)).raise_for_status()
    figures = server.client.get("/v1/gallery").json()
    assert (figures["people"], figures["faces"], figures["dimensions"]) == (1, 1, 128)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "data: missing"),
        (b"null", "data: Expected `object`, got `null`"),
        (b'{"gallery_l2": tru', "Input data was truncated"),
        (b"[" * 10_000, "JSON is nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes, message: str) -> None:
    answer = server.client.put("/v1/thresholds", content=body, headers={"Content-Type": "application/json"})
    assert code_of(answer) == (400, "bad_request")
    assert answer.json()["message"] == message
