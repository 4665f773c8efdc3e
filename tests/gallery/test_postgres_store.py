"""A gallery in PostgreSQL: its schema, lost connections, errors, encryption, damage and copies."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from gallery_helpers import ENCODER, OTHER_ENCODER, person_vectors, start, template, templates
from postgres_helpers import OWNER, PASSWORD, PostgresServer

from facepipe.core.errors import GalleryError
from facepipe.gallery import Gallery
from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.repair import repair, verify
from facepipe.gallery.restore import restore
from facepipe.gallery.storage.salvaged import QUARANTINE_FILE
from facepipe.gallery.storage.schema import SCHEMA_VERSION

psycopg = pytest.importorskip("psycopg", reason="needs the [postgres] extra")

ADA, BOB = person_vectors(1, 4), person_vectors(2, 2)
SECRET = b"a key of many bytes"


def fill(gallery: Gallery) -> None:
    """Ada with the templates 1 to 4 and a threshold, Bob with 5 and 6, two unknown faces."""
    gallery.add("Ada", [template(v, f"ada{i}", b"crop %d" % i) for i, v in enumerate(ADA)])
    gallery.add("Bob", [template(v, f"bob{i}") for i, v in enumerate(BOB)])
    gallery.set_person_threshold("Ada", 0.5)
    gallery.set_threshold(0.75)
    gallery.remember_unknown(
        [template(v, f"x{i}", b"unknown crop") for i, v in enumerate(person_vectors(3, 2))]
    )


@pytest.fixture
def url(schema_url: str) -> str:
    """A gallery as `fill` leaves it."""
    with Gallery.open(schema_url, ENCODER, create=True) as gallery:
        fill(gallery)
    return schema_url


def contents(gallery: Gallery) -> dict[str, Any]:
    """All that a gallery holds."""
    return {
        "people": gallery.people(),
        "templates": [
            (t, gallery.crop(t.id), gallery.template_vector(t.id).tobytes())
            for person in gallery.people()
            for t in gallery.templates(person.name)
        ],
        "unknown": [
            (f.id, f.source, f.photo_sha256, f.added_at, f.embedding.tobytes(), gallery.unknown_crop(f.id))
            for f in gallery.unknown_faces()
        ],
        "threshold": gallery.threshold_l2,
    }


def contents_at(place: str | Path, secret: bytes | None = None) -> dict[str, Any]:
    with Gallery.open(place, secret=secret) as gallery:
        return contents(gallery)


class Database:
    """The database behind the gallery, for a test that does to it what facepipe does not.

    Args:
        url: Of the gallery.
    """

    def __init__(self, url: str) -> None:
        address = parse_address(url)
        assert isinstance(address, PostgresAddress)
        self._address = address

    def run(self, statement: str, *values: object) -> list[Any]:
        """Run a statement in the gallery's schema, as its owner."""
        with psycopg.connect(self._address.conninfo, autocommit=True) as connection:
            connection.execute(f"SET search_path TO {self._address.schema}")
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def cut_others(self) -> None:
        """End the connections of all others to this database."""
        self.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = current_user"
        )

    def text_of_all_tables(self) -> bytes:
        """All values of all tables of the schema, as a dump has them, and the planner's statistics."""
        names = self.run(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
        rows = [self.run(f"SELECT to_jsonb(t)::text FROM {name} AS t") for (name,) in names]
        statistics = self.run(
            "SELECT to_jsonb(s)::text FROM pg_stats AS s WHERE schemaname = current_schema()"
        )
        return repr([*rows, statistics]).encode()


# The schema


def test_there_is_no_gallery_unless_it_is_made(schema_url: str) -> None:
    with pytest.raises(GalleryError, match=r"postgresql://.*schema=test_\d+: there is no gallery"):
        Gallery.open(schema_url, ENCODER)
    with Gallery.open(schema_url, ENCODER, create=True) as gallery:
        assert str(gallery.path) == schema_url
        assert gallery.info().schema_version == SCHEMA_VERSION
        assert gallery.info().size_bytes > 8192
    with pytest.raises(GalleryError, match=r"holds vectors of round .* those of square"):
        Gallery.open(schema_url, OTHER_ENCODER, create=True)


def test_two_that_make_it_at_once_make_one(schema_url: str) -> None:
    code = """
        sys.stdin.readline()
        with Gallery.open(sys.argv[1], ENCODER, create=True) as gallery:
            gallery.add(sys.argv[2], templates(person_vectors(int(sys.argv[2]), 2)))
    """
    makers = [start(code, schema_url, number) for number in (1, 2)]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        maker.communicate()
        assert maker.returncode == 0
    with Gallery.open(schema_url) as gallery:
        assert [person.name for person in gallery.people()] == ["1", "2"]


def make_older(url: str) -> None:
    """Take away what the present version of the schema has and that before had not."""
    database = Database(url)
    database.run("ALTER TABLE meta DROP COLUMN state")
    database.run("UPDATE gallery_version SET version = 2")


def test_an_older_schema_is_brought_up_to_date_by_whoever_is_first(url: str) -> None:
    with Gallery.open(url) as gallery:
        before = contents(gallery)
    make_older(url)
    failures: list[BaseException] = []

    def open_and_read() -> None:
        try:
            with Gallery.open(url, ENCODER) as gallery:
                assert contents(gallery) == before
                assert len(gallery.state) > 32
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_and_read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Database(url).run("SELECT version FROM gallery_version") == [(SCHEMA_VERSION,)]
    assert verify(url, ENCODER) == ()


def test_a_migration_that_fails_leaves_the_gallery_as_it_was(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_older(url)
    monkeypatch.setattr(
        "facepipe.gallery.storage.postgres.database.migrating_statements",
        lambda version: ["ALTER TABLE meta ADD COLUMN state bytea", "SELECT no_such_function()"],
    )
    with pytest.raises(GalleryError, match="no_such_function"):
        Gallery.open(url)
    assert Database(url).run("SELECT version FROM gallery_version") == [(2,)]
    monkeypatch.undo()
    assert len(contents_at(url)["templates"]) == 6


def test_an_encrypted_gallery_of_an_older_schema(url: str) -> None:
    with Gallery.open(url) as gallery:
        gallery.encrypt(SECRET)
        before = contents(gallery)
    make_older(url)
    with pytest.raises(GalleryError, match="not the gallery's key"):
        Gallery.open(url, secret=b"another key")
    assert contents_at(url, SECRET) == before


def test_a_newer_schema_is_refused(url: str) -> None:
    Database(url).run("UPDATE gallery_version SET version = version + 1")
    newer = rf"newer facepipe \(schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}\): upgrade"
    with pytest.raises(GalleryError, match=newer):
        Gallery.open(url)


def test_a_schema_of_something_else_is_left_alone(schema_url: str) -> None:
    database = Database(schema_url)
    schema = str(parse_address(schema_url)).rpartition("=")[2]
    database.run(f"CREATE SCHEMA {schema}")
    database.run("CREATE TABLE invoices (id int)")
    with pytest.raises(GalleryError, match="holds other tables"):
        Gallery.open(schema_url, ENCODER, create=True)


def test_an_empty_schema_is_taken(schema_url: str) -> None:
    schema = str(parse_address(schema_url)).rpartition("=")[2]
    Database(schema_url).run(f"CREATE SCHEMA {schema}")
    with Gallery.open(schema_url, ENCODER, create=True) as gallery:
        assert gallery.add("Ada", templates(ADA))


# Connections


def test_the_next_call_connects_again(url: str) -> None:
    database = Database(url)
    with Gallery.open(url, ENCODER) as gallery:
        before = contents(gallery)
        database.cut_others()
        assert contents(gallery) == before
        database.cut_others()
        assert gallery.add("Eve", templates(person_vectors(4, 1))) == [7]
        database.cut_others()
        assert gallery.remove("Eve") == 1
        assert contents(gallery) == before


def add_twice(gallery: Gallery, between: Callable[[], object]) -> None:
    """Add two faces, do something else, and add two more, in one change."""
    with gallery._changing(vectors=True):
        gallery._store.add("Eve", templates(person_vectors(4, 2)))
        between()
        gallery._store.add("Eve", templates(person_vectors(5, 2)))


def test_a_connection_lost_within_a_change_leaves_nothing_of_it(url: str) -> None:
    database = Database(url)
    with Gallery.open(url, ENCODER) as gallery:
        before = contents(gallery)
        with pytest.raises(GalleryError, match="nothing was changed: try again"):
            add_twice(gallery, database.cut_others)
        assert contents(gallery) == before
        assert len(gallery.add("Eve", templates(person_vectors(4, 2)))) == 2


def test_a_commit_whose_answer_is_lost_is_said_to_be_unknown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facepipe.gallery.storage.postgres.connections import Connection

    run = Connection.run

    def run_and_lose(self: Connection, statements: str) -> str:
        ended = run(self, statements)
        if statements == "COMMIT":
            self.raw.close()
            raise psycopg.OperationalError("the connection is lost")
        return ended

    with Gallery.open(url, ENCODER) as gallery:
        monkeypatch.setattr(Connection, "run", run_and_lose)
        with pytest.raises(GalleryError, match="whether it was done is not known: look before you repeat it"):
            gallery.add("Eve", templates(person_vectors(4, 2)))
        monkeypatch.undo()
        assert len(gallery.templates("Eve")) == 2


def fail_quietly(gallery: Gallery) -> None:
    """Run a statement that fails, and go on."""
    with suppress(psycopg.Error):
        gallery._store._rows.sql.execute("SELECT 1 / 0")


def test_a_change_that_hid_a_failed_statement_is_not_said_to_be_done(url: str) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        before = gallery.state
        with pytest.raises(GalleryError, match="nothing was changed"):
            add_twice(gallery, lambda: fail_quietly(gallery))
        assert gallery.state == before


def test_a_forked_process_has_a_connection_of_its_own(url: str) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        before = contents(gallery)
        for _ in range(2):
            child = os.fork()
            if not child:
                is_same = contents(gallery) == before
                gallery.add(f"child {os.getpid()}", templates(person_vectors(os.getpid(), 1)))
                os._exit(0 if is_same else 1)
            assert os.waitpid(child, 0)[1] == 0
            before = contents(gallery)
        assert len(gallery.people()) == 4
        assert gallery.add("parent", templates(person_vectors(9, 1)))


def test_four_writers_and_four_readers_on_connections_of_their_own(schema_url: str) -> None:
    Gallery.open(schema_url, ENCODER, create=True).close()
    failures: list[BaseException] = []
    done = threading.Event()

    def write(writer: int) -> None:
        with Gallery.open(schema_url, ENCODER) as gallery:
            for step in range(12):
                vectors = person_vectors(1000 * writer + step, 3)
                gallery.add("Everybody", templates(vectors[:1]))
                gallery.add(f"{writer}/{step}", templates(vectors[1:]))
                if step % 4 == 3:
                    gallery.remove(f"{writer}/{step}")

    def read(_: int) -> None:
        with Gallery.open(schema_url, ENCODER) as gallery:
            last = -1
            while not done.is_set():
                with gallery.one_state():
                    generation, state = gallery.info().generation, gallery.state
                    counts = [p.template_count for p in gallery.people() if p.name != "Everybody"]
                    assert set(counts) <= {2}
                    assert (gallery.info().generation, gallery.state) == (generation, state)
                assert generation >= last
                last = generation

    def guarded(action: Any, number: int) -> None:
        try:
            action(number)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=guarded, args=(write, number)) for number in range(4)]
    readers = [threading.Thread(target=guarded, args=(read, number)) for number in range(4)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    with Gallery.open(schema_url, ENCODER) as gallery:
        counts = {p.name: p.template_count for p in gallery.people()}
        assert counts == {f"{w}/{s}": 2 for w in range(4) for s in range(12) if s % 4 != 3} | {
            "Everybody": 48
        }
        assert gallery.info().generation == 4 * (24 + 3)
    assert verify(schema_url, ENCODER) == ()


def test_every_change_is_announced(url: str) -> None:
    with Gallery.open(url, ENCODER) as gallery, closing(gallery._store._home.listen()) as listener:  # type: ignore[attr-defined]
        gallery.set_threshold(0.5)
        (notice,) = listener.notifies(timeout=10, stop_after=1)
        assert (notice.channel, notice.payload) == (
            f"facepipe_{parse_address(url).schema}",  # type: ignore[union-attr]
            str(gallery.info().generation),
        )


# Errors


def refused(url: str, match: str) -> None:
    with pytest.raises(GalleryError, match=match) as caught:
        Gallery.open(url, ENCODER)
    assert PASSWORD not in str(caught.value)
    assert "wrong" not in str(caught.value).split(": ")[0]


def test_what_can_not_be_reached_or_entered(postgres_server: PostgresServer) -> None:
    server = postgres_server
    good = server.url("postgres", OWNER, password=PASSWORD)
    refused(
        good.replace(str(server.port), "1"),
        "no connection to the server .*Connection refused.*check that it runs",
    )
    refused(server.url("postgres", OWNER, password="wrong"), "the password is wrong")
    refused(server.url("missing", OWNER, password=PASSWORD), 'there is no such database .*"missing"')
    refused(server.url("postgres", "nobody"), 'does not let this user in .*role "nobody"')
    refused(good, "there is no gallery")


@pytest.fixture
def reader(postgres_server: PostgresServer, url: str) -> Iterator[str]:
    """A role that may read the gallery."""
    role, schema = f"reader_{os.getpid()}", str(parse_address(url)).rpartition("=")[2]
    postgres_server.execute(f"CREATE ROLE {role} LOGIN")
    database = Database(url)
    database.run(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    database.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    yield url.replace(OWNER, role)
    database.run(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}")
    database.run(f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
    postgres_server.execute(f"DROP ROLE {role}")


def test_a_role_that_may_only_read(url: str, reader: str) -> None:
    with Gallery.open(reader, ENCODER) as gallery:
        assert gallery.read_only
        assert gallery.match(ADA[:1])[0].name == "Ada"
        assert contents(gallery) == contents_at(url)
        with pytest.raises(GalleryError, match=r"read-only \(the role that logs in may only read\)"):
            gallery.rename("Ada", "Eve")
    make_older(url)
    with pytest.raises(GalleryError, match="of schema 2, which is only read after it was brought up to date"):
        Gallery.open(reader)


def test_a_role_without_rights(url: str, reader: str) -> None:
    Database(url).run(f"REVOKE SELECT ON people FROM reader_{os.getpid()}")
    with pytest.raises(GalleryError, match=r"permission denied for table people.*let the owner"):
        Gallery.open(reader)


def options(url: str, setting: str) -> str:
    return url.replace("&schema=", f"&options=-c%20{setting.replace('=', '%3D')}&schema=")


def test_a_transaction_that_is_read_only_by_default(url: str) -> None:
    with Gallery.open(options(url, "default_transaction_read_only=on"), ENCODER) as gallery:
        assert gallery.match(ADA[:1])[0].name == "Ada"
        with pytest.raises(GalleryError, match=r"default_transaction_read_only is on.*primary"):
            gallery.remove("Ada")


def test_a_statement_that_takes_too_long_changes_nothing(url: str) -> None:
    with Gallery.open(options(url, "statement_timeout=300"), ENCODER) as gallery:
        before = contents(gallery)
        with pytest.raises(GalleryError, match="nothing was changed: raise statement_timeout"):
            add_twice(gallery, lambda: gallery._store._rows.sql.execute("SELECT pg_sleep(5)"))
        assert contents(gallery) == before


def test_too_many_connections(postgres_server: PostgresServer, url: str) -> None:
    postgres_server.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT 0")
    try:
        refused(url, "too many connections .*max_connections")
    finally:
        postgres_server.execute(f"ALTER ROLE {OWNER} CONNECTION LIMIT -1")


def test_changes_that_are_not_durable_are_said_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with Gallery.open(options(url, "synchronous_commit=off"), ENCODER) as gallery:
        gallery.set_threshold(0.5)
        Database(url).cut_others()
        gallery.set_threshold(0.6)
    assert caplog.text.count("synchronous_commit is off") == 1


# Encryption


def test_encrypting_leaves_no_plain_value_in_any_table(url: str) -> None:
    database = Database(url)
    secrets = [
        b"Ada",
        b"photos/ada1.jpg",
        b"photos/x0.jpg",
        ADA[0].tobytes().hex().encode(),
        b"crop 0".hex().encode(),
    ]
    assert [secret for secret in secrets if secret in database.text_of_all_tables()] == secrets
    with Gallery.open(url, ENCODER) as gallery, Gallery.open(url, ENCODER) as other:
        before, generation = contents(gallery), gallery.info().generation
        gallery.encrypt(SECRET)
        assert gallery.info().encrypted
        assert gallery.info().generation == generation + 1
        assert contents(gallery) == before
        database.run("ANALYZE")
        assert [secret for secret in secrets if secret in database.text_of_all_tables()] == []
        with pytest.raises(GalleryError, match="encrypted or decrypted the gallery: open it again"):
            other.people()
        assert gallery.add("Zoë", [template(person_vectors(5, 1)[0], "zoë")])
        assert gallery.match(person_vectors(5, 1))[0].name == "Zoë"
        assert gallery.remove("Zoë") == 1
    with pytest.raises(GalleryError, match="the gallery is encrypted: give its key"):
        Gallery.open(url)
    assert verify(url, ENCODER, SECRET) == ()
    with Gallery.open(url, ENCODER, secret=SECRET) as gallery:
        assert contents(gallery) == before
        gallery.decrypt()
        assert contents(gallery) == before
    assert contents_at(url) == before
    assert verify(url, ENCODER) == ()


def test_converting_that_fails_half_way_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        before = contents(gallery)
        monkeypatch.setattr(gallery._store._rows, "note_wipe_due", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gallery.encrypt(SECRET)
        monkeypatch.undo()
        assert not gallery.info().encrypted
        assert contents(gallery) == before
    assert contents_at(url) == before


def test_a_gallery_made_with_a_key_never_holds_a_plain_value(schema_url: str) -> None:
    with Gallery.open(schema_url, ENCODER, create=True, secret=SECRET) as gallery:
        fill(gallery)
        assert gallery.info().encrypted
    assert b"Ada" not in Database(schema_url).text_of_all_tables()
    assert len(contents_at(schema_url, SECRET)["templates"]) == 6


# Damage


@pytest.mark.parametrize(
    ("statement", "code", "left"),
    [
        ("UPDATE templates SET vector = decode(repeat('00', 512), 'hex') WHERE id = 2", "checksum", 5),
        ("UPDATE templates SET source = 'elsewhere' WHERE id = 5", "checksum", 5),
        ("UPDATE people SET name = 'Eve' WHERE name = 'Bob'", "checksum", 4),
        ("UPDATE unknown_faces SET quality = 0.5 WHERE id = 1", "checksum", 6),
        ("UPDATE settings SET value = '0.1'", "checksum", 6),
        ("DELETE FROM settings; DELETE FROM templates WHERE id > 4", "reference", 4),
        ("UPDATE meta SET encoder_name = 'square'", "checksum", None),
        ("DELETE FROM meta", "database", None),
    ],
)
def test_damaged_rows_are_found_and_put_aside(
    url: str, statement: str, code: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in statement.split("; "):
        Database(url).run(each)
    findings = verify(url)
    assert [finding.code for finding in findings] == [code] * len(findings)
    assert findings
    if left is None:
        with pytest.raises(GalleryError, match="say which it was with --encoder-weights"):
            repair(url)
        assert list(tmp_path.iterdir()) == []
        left = 6
    done = repair(url, ENCODER)
    assert done.templates == left
    assert done.aside is not None
    assert done.aside.parent == tmp_path
    lines = [json.loads(line) for line in (done.aside / QUARANTINE_FILE).read_text().splitlines()]
    assert len(lines) == done.quarantined
    assert verify(url, ENCODER) == ()
    with Gallery.open(url, ENCODER) as gallery:
        assert gallery.match(ADA[:1])[0].name == "Ada"
        assert gallery.add("Zoë", templates(person_vectors(9, 1)))[0] > 6


def test_a_whole_gallery_is_not_touched_by_repair(url: str) -> None:
    with Gallery.open(url) as gallery:
        before = gallery.state
    done = repair(url)
    assert (done.findings, done.templates, done.aside) == ((), 6, None)
    with Gallery.open(url) as gallery:
        assert gallery.state == before


@pytest.mark.parametrize(
    "statement",
    ["UPDATE key_copy SET salt = 'x'", "DELETE FROM key_copy", "DELETE FROM settings WHERE key = 'key_salt'"],
)
def test_a_damaged_key_is_mended_from_its_other_place(
    url: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Gallery.open(url) as gallery:
        before = contents(gallery)
        gallery.encrypt(SECRET)
    Database(url).run(statement)
    assert "key" in [finding.code for finding in verify(url, ENCODER, SECRET)]
    repair(url, secret=SECRET)
    assert verify(url, ENCODER, SECRET) == ()
    assert contents_at(url, SECRET) == before


# Copies


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_backup_is_a_folder_with_the_same_gallery(url: str, tmp_path: Path, secret: bytes | None) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        if secret:
            gallery.encrypt(secret)
        gallery.backup(tmp_path / "backup")
        before, state, generation = contents(gallery), gallery.state, gallery.info().generation
        with pytest.raises(GalleryError, match="pg_dump"):
            gallery.backup(url)
    assert verify(tmp_path / "backup", ENCODER, secret) == ()
    with Gallery.open(tmp_path / "backup", ENCODER, secret=secret) as backup:
        assert contents(backup) == before
        assert (backup.state, backup.info().generation) == (state, generation)
        assert backup.info().encrypted == (secret is not None)
        assert backup.add("Eve", templates(person_vectors(4, 1))) == [7]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_backup_is_restored_in_place_of_what_is_there(
    url: str, tmp_path: Path, secret: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Gallery.open(tmp_path / "other", ENCODER, create=True, secret=secret) as other:
        other.add("Carl", [template(v, f"carl{i}") for i, v in enumerate(person_vectors(6, 2))])
        other.set_threshold(0.25)
        wanted = contents(other)
    with Gallery.open(url, ENCODER) as open_before:
        before, generation = contents(open_before), open_before.info().generation
        open_before.match(ADA)
        done = restore(url, tmp_path / "other", ENCODER, secret)
        assert done.templates == 2
        with pytest.raises(GalleryError, match="open it again"):
            open_before.match(ADA[:1])
    with Gallery.open(url, ENCODER, secret=secret) as gallery:
        assert contents(gallery) == wanted
        assert gallery.info().generation == generation + 1
        assert gallery.info().encrypted == (secret is not None)
        assert gallery.match(ADA[:1])[0].name is None
        assert gallery.add("Eve", templates(person_vectors(4, 1))) == [7]
    assert verify(url, ENCODER, secret) == ()
    assert done.aside is not None
    assert contents_at(done.aside) == before
    assert restore(url, done.aside, ENCODER).templates == 6
    assert contents_at(url) == before


def test_a_backup_that_is_not_whole_is_not_restored(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "archive.zip").write_bytes(b"no archive")
    before = contents_at(url)
    with pytest.raises(GalleryError):
        restore(url, tmp_path / "archive.zip", ENCODER)
    assert contents_at(url) == before
    assert [file.name for file in tmp_path.iterdir()] == ["archive.zip"]


def test_an_archive_is_restored_where_there_is_no_gallery(url: str, schema_url: str, tmp_path: Path) -> None:
    with Gallery.open(url, ENCODER) as gallery:
        gallery.export_archive(tmp_path / "all.zip")
    new = f"{schema_url}_new"
    assert restore(new, tmp_path / "all.zip", ENCODER).aside is None
    assert without_ids(contents_at(new)) == without_ids(contents_at(url))


def without_ids(found: dict[str, Any]) -> dict[str, Any]:
    """The contents without what a copy gets anew."""
    faces = [(t.person, t.source, t.photo_sha256, t.added_at, *rest) for t, *rest in found["templates"]]
    return {**found, "templates": faces, "unknown": [face[1:] for face in found["unknown"]]}


def test_galleries_of_both_kinds_are_merged_both_ways(url: str, schema_url: str, tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "folder", ENCODER, create=True) as folder:
        assert folder.merge_from(url) == 6
        assert folder.merge_from(url) == 0
    with Gallery.open(f"{schema_url}_new", ENCODER, create=True, secret=SECRET) as database:
        assert database.merge_from(tmp_path / "folder") == 6
        assert without_ids(contents(database)) == without_ids(contents_at(url))
    with Gallery.open(url, ENCODER) as gallery:
        before = gallery.state
        assert gallery.merge_from(f"{schema_url}_new", SECRET) == 0
        assert gallery.state == before
