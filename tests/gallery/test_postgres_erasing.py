"""What erasing leaves in the files of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors, template
from postgres_helpers import OWNER, PostgresServer, new_database, new_server

from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.repair import verify

SECRET = "Zerbanoo Quillfeather"
CROP = bytes(range(256)) * 20  # larger than a page takes in line
FOLDER = "Zqx holidays"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with new_server(autovacuum="off") as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    with new_database(server) as name:
        yield name


def faces(seed: int, count: int, crop: bytes) -> list[NewTemplate]:
    """Faces with a path and a picture."""
    return [
        template(v, f"{FOLDER if seed == 1 else 'photo'} {i}", crop)
        for i, v in enumerate(person_vectors(seed, count))
    ]


def traces(server: PostgresServer, database: str, secrets: list[bytes]) -> list[str]:
    """Which files of a database hold any of the secrets."""
    server.execute("CHECKPOINT", database=database)
    ((oid,),) = server.execute("SELECT oid FROM pg_database WHERE datname = %s", (database,))
    return [
        f"{file.name}: {secret[:20]!r}"
        for file in Path(server.data / "base" / str(oid)).iterdir()
        for secret in secrets
        if secret in file.read_bytes()
    ]


@pytest.mark.parametrize("search", ["local", "server"])
def test_no_byte_of_who_was_removed_is_left_in_the_tables(
    server: PostgresServer, database: str, search: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "facepipe")
    url = server.url(database, OWNER, search=search)
    vectors = [vector.tobytes() for vector in person_vectors(1, 4)]
    secrets = [SECRET.encode(), CROP[:600], FOLDER.encode(), *vectors]
    with Gallery.open(url, ENCODER, create=True) as gallery:
        gallery.add("Bob", faces(2, 6, b"another picture"))
        gallery.add(SECRET, faces(1, 4, CROP))
        gallery.add("Eve", faces(3, 6, b"another picture"))
        kept = [gallery.vectors(name).tobytes() for name in ("Bob", "Eve")]
        found = traces(server, database, secrets)
        assert {trace.split(": ")[1] for trace in found} >= {repr(secret[:20]) for secret in secrets}
        gallery.remove(SECRET)
        assert traces(server, database, secrets) == []
        assert [gallery.vectors(name).tobytes() for name in ("Bob", "Eve")] == kept
    assert verify(url) == ()
    (message,) = [record.message for record in caplog.records if "backups" in record.message]
    assert "WAL" in message
    assert "replicas" in message


@pytest.mark.parametrize("search", ["local", "server"])
def test_encrypting_leaves_no_plain_byte_in_the_tables(
    server: PostgresServer, database: str, search: str
) -> None:
    url = server.url(database, OWNER, search=search)
    secrets = [SECRET.encode(), CROP[:600], FOLDER.encode(), person_vectors(1, 1)[0].tobytes()]
    with Gallery.open(url, ENCODER, create=True) as gallery:
        gallery.add(SECRET, faces(1, 2, CROP))
        assert traces(server, database, secrets)
        gallery.encrypt(b"a key of many bytes")
        assert traces(server, database, secrets) == []


def test_a_reader_in_the_way_puts_the_wiping_off(
    server: PostgresServer, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facepipe.gallery.storage.postgres.wiping.WAIT_S", 0.3)
    url = server.url(database, OWNER)
    with Gallery.open(url, ENCODER, create=True) as gallery, Gallery.open(url, ENCODER) as reader:
        gallery.add(SECRET, faces(1, 2, CROP))
        with reader.one_state():
            assert len(reader.people()) == 1
            gallery.remove(SECRET)
        assert "not yet wiped" in caplog.text
        assert traces(server, database, [SECRET.encode()])
    Gallery.open(url, ENCODER).close()
    assert traces(server, database, [SECRET.encode()]) == []
