"""Servers that name from one gallery in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import facepipe
from postgres_helpers import OWNER, new_database, new_server
from server_helpers import Server, code_of, raw, running

pytest.importorskip("psycopg", reason="needs the [postgres] extra")


def names(server: Server, photo: bytes, key: str) -> list[str | None]:
    """Whom a server sees in a photo."""
    request = raw(photo)
    headers = {**request["headers"], "Authorization": f"Bearer {key}"}
    answer = server.client.post("/v1/identify", content=photo, headers=headers)
    assert answer.status_code == 200, answer.text
    return [face["name"] for face in answer.json()["faces"]]


def test_what_one_server_changes_all_know_at_once(tmp_path: Path, portrait: bytes) -> None:
    with new_server() as database_server, new_database(database_server) as database:
        url = database_server.url(database, OWNER)
        (tmp_path / "portrait.jpg").write_bytes(portrait)
        said = facepipe("enroll", "--name", "Somebody", tmp_path / "portrait.jpg", "--gallery", url)
        assert said.code == 0, said.err
        key = facepipe("serve", "keys", "create", "desk", "--scope", "manage", "--gallery", url).out.strip()
        headers = {"Authorization": f"Bearer {key}"}
        options = ("--host", "0.0.0.0")  # where a key is needed
        with (
            running(url, *options, log=tmp_path / "one") as one,
            running(url, *options, log=tmp_path / "two") as other,
        ):
            assert names(one, portrait, key) == names(other, portrait, key) == ["Somebody"]
            renamed = one.client.patch("/v1/people/Somebody", json={"name": "Eileen"}, headers=headers)
            assert renamed.status_code == 200, renamed.text
            assert names(other, portrait, key) == ["Eileen"]

            database_server.kill()
            for path in ("/readyz", "/v1/people", "/v1/people"):
                assert one.client.get(path, headers=headers).status_code == 503
            assert one.client.get("/healthz").status_code == 200
            database_server.start()
            assert one.client.get("/readyz").status_code == 200
            assert names(one, portrait, key) == names(other, portrait, key) == ["Eileen"]

            removed = other.client.delete("/v1/people/Eileen", headers=headers)
            assert removed.status_code == 200, removed.text
            assert names(one, portrait, key) == names(other, portrait, key) == [None]
            assert facepipe("serve", "keys", "revoke", "desk", "--gallery", url).code == 0
            for server in (one, other):
                assert code_of(server.client.get("/v1/people", headers=headers)) == (401, "unknown_key")
        assert "Traceback" not in (tmp_path / "one").read_text()
        assert "can't be reached" not in (tmp_path / "two").read_text()
