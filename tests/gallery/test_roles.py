"""Roles that may do no more than they need, by SQL that a server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import facepipe
from gallery_helpers import ENCODER, person_vectors, templates
from postgres_helpers import OWNER, PostgresServer

from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery import Gallery
from facepipe.gallery.address import PostgresAddress
from facepipe.gallery.repair import verify
from facepipe.gallery.roles import roles_sql

psycopg = pytest.importorskip("psycopg", reason="needs the [postgres] extra")

READER, WRITER = "kiosk at the door", 'desk "2" it\'s\\'


@pytest.fixture
def database(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """A gallery with Ada, a reader's and a writer's role on it; the name of its database."""
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    with Gallery.open(postgres_url, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
    words = ("--gallery", postgres_url, "--reader", READER, "--writer", WRITER)
    sql = facepipe("gallery", "roles", *words).out
    for _ in range(2):  # again changes nothing
        postgres_server.execute(sql, database=name)
    yield name
    for role in (READER, WRITER):
        quoted = '"' + role.replace('"', '""') + '"'
        postgres_server.execute(f"DROP OWNED BY {quoted}", database=name)
        postgres_server.execute(f"DROP ROLE {quoted}")


def test_a_reader_identifies_and_changes_nothing(postgres_server: PostgresServer, database: str) -> None:
    url = postgres_server.url(database, READER)
    with Gallery.open(url, ENCODER) as gallery:
        assert gallery.read_only
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
        for change in (
            lambda: gallery.add("Bob", templates(person_vectors(2, 1))),
            lambda: gallery.remove("Ada"),
            lambda: gallery.set_threshold(0.5),
        ):
            with pytest.raises(GalleryError, match=r"postgresql://.*(read-only|may not)"):
                change()
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
    assert verify(url) == ()
    may_not(postgres_server, database, READER, "INSERT INTO facepipe.keys VALUES ('', '', '', '', '')")
    may_not(postgres_server, database, READER, "DELETE FROM facepipe.people")
    may_not(postgres_server, database, READER, "DROP TABLE facepipe.people")


def test_a_writer_adds_and_erases_and_leaves_the_tables(
    postgres_server: PostgresServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.url(database, WRITER)
    with Gallery.open(url, ENCODER) as gallery:
        assert not gallery.read_only
        gallery.add("Bob", templates(person_vectors(2, 1)))
        assert gallery.match(person_vectors(2, 1))[0].name == "Bob"
        gallery.remove("Ada")
        gallery.set_threshold(0.5)
        assert "wipe" not in caplog.text
        with pytest.raises(GalleryError, match=r"postgresql://.*may not"):
            gallery.encrypt(b"a key of many bytes")
        assert [person.name for person in gallery.people()] == ["Bob"]
    for table in ("people", "templates", "meta", "keys"):
        may_not(postgres_server, database, WRITER, f"DROP TABLE facepipe.{table}")
        may_not(postgres_server, database, WRITER, f"TRUNCATE facepipe.{table} CASCADE")
        may_not(postgres_server, database, WRITER, f"ALTER TABLE facepipe.{table} ADD COLUMN x text")
    may_not(postgres_server, database, WRITER, "CREATE TABLE facepipe.mine (x text)")
    with Gallery.open(postgres_server.url(database, OWNER), ENCODER) as gallery:
        assert [person.name for person in gallery.people()] == ["Bob"]


def may_not(server: PostgresServer, database: str, role: str, statement: str) -> None:
    """A role is refused a statement."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        server.execute(statement, database=database, user=role)


def test_roles_have_names_and_belong_to_a_database() -> None:
    address = PostgresAddress("postgresql://db/people", "family")
    assert "SCHEMA family" in roles_sql(address, "kiosk", None)
    assert "INSERT" not in roles_sql(address, "kiosk", None)
    for name in ("", "pg_monitor", "public", "x" * 64, "a\nb", "$facepipe$"):
        with pytest.raises(UsageError, match="a role's name"):
            roles_sql(address, None, name or "\n")
    with pytest.raises(UsageError, match=r"roles are PostgreSQL's"):
        roles_sql(Path("folder"), "kiosk", None)
