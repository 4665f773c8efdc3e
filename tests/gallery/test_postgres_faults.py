"""Faults of a real PostgreSQL server and of the way to it: one error each, and the next call works again."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gallery_helpers import ENCODER, person_vectors, template, templates
from postgres_helpers import (
    OWNER,
    PASSWORD,
    Link,
    PostgresServer,
    free_port,
    new_database,
    new_link,
    new_server,
    new_standby,
)
from postgres_kills import kill_clients, kill_servers

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.repair import verify
from facepipe.gallery.storage.postgres import connections

pytestmark = pytest.mark.filterwarnings(
    "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"
)
SOON = {
    "connect_timeout": "2",
    "tcp_user_timeout": "1500",
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "1",
}
"""Parameters by which a cut is noticed within the time of a test."""


def enroll(url: str) -> None:
    """Make a gallery with Ada and Bob."""
    with Gallery.open(url, ENCODER, create=True) as gallery:
        gallery.add("Ada", templates(person_vectors(1, 3)))
        gallery.add("Bob", templates(person_vectors(2, 2)))


def names(gallery: Gallery) -> list[str]:
    """Who is there."""
    return [person.name for person in gallery.people()]


def error_of(function: object, *arguments: object, **options: object) -> str:
    """The one line of error of a call."""
    with pytest.raises(GalleryError) as caught:
        function(*arguments, **options)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message, message
    assert "p@ss" not in message, message
    assert "p%40ss" not in message, message
    return message


@pytest.fixture
def url(postgres_url: str) -> str:
    enroll(postgres_url)
    return postgres_url


# Killed


def test_killed_servers_lose_nothing_that_was_acknowledged() -> None:
    losses = kill_servers(3)
    assert losses.lost == ()
    assert losses.acknowledged > 10
    for error in losses.errors:
        assert "postgresql://" in error, error


def test_killed_clients_lose_nothing_that_was_acknowledged() -> None:
    losses = kill_clients(3)
    assert losses.lost == ()
    assert losses.acknowledged > 5


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may stop; they start it again."""
    with new_server() as server:
        yield server


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_open_gallery_goes_on_after_a_restart(own_server: PostgresServer, end: str) -> None:
    with new_database(own_server) as name:
        url = own_server.url(name, OWNER)
        enroll(url)
        with Gallery.open(url, ENCODER) as gallery:
            assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
            getattr(own_server, end)()
            message = error_of(gallery.match, person_vectors(1, 1))
            assert re.search(rf"^postgresql://{OWNER}@.*/{name}\?.*connect", message), message
            error_of(gallery.add, "Eve", templates(person_vectors(3, 1)))
            own_server.start()
            assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
            gallery.add("Eve", templates(person_vectors(3, 1)))
            assert names(gallery) == ["Ada", "Bob", "Eve"]
        assert verify(url) == ()


def test_a_closed_connection_is_replaced(postgres_server: PostgresServer, url: str) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        for call in (lambda: gallery.match(person_vectors(1, 1)), lambda: gallery.rename("Bob", "Bob")):
            postgres_server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (OWNER,)
            )
            with suppress(GalleryError):
                call()
            call()


# Cut


@pytest.fixture(scope="module")
def linked_server() -> Iterator[tuple[Link, PostgresServer]]:
    with new_link() as link, new_server(link=link) as server:
        yield link, server


@pytest.fixture
def link(linked_server: tuple[Link, PostgresServer]) -> Link:
    """The way to `far_server`, in order."""
    linked_server[0].mend()
    return linked_server[0]


@pytest.fixture
def far_server(linked_server: tuple[Link, PostgresServer]) -> PostgresServer:
    """A server at the far end of `link`."""
    return linked_server[1]


def slow_down(server: PostgresServer, database: str, *, commits: bool) -> None:
    """Let each new person take two seconds on the server, where it is stored or where that is committed."""
    server.execute(
        """CREATE FUNCTION wait_a_while() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(2); RETURN NULL; END'""",
        database=database,
    )
    when = "DEFERRABLE INITIALLY DEFERRED" if commits else ""
    server.execute(
        f"CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON facepipe.people {when}"
        " FOR EACH ROW EXECUTE FUNCTION wait_a_while()",
        database=database,
    )


