"""A gallery in PostgreSQL, wherever a command takes a gallery."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cli_helpers import facepipe
from postgres_helpers import OWNER, PASSWORD, PostgresServer

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

ENCODED_PASSWORD = "p%40ss"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, where nothing may appear that is named like a URL."""
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "no passwords"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path for path in tmp_path.rglob("*") if path.name.startswith("postgres")] == []


@pytest.fixture
def photo(home: Path, astronaut: UInt8Array) -> Path:
    (home / "photos").mkdir()
    write_image(home / "photos" / "portrait.png", astronaut)
    return home / "photos" / "portrait.png"


@pytest.fixture
def url(postgres_server: PostgresServer, postgres_url: str) -> str:
    """By TCP, with the password in it."""
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    return postgres_server.url(database, OWNER, password=PASSWORD)


def said(*words: object, code: int = 0) -> str:
    """All that a command says, which never shows the password."""
    done = facepipe(*words)
    both = done.out + done.err
    assert done.code == code, both
    assert "p@ss" not in both, both
    assert ENCODED_PASSWORD not in both, both
    return both


def test_the_main_job_runs_on_a_database(photo: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_GALLERY", url)
    assert "there is no gallery" in said("gallery", "list", code=1)
    assert "Eileen" in said("enroll", "--name", "Eileen", photo)
    assert "Eileen" in said("identify", photo)
    assert "Eileen" in said("gallery", "list")
    number = said("gallery", "show", "Eileen").split()[0]
    assert "Eileen" in said("face", "show", number)
    said("gallery", "rename", "Eileen", "Eileen Collins")
    said("gallery", "threshold", "0.9")
    assert "is whole" in said("gallery", "verify")
    assert "is whole; nothing was done" in said("gallery", "repair")
    assert "postgresql://" in said("gallery", "info")
    assert "1 person, 1 face" in said("doctor")
    said("gallery", "audit")
    said("cluster")
    said("gallery", "export", "people.zip")
    assert "0 new faces" in said("gallery", "import", "people.zip")
    said("gallery", "copy", url, "folder")
    assert "0 new faces" in said("gallery", "merge-from", "folder")
    assert "0 new faces" in said("gallery", "merge-from", url, "--gallery", "folder")
    said("gallery", "backup", "elsewhere")
    assert "Eileen Collins" in said("gallery", "list", "--gallery", "elsewhere")
    said("gallery", "rename", "Eileen Collins", "Somebody else")
    assert "holds 1 face" in said("gallery", "restore", "folder")
    assert "erased" in said("gallery", "remove", "Eileen Collins")
    assert said("gallery", "list") == ""


def test_a_batch_remembers_the_url_without_its_password(
    photo: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said("enroll", "--name", "Eileen", photo, "--gallery", url)
    assert "$PGPASSWORD" in said("batch", "photos", "--out", "out", "--gallery", url)
    assert "$PGPASSWORD" not in said("batch", "photos", "--out", "out", "--gallery", url)
    (result,) = map(json.loads, Path("out/results.jsonl").read_text().splitlines())
    assert result["faces"][0]["name"] == "Eileen"
    for file in Path("out").rglob("*"):
        if file.is_file():
            assert ENCODED_PASSWORD.encode() not in file.read_bytes(), file
            assert PASSWORD.encode() not in file.read_bytes(), file
    with closing(sqlite3.connect("out/job.sqlite3")) as job:
        (stored,) = job.execute("SELECT gallery FROM library").fetchone()
    assert stored.decode() == url.replace(url[url.index(":", 13) : url.index("@")], "")
    assert "password" in said("library", "undo", "--library", "out", code=1)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert "nothing" in said("library", "undo", "--library", "out")


def test_service_files_and_variables_name_the_database(
    photo: Path, url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = url.rpartition("/")[2]
    Path("services").write_text(
        f"[faces]\nhost=127.0.0.1\nport={postgres_server.port}\ndbname={database}\nuser={OWNER}\n"
        f"password={PASSWORD}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", "services")
    said("enroll", "--name", "Eileen", photo, "--gallery", "postgresql:///?service=faces")
    for name, value in {"HOST": "127.0.0.1", "PORT": str(postgres_server.port), "DATABASE": database}.items():
        monkeypatch.setenv(f"PG{name}", value)
    monkeypatch.setenv("PGUSER", OWNER)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert "Eileen" in said("gallery", "list", "--gallery", "postgresql://")
    assert "no gallery" in said("gallery", "list", "--gallery", "postgresql://?schema=other", code=1)


def test_servers_of_one_gallery_know_the_same_keys(photo: Path, url: str) -> None:
    said("enroll", "--name", "Eileen", photo, "--gallery", url)
    key = said("serve", "keys", "create", "phone", "--scope", "read", "--gallery", url).strip()
    assert key.startswith("fp_")
    assert "phone" in said("serve", "keys", "list", "--gallery", url)
    said("serve", "keys", "create", "phone", "--scope", "read", "--gallery", url, code=2)
    said("serve", "keys", "revoke", "phone", "--gallery", url)
    assert "revoked" in said("serve", "keys", "list", "--gallery", url)
    assert "no valid key" in said("serve", "keys", "revoke", "phone", "--gallery", url, code=2)
