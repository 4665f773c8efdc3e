"""What is around every route, also around those that are handed in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, MediaType, Router, get, post
from litestar.testing import TestClient

from facepipe.pipeline import FacePipeline
from facepipe.server.app import create_app
from facepipe.server.keys import ApiKeys
from facepipe.server.services import Services
from facepipe.server.settings import Limits, ServerSettings


@get("/page/{name:str}", media_type=MediaType.HTML, sync_to_thread=False)
def page(services: Services, name: str) -> str:
    return f"<p>{name} {len(services.gallery.people())}</p>"


@post("/page", sync_to_thread=False)
def change() -> str:
    raise RuntimeError("a defect")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def app(folder: Path) -> Litestar:
    settings = ServerSettings(gallery=folder, limits=Limits(body_bytes=1000, requests_per_minute=1000))
    pipeline = FacePipeline.load(folder, create_gallery=True)
    pipeline.gallery._store._home.read_only = True  # type: ignore[union-attr,misc]
    return create_app(Services(settings, pipeline), [Router("/", route_handlers=[page, change])])


@pytest.fixture(scope="module")
def client(app: Litestar) -> Iterator[TestClient[Litestar]]:
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_a_further_router_is_behind_the_same_security(client: TestClient[Litestar]) -> None:
    answer = client.get("/page/a%20b")
    assert (answer.text, answer.headers["Content-Type"]) == ("<p>a b 0</p>", "text/html; charset=utf-8")
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert client.get("/page/a", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/page", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/page", content=bytes(2000)).status_code == 413
    assert 'route="/page/{name}"' in client.get("/metrics").text


def test_a_defect_tells_clients_nothing_but_where_to_look(
    client: TestClient[Litestar], caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.post("/page")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "defect" not in answer.text
    assert f"request {answer.headers['X-Request-ID']} failed" in caplog.text
    assert "a defect" in caplog.text


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({"method": "GET", "url": "/v1/people/nobody"}, 404),
        ({"method": "DELETE", "url": "/page/a"}, 405),
        ({"method": "POST", "url": "/page", "content": bytes(2000)}, 413),
        ({"method": "GET", "url": "http://evil.example/page/a"}, 421),
        ({"method": "POST", "url": "/page"}, 500),
    ],
)
def test_every_error_carries_the_id_of_its_request(
    client: TestClient[Litestar], request_of: dict[str, Any], status: int, accept: str
) -> None:
    headers = {"X-Request-ID": "my-id.1", "Accept": accept}
    answer = client.request(**request_of, headers=headers)
    assert (answer.status_code, answer.json()["request_id"]) == (status, "my-id.1")
    assert answer.headers["X-Request-ID"] == "my-id.1"


def test_a_defect_before_the_route_is_an_error_as_others(
    client: TestClient[Litestar], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ApiKeys, text: str) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ApiKeys, "find", fail)
    answer = client.get("/v1/people", headers={"X-API-Key": "any"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert f"request {answer.headers['X-Request-ID']} failed" in caplog.text


def test_a_gallery_whose_file_is_away_is_told_in_one_line(
    client: TestClient[Litestar], caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    file = folder / "gallery.sqlite3"
    file.rename(folder / "away")
    try:
        answer = client.get("/v1/people")
    finally:
        (folder / "away").rename(file)
    assert (answer.status_code, answer.json()["code"]) == (503, "gallery_unreachable")
    assert client.get("/v1/people").status_code == 200
    (line,) = (record for record in caplog.records if "failed" in record.getMessage())
    assert "not there" in line.getMessage()
    assert line.exc_info is None


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v1/people/nobody/nothing", "/v1"])
def test_what_is_not_there_is_an_error_as_others(client: TestClient[Litestar], path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_gallery_that_is_read_only_is_not_changed(client: TestClient[Litestar]) -> None:
    answer = client.put("/v1/thresholds", json={"gallery_l2": 1.0})
    assert (answer.status_code, answer.json()["code"]) == (409, "read_only")
    assert client.get("/v1/thresholds").status_code == 200


def test_websockets_are_closed(client: TestClient[Litestar]) -> None:
    from litestar.exceptions import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/page/a"):
        pass
