"""API keys: what they allow, and what of them is stored."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from server_helpers import Server, code_of, raw, running

from facepipe.cli import main
from facepipe.core.errors import UsageError
from facepipe.server.database import server_database
from facepipe.server.keys import SCOPES, ApiKeys, Scope
from facepipe.server.settings import SERVER_FILE


def test_only_hashes_are_stored_in_a_private_file(tmp_path: Path) -> None:
    keys = ApiKeys(server_database(tmp_path / "g"))
    assert keys.none_created
    text = keys.create("app", Scope.READ)
    secret = text.split("_", 2)[2]
    assert secret.encode() not in (tmp_path / "g" / SERVER_FILE).read_bytes()
    assert stat.S_IMODE(os.stat(tmp_path / "g" / SERVER_FILE).st_mode) == 0o600
    found = keys.find(text)
    assert found is not None
    assert (found.name, found.scope) == ("app", Scope.READ)


@pytest.mark.parametrize("change", ["", "x", "fp__", "fp_é_ü"])
def test_other_texts_are_no_keys(tmp_path: Path, change: str) -> None:
    keys = ApiKeys(server_database(tmp_path))
    assert keys.find(change) is None
    text = keys.create("app", Scope.READ)
    assert keys.find(change) is None
    assert keys.find(text[:-1]) is None
    assert keys.find(f"{text}x") is None


def test_a_name_is_free_again_after_its_key_was_revoked(tmp_path: Path) -> None:
    keys = ApiKeys(server_database(tmp_path))
    first = keys.create("app", Scope.READ)
    with pytest.raises(UsageError, match="revoke it first"):
        keys.create("app", Scope.READ)
    keys.revoke("app")
    second = keys.create("app", Scope.MANAGE)
    assert keys.find(first) is None
    assert keys.find(second) is not None
    with pytest.raises(UsageError, match="no valid key"):
        keys.revoke("nobody")


def _command(*words: object) -> str:
    done = CliRunner().invoke(main, ["serve", "keys", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_keys_are_listed_with_what_they_allow(tmp_path: Path) -> None:
    for scope in SCOPES:
        _command("create", f"key {scope}", "--scope", scope, "--gallery", tmp_path / "gallery")
    lines = _command("list", "--gallery", tmp_path / "gallery").splitlines()
    assert sorted(line.split()[1:4] for line in lines) == sorted([scope, "key", scope] for scope in SCOPES)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that other machines could reach, with a key of scope manage."""
    folder = tmp_path_factory.mktemp("guarded")
    _command("create", "first", "--scope", "manage", "--gallery", folder / "gallery")
    with running(folder / "gallery", "--host", "0.0.0.0", log=folder / "log") as server:
        yield server


def test_scopes_are_enforced_and_revoked_at_once(guarded: Server, portrait: bytes) -> None:
    gallery = guarded.log.parent / "gallery"
    client, headers = guarded.client, raw(portrait)["headers"]
    wanted = {"read": (200, 403, 403), "identify": (200, 200, 403), "manage": (200, 200, 404)}
    for scope, statuses in wanted.items():
        key = _command("create", scope, "--scope", scope, "--gallery", gallery)
        for given in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
            answers = (
                client.get("/v1/people", headers=given),
                client.post("/v1/detect", content=portrait, headers=headers | given),
                client.delete("/v1/people/Nobody", headers=given),
            )
            assert tuple(answer.status_code for answer in answers) == statuses
        _command("revoke", scope, "--gallery", gallery)
        assert code_of(client.get("/v1/people", headers={"X-API-Key": key})) == (401, "unknown_key")
    assert _command("list", "--gallery", gallery).count("revoked") == 3


def test_every_route_but_health_needs_a_key(guarded: Server) -> None:
    document = guarded.client.get("/v1/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = guarded.client.request(method, path.replace("{face_id}", "1").replace("{name}", "a"))
            needs_none = operation.get("security") == []
            assert (answer.status_code == 200) if needs_none else (code_of(answer) == (401, "key_missing"))


def test_a_server_stays_locked_when_its_last_key_is_revoked(tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    with running(gallery, log=tmp_path / "log") as server:
        assert server.client.get("/v1/people").status_code == 200
        _command("create", "a", "--scope", "read", "--gallery", gallery)
        assert code_of(server.client.get("/v1/people")) == (401, "key_missing")
        _command("revoke", "a", "--gallery", gallery)
        assert code_of(server.client.get("/v1/people")) == (401, "key_missing")


def test_without_a_key_nothing_comes_through_a_proxy(server: Server) -> None:
    answer = server.client.get("/v1/people", headers={"X-Forwarded-For": "192.0.2.1"})
    assert code_of(answer) == (401, "key_missing")


def test_only_this_machine_is_local() -> None:
    from facepipe.server.settings import is_loopback

    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.1", "localhost.evil")] == [False] * 4


def test_help_does_not_need_the_extra() -> None:
    blocked = "import sys; sys.modules['litestar'] = None; from facepipe.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked, "serve"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "[serve] extra" in done.stderr