def add_while_cut(gallery: Gallery, link: Link) -> None:
    """Cut the connection in the middle of a change."""
    with gallery._changing():
        gallery._store.add("Half", templates(person_vectors(4, 1)))
        link.cut()
        gallery._store.add("Half", templates(person_vectors(5, 1)))


def test_a_cut_connection_is_noticed_in_every_phase(far_server: PostgresServer, link: Link) -> None:
    with new_database(far_server) as name:
        url = far_server.url(name, OWNER, password=PASSWORD, **SOON)
        enroll(url)
        with Gallery.open(url, ENCODER) as gallery:
            # Between two calls.
            link.cut()
            began = time.monotonic()
            error_of(gallery.match, person_vectors(1, 1))
            error_of(gallery.add, "Eve", templates(person_vectors(3, 1)))
            error_of(Gallery.open, url, ENCODER)
            assert time.monotonic() - began < 15
            link.mend()
            assert gallery.match(person_vectors(1, 1))[0].name == "Ada"

            # Inside a change, before it is committed.
            error_of(add_while_cut, gallery, link)
            link.mend()
            assert names(gallery) == ["Ada", "Bob"]

            # While it is committed: the server does it, and nobody hears of it.
            slow_down(far_server, name, commits=True)
            timer = threading.Timer(1.0, link.cut)
            timer.start()
            message = error_of(gallery.add, "Eve", templates(person_vectors(3, 1)))
            assert "not known" in message, message
            timer.join()
            while far_server.execute("SELECT count(*) FROM facepipe.people", database=name) != [(3,)]:
                assert time.monotonic() - began < 60
                time.sleep(0.02)
            link.mend()
            assert names(gallery) == ["Ada", "Bob", "Eve"]
            assert gallery.match(person_vectors(3, 1))[0].name == "Eve"
            assert gallery.add("Eve", templates(person_vectors(3, 1))) == []


