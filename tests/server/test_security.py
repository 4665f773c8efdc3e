"""What holds for every request, whatever its route."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from server_helpers import Server, serve_command


def test_answers_when_alive_and_ready(server: Server) -> None:
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""])
def test_refuses_names_that_are_not_its_own(server: Server, host: str) -> None:
    answer = server.client.get("/healthz", headers={"Host": host})
    assert answer.status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000"])
def test_answers_to_its_names(server: Server, host: str) -> None:
    assert server.client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_refuses_changes_that_other_sites_ask_for(server: Server, headers: dict[str, str]) -> None:
    answer = server.client.post("/v1/detect", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")


def test_every_answer_has_security_headers_and_an_id(server: Server) -> None:
    for path in ("/healthz", "/nothing"):
        headers = server.client.get(path).headers
        assert "script-src 'self';" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert len(headers["X-Request-ID"]) == 16


def test_logs_requests_as_json_with_their_ids_and_without_paths(server: Server) -> None:
    for given, logged in (("my-id.1", True), ("bad id", False)):
        answer = server.client.get("/nothing/secret-name", headers={"X-Request-ID": given})
        assert (answer.headers["X-Request-ID"] == given) == logged
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = (line for line in lines if line.get("request_id") == "my-id.1")
    assert (line["event"], line["route"], line["status"]) == ("request", "(none)", 404)
    assert "secret-name" not in server.log.read_text()


def test_counts_requests(server: Server) -> None:
    server.client.get("/healthz")
    text = server.client.get("/metrics").text
    assert 'facepipe_requests_total{method="GET",route="/healthz",status="200"}' in text


def test_listens_to_others_only_with_a_key(tmp_path: Path) -> None:
    done = subprocess.run(
        serve_command(tmp_path / "g", "--host", "0.0.0.0"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "facepipe serve keys create" in done.stderr
