"""The servers that other tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from postgres_helpers import OWNER, PASSWORD, PostgresServer, new_server

psycopg = pytest.importorskip("psycopg", reason="needs the [postgres] extra")


def test_a_database_is_its_owners_and_has_vectors(postgres_server: PostgresServer, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (OWNER,)
        distance = connection.execute("SELECT '[3, 4]'::vector <-> '[0, 0]'").fetchone()
        connection.execute("CREATE SCHEMA mine")
    assert distance == (5.0,)
    assert int(postgres_server.execute("SHOW server_version_num")[0][0]) >= 180000
    with psycopg.connect(postgres_server.url(user=OWNER, password=PASSWORD)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url(user=OWNER, password="wrong"))


def test_a_killed_server_starts_again_and_has_what_was_committed() -> None:
    with new_server(work_mem="2MB") as server:
        assert server.execute("SHOW work_mem") == [("2MB",)]
        server.execute("CREATE TABLE t (n int)")
        connection = psycopg.connect(server.url())
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        connection.execute("INSERT INTO t VALUES (2)")
        server.kill()
        assert not server.process
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        server.start()
        assert server.execute("SELECT n FROM t") == [(1,)]
        server.stop()
        server.start()
        assert server.execute("SELECT n FROM t") == [(1,)]
        folder = server.folder
        owner = folder.stat()
        assert (owner.st_mode & 0o777, owner.st_uid == 0) == (0o700, False)
    assert not folder.exists()
    assert not [name for name in os.listdir("/proc") if name.isdigit() and _cwd(name) == server.data]


def _cwd(process: str) -> Path | None:
    try:
        return Path(f"/proc/{process}/cwd").readlink()
    except OSError:
        return None