def test_a_client_that_is_gone_does_not_hold_up_others(
    far_server: PostgresServer, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off while it was changing the gallery; the server's side of its connection notices that."""
    quickly = {name: value for name, value in SOON.items() if name.startswith("keepalives")}
    settings = {f"tcp_{name}": value for name, value in quickly.items()} | {"tcp_user_timeout": "1500"}
    monkeypatch.setattr(connections, "_SERVER_SETTINGS", settings)
    with new_database(far_server) as name:
        url = far_server.url(name, OWNER, password=PASSWORD, **SOON)
        enroll(url)
        with (
            Gallery.open(url, ENCODER) as gone,
            suppress(GalleryError),
            gone._changing(),
        ):
            gone._store.add("Half", templates(person_vectors(4, 1)))
            link.cut()
            began = time.monotonic()
            with Gallery.open(far_server.url(name, OWNER), ENCODER) as other:
                other.add("Eve", templates(person_vectors(3, 1)))
                assert time.monotonic() - began < 15
                assert names(other) == ["Ada", "Bob", "Eve"]
        link.mend()


# Full


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 MB of its own."""
    folder = Path(f"/tmp/facepipe-small-{os.getpid()}")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"can't mount: {done.stderr!r}")
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
        folder.rmdir()


def test_a_full_server_refuses_changes_and_is_read(small_disk: Path) -> None:
    with (
        new_server(small_disk, max_wal_size="8MB", min_wal_size="2MB") as server,
        new_database(server) as name,
    ):
        url = server.url(name, OWNER)
        enroll(url)
        with Gallery.open(url, ENCODER) as gallery:
            acknowledged: list[str] = []
            with pytest.raises(GalleryError, match=r"full|room|space|connect"):
                fill(gallery, small_disk, acknowledged)
            if server.process is not None and server.process.poll() is not None:
                server.process = None
            (small_disk / "filler").unlink()
            if server.process is None:
                server.start()
            server.wait_until_ready()
            assert set(acknowledged) <= set(names(gallery))
            gallery.add("Afterwards", templates(person_vectors(5, 1)))
        assert verify(url) == ()


def fill(gallery: Gallery, disk: Path, added: list[str]) -> None:
    """Add people with large crops until the server has no room; `added` gets the names of who was."""
    free = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - 3_000_000)))
    for number in range(60):
        faces = [template(person_vectors(number, 1)[0], f"{number}", os.urandom(200_000))]
        gallery.add(f"person {number}", faces)
        added.append(f"person {number}")


# Refused


def test_wrong_passwords_and_missing_databases_are_said(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    wrong = postgres_server.url("postgres", OWNER, password="p@ss wrong")
    message = error_of(Gallery.open, wrong)
    assert "password" in message
    absent = postgres_server.url("postgres", OWNER, password="").replace(":@", "@")
    assert "password" in error_of(Gallery.open, absent)
    assert "no_such" in error_of(Gallery.open, postgres_server.url("no_such", OWNER))
    assert "there is no gallery" in error_of(Gallery.open, postgres_server.url("postgres", OWNER))
    nobody = f"postgresql://{OWNER}@127.0.0.1:{free_port()}/people"
    assert "refused" in error_of(Gallery.open, nobody)


def test_too_many_connections_are_said(postgres_server: PostgresServer, url: str) -> None:
    postgres_server.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT 0")
    try:
        message = error_of(Gallery.open, url)
    finally:
        postgres_server.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT -1")
    assert "too many connections" in message
    Gallery.open(url, ENCODER).close()


def test_a_statement_timeout_is_said(postgres_server: PostgresServer, url: str) -> None:
    slow_down(postgres_server, url.partition("?")[0].rpartition("/")[2], commits=False)
    with Gallery.open(f"{url}&options=-c%20statement_timeout%3D400", ENCODER) as gallery:
        message = error_of(gallery.add, "Eve", templates(person_vectors(3, 1)))
        assert "nothing was changed" in message
        assert "statement_timeout" in message
        gallery.rename("Ada", "Ada Lovelace")
        assert names(gallery) == ["Ada Lovelace", "Bob"]


# Read-only


def test_a_standby_is_read_and_follows(own_server: PostgresServer) -> None:
    with new_database(own_server) as name, new_standby(own_server) as standby:
        enroll(own_server.url(name, OWNER))
        wait_for_replay(own_server, standby)
        with Gallery.open(standby.url(name, OWNER), ENCODER) as reader:
            assert reader.read_only
            assert reader.match(person_vectors(1, 1))[0].name == "Ada"
            assert "read-only" in error_of(reader.add, "Eve", templates(person_vectors(3, 1)))
            with Gallery.open(own_server.url(name, OWNER), ENCODER) as gallery:
                gallery.remove("Ada")
            wait_for_replay(own_server, standby)
            assert reader.match(person_vectors(1, 1))[0].name is None
            assert names(reader) == ["Bob"]
            # Nobody can listen on a standby, and no connection is left of trying it.
            assert "replica" in error_of(reader._store.home.listen)  # type: ignore[attr-defined]
            gc.collect()
        assert verify(standby.url(name, OWNER)) == ()


def wait_for_replay(server: PostgresServer, standby: PostgresServer) -> None:
    (lsn,) = server.execute("SELECT pg_current_wal_lsn()::text")[0]
    while standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (lsn,)) != [(True,)]:
        time.sleep(0.02)


def test_read_only_sessions_read(url: str) -> None:
    with Gallery.open(f"{url}&options=-c%20default_transaction_read_only%3Don", ENCODER) as gallery:
        assert gallery.read_only
        assert gallery.match(person_vectors(1, 1))[0].name == "Ada"
        assert "read-only" in error_of(gallery.remove, "Ada")


def test_a_change_is_not_called_undone_where_only_the_wiping_failed(
    postgres_server: PostgresServer,
    url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from facepipe.gallery.storage.postgres.wiping import wipe

    def end_connection(*_: object) -> bool:
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (OWNER,)
        )
        return wipe(*_)  # type: ignore[arg-type]

    with Gallery.open(url, ENCODER) as gallery:
        with monkeypatch.context() as patch:
            patch.setattr("facepipe.gallery.storage.postgres.database.wipe", end_connection)
            assert gallery.remove("Ada") == 3
        assert "not yet wiped" in caplog.text
        assert "nothing was changed" not in caplog.text
        assert names(gallery) == ["Bob"]
    caplog.clear()
    Gallery.open(url, ENCODER).close()
    assert "not yet wiped" not in caplog.text
    ((due,),) = postgres_server.execute(
        "SELECT wipe_due FROM facepipe.meta", database=url.partition("?")[0].rpartition("/")[2]
    )
    assert due == 0
