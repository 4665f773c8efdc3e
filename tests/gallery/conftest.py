"""Places for galleries: the same promises are tested in a folder and in a PostgreSQL schema."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_helpers import OWNER, PostgresServer, new_database


@pytest.fixture(autouse=True)
def _quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let keys be derived at once: the derivation is `cryptography`'s, and takes a tenth of a second."""
    monkeypatch.setattr("facepipe.gallery.storage.encryption._SCRYPT_COST", 2)


@pytest.fixture(scope="session")
def shared_database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database whose schemas are each of one test; its role `OWNER` may make them."""
    with new_database(postgres_server) as name:
        yield postgres_server.url(name, OWNER)


@pytest.fixture
def schema_url(shared_database: str) -> str:
    """The URL of a schema that is not there yet."""
    return f"{shared_database}&schema=test_{time.monotonic_ns()}"


@pytest.fixture(params=["folder", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a gallery, where there is none yet."""
    if request.param == "folder":
        return str(tmp_path / "g")
    url: str = request.getfixturevalue("schema_url")
    return url
