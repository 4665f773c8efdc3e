"""A PostgreSQL schema as the home of a gallery: transactions, connections after a loss, and what is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from facepipe.core.errors import GalleryError
from facepipe.core.forks import never_free, watch_forks
from facepipe.gallery.address import PostgresAddress
from facepipe.gallery.models import EncoderIdentity, Finding
from facepipe.gallery.storage.encoder_rows import encoder_values
from facepipe.gallery.storage.encryption import key_statements, new_codec
from facepipe.gallery.storage.errors import UnknownOutcomeError, newer_schema
from facepipe.gallery.storage.home import Cursor, Sql
from facepipe.gallery.storage.postgres.connections import Connection, closed_on_error, connect
from facepipe.gallery.storage.postgres.errors import NOT_KNOWN, errors_of, no_connection
from facepipe.gallery.storage.postgres.schema import (
    OLDEST_VERSION,
    VERSION_TABLE,
    creating_statements,
    migrating_statements,
    sealing_statement,
    unsealing_statement,
)
from facepipe.gallery.storage.postgres.vector_table import VectorTable
from facepipe.gallery.storage.postgres.wiping import wipe
from facepipe.gallery.storage.rows import Rows
from facepipe.gallery.storage.schema import (
    CHECKED_COLUMNS,
    SCHEMA_VERSION,
    SEALED_COLUMNS,
    TEXT_COLUMNS,
    row_checksum,
    state_statement,
)
from facepipe.gallery.storage.sqlite.database import create_database
from facepipe.gallery.storage.sqlite.schema import copying_statements

LOCK_TIMEOUT_S = 30.0
"""How long to wait for other writers; their transactions take milliseconds."""
_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_NOT_DURABLE = "synchronous_commit is off: a change that was done may be lost when the server crashes"
_STATUS = """SELECT
    pg_is_in_recovery(),
    current_setting('default_transaction_read_only') = 'on',
    COALESCE(has_table_privilege(to_regclass(?), 'UPDATE'), true),
    current_setting('synchronous_commit'),
    current_setting('server_version_num')::integer,
    current_setting('server_encoding'),
    to_regclass(?) IS NOT NULL,
    EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace(?))"""
_OLDEST_SERVER = 130_000
_SCHEMA_LOCK = 0x46504731
"""First number of the advisory lock of whoever makes or migrates a schema; the second is made of its name."""

_Result = TypeVar("_Result")

logger = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class _Status:
    """What the server answers to `_STATUS`."""

    is_replica: bool
    reads_by_default: bool
    may_write: bool
    synchronous_commit: str
    server_version: int
    encoding: str
    has_gallery: bool
    is_schema_used: bool

    @property
    def why_read_only(self) -> str | None:
        """Why nothing can be changed; None: it can."""
        if self.is_replica:
            return "the server is a replica"
        if self.reads_by_default:
            return "default_transaction_read_only is on"
        return None if self.may_write else "the role that logs in may only read"


class PostgresDatabase:
    """A connection that threads may share, one transaction at a time.

    After a loss, and in a forked process, the next transaction connects again.

    Args:
        address: The database and the schema.
        read_only: Change nothing.

    Attributes:
        address: The same.
        name: The address without its password, as text.
        gallery: The same.
        exists: There is a gallery in the schema.
    """

    def __init__(self, address: PostgresAddress, *, read_only: bool = False) -> None:
        self.address = address
        self.name = self.gallery = str(address)
        self._lock = threading.RLock()
        self._open: Connection | None = None
        self._is_closed = False
        self._only_reads = read_only
        self._read_only_why: str | None = None
        self.exists = False
        self._is_durable = True
        with errors_of(self.name):
            try:
                self._connected()
            except BaseException:
                self._drop()
                raise
        watch_forks(self)

    # Connecting

    @property
    def read_only(self) -> bool:
        """Nothing can be changed: the server is a replica, or the role may not."""
        return self._read_only_why is not None

    def _connected(self) -> Connection:
        """Return this process's connection, a new one where there is none or it is known to be lost."""
        if self._is_closed:
            raise GalleryError(f"{self.name}: the gallery is closed: open it again")
        if self._open is not None and not self._open.is_usable:
            self._drop()
        if self._open is None:
            try:
                self._open = connect(self.address)
            except psycopg.Error as error:
                raise no_connection(self.name, error) from error
            self._learn(self._open)
        return self._open

    def _learn(self, sql: Connection) -> None:
        """Learn what the server and the role are good for, and what is there."""
        schema = self.address.schema
        names = f"{schema}.meta", f"{schema}.{VERSION_TABLE}", schema
        found = _Status(*sql.execute(_STATUS, names).fetchone())
        if found.server_version < _OLDEST_SERVER:
            major = found.server_version // 10_000
            raise GalleryError(f"{self.name}: the server is PostgreSQL {major}: expected 13 or newer")
        if found.encoding != "UTF8":
            raise GalleryError(
                f"{self.name}: the database's encoding is {found.encoding}: make one with encoding UTF8"
            )
        if found.is_schema_used and not found.has_gallery:
            raise GalleryError(
                f"{self.name}: the schema {schema} holds other tables, but no gallery: name another one "
                "by ?schema=NAME"
            )
        self._read_only_why = "it was opened to read" if self._only_reads else found.why_read_only
        self.exists = found.has_gallery
        if found.synchronous_commit == "off" and self._is_durable and not self.read_only:
            self._is_durable = False
            logger.warning("%s: %s", self.name, _NOT_DURABLE)

    def _drop(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    def leave_to_parent(self) -> None:
        """Forget the connection without closing it, and what the parent's threads have locked."""
        if self._open is not None:
            never_free(self._open.raw)
        self._open, self._lock = None, threading.RLock()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()
            self._is_closed = True

    def discard(self) -> None:
        """Close the connection."""
        self.close()

    def listen(self) -> psycopg.Connection[Any]:
        """Return a connection of its own that gets a notification, the new generation, after every change."""
        with errors_of(self.name):
            try:
                raw = connect(self.address).raw
            except psycopg.Error as error:
                raise no_connection(self.name, error) from error
            with closed_on_error(raw):  # A standby refuses it.
                raw.execute(f"LISTEN {self.channel}".encode())
            return raw

    # Transactions

    @property
    def is_inside(self) -> bool:
        """Whether a transaction is open, inside `alone`."""
        return self._open is not None and self._open.in_transaction

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the connection from other threads."""
        with self._lock:
            yield

    def glance(self, query: str, *values: Any) -> Cursor:
        """Run a query of the present state, outside of any transaction: one message to the server."""
        with self._lock, errors_of(self.name):
            return self._retried(lambda sql: sql.execute(query, values))

    @contextmanager
    def reading(self, version: int = SCHEMA_VERSION) -> Iterator[Connection]:
        """Begin a transaction that reads one consistent state; inside of another one it is that one."""
        with self._lock, errors_of(self.name):
            if self._open is not None and self.is_inside:
                yield self._open
                return
            sql = self._begin(_READING)
            try:
                yield sql
            finally:
                self._end(sql)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Begin a transaction that changes the schema, alone among those that write or make the schema.

        Whoever waits to write has a lock on the table already, which a changing of the table waits for: so
        the table is locked, not its row.
        """
        lock = f"{self._schema_lock}; LOCK TABLE meta IN ACCESS EXCLUSIVE MODE"
        with self._writing(None, lock, self._announcement) as sql:
            yield sql

    @contextmanager
    def writing(self, wait_s: float | None = None) -> Iterator[Connection]:
        """Begin the only transaction that writes: all of it is durable at the end or, on an error, none.

        Raises:
            BusyDatabaseError: Another process was writing all the time.
            GalleryError: The connection was lost while the change was committed, or the gallery is read-only.
        """
        lock = "SELECT generation FROM meta FOR UPDATE"
        with self._writing(wait_s, lock, self._announcement) as sql:
            before = sql.total_changes
            yield sql
            if sql.total_changes != before and (vectors := self.vectors(sql)).is_there():
                vectors.add_new()

    def vectors(self, sql: Connection) -> VectorTable:
        """Return the table by which the server searches, which need not be there."""
        rows = Rows(self.name, self.gallery)
        rows.sql = sql
        return VectorTable(rows)

    @property
    def channel(self) -> str:
        """Name of the channel on which every change is announced, with the new generation."""
        return f"facepipe_{self.address.schema}"

    @property
    def _announcement(self) -> str:
        return f"SELECT pg_notify('{self.channel}', generation::text) FROM meta"

    @contextmanager
    def _writing(self, wait_s: float | None, lock: str, announcement: str | None) -> Iterator[Connection]:
        """Begin a transaction that writes, alone by what the statement `lock` locks."""
        with self._lock, errors_of(self.name):
            if self.is_inside:
                raise GalleryError(f"{self.name}: nothing can be changed while one state is read")
            self._require_writable()
            wait_ms = (LOCK_TIMEOUT_S if wait_s is None else wait_s) * 1000
            # For lock_timeout, 0 is no limit.
            sql = self._begin(f"BEGIN; SET LOCAL lock_timeout = {max(wait_ms, 1):.0f}; {lock}")
            try:
                before = sql.total_changes
                yield sql
                if sql.total_changes != before and announcement:
                    sql.execute(announcement)
                self._commit(sql)
            finally:
                self._end(sql)

    def _require_writable(self) -> None:
        if self._read_only_why:
            self._learn(self._connected())  # A replica may have become the primary since.
        if self._read_only_why:
            raise GalleryError(
                f"{self.name}: the gallery is read-only ({self._read_only_why}), so nothing can be changed: "
                "log in to the primary server as a role that may write"
            )

    def _begin(self, statements: str) -> Connection:
        """Begin a transaction; where the connection turns out to be lost since its last use, on a new one."""

        def begin(sql: Connection) -> Connection:
            try:
                sql.run(statements)
            except BaseException:
                self._end(sql)
                raise
            return sql

        return self._retried(begin)

    def _retried(self, action: Callable[[Connection], _Result]) -> _Result:
        """Do what begins the use of the connection; again on a new one where the old one is found lost."""
        was_open = self._open is not None
        sql = self._connected()
        try:
            return action(sql)
        except psycopg.OperationalError:
            if sql.is_usable or not was_open:
                raise
        self._drop()
        return action(self._connected())

    def _commit(self, sql: Connection) -> None:
        try:
            ended = sql.run("COMMIT")
        except psycopg.OperationalError as error:
            if sql.is_usable:
                raise
            raise UnknownOutcomeError(f"{self.name}: {NOT_KNOWN}") from error
        if ended != "COMMIT":  # PostgreSQL rolls a failed transaction back without an error.
            raise GalleryError(f"{self.name}: a statement had failed; nothing was changed")

    def _end(self, sql: Connection) -> None:
        """Roll back, unless the transaction is over; a connection that can't be used is dropped."""
        try:
            if sql.is_usable and sql.in_transaction:
                sql.run("ROLLBACK")
        except psycopg.Error:
            sql.close()
        if not (sql.is_usable and sql.is_idle):
            self._drop()

    # The schema

    def create(self, encoder: EncoderIdentity, secret: bytes | None) -> None:
        """Make an empty gallery, unless another process makes one first.

        Raises:
            GalleryError: The role may not, or the server is read-only.
        """
        with self._writing(None, self._schema_lock, None) as sql:
            self._learn(sql)
            if self.exists:
                return
            if not sql.execute("SELECT to_regnamespace(?)", (self.address.schema,)).fetchone()[0]:
                sql.execute(f"CREATE SCHEMA {self.address.schema}")
            for statement in creating_statements():
                sql.execute(statement)
            for table in SEALED_COLUMNS if secret else ():
                sql.execute(sealing_statement(table))
            values = encoder_values(encoder)
            sql.execute(
                f"INSERT INTO meta (id, generation, wipe_due, {CHECKED_COLUMNS['meta']}, checksum)"
                " VALUES (1, 0, 0, ?, ?, ?, ?, ?)",
                (*values, row_checksum(*values)),
            )
            self.set_text_types(sql, secret is not None)
            for statement, key_values in key_statements(new_codec(secret)):
                sql.execute(statement, key_values)
            sql.execute(*state_statement())
        self.exists = True

    @property
    def _schema_lock(self) -> str:
        return f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK}, hashtext('{self.address.schema}'))"

    def version(self, sql: Sql) -> int:
        """Return the version of the schema, after waiting for whoever migrates it where this may write.

        Raises:
            GalleryError: It is of a newer facepipe, or older and read-only.
        """
        (version,) = sql.execute(f"SELECT version FROM {VERSION_TABLE}").fetchone() or (0,)
        if version > SCHEMA_VERSION:
            raise GalleryError(newer_schema(self.name, version))
        if version < OLDEST_VERSION:
            raise GalleryError(
                f"{self.name}: the schema's version is {version}, which never was: restore a backup"
            )
        if version < SCHEMA_VERSION and self.read_only:
            raise GalleryError(
                f"{self.name}: of schema {version}, which is only read after it was brought up to date: open "
                "it once as the owner of the schema (`facepipe gallery list --gallery URL`)"
            )
        return int(version)

    def migrate(self, sql: Sql, version: int) -> None:
        """Bring the schema from a version up to date, inside `migrating`."""
        for statement in migrating_statements(version):
            sql.execute(statement)

    # Rows

    def any_text(self, sql: Sql) -> AbstractContextManager[None]:
        """Do nothing: the server stores no text that is no Unicode."""
        return nullcontext()

    def rewrite(
        self, sql: Sql, table: str, columns: Sequence[str], batches: Iterable[list[Any]], is_sealed: bool
    ) -> None:
        """Write columns anew by way of a temporary table, and change the type of text columns.

        Changing it copies the present rows to a new file, so that the old values are left in none.
        """
        assert isinstance(sql, Connection)
        # In between, text columns hold ciphertext as hexadecimal text, and text as bytes.
        as_stored = bytes.hex if is_sealed else str.encode
        convert: list[Callable[[Any], Any]] = [
            as_stored if name in TEXT_COLUMNS else _same for name in columns
        ]
        kinds = ["text" if is_sealed and name in TEXT_COLUMNS else "bytea" for name in columns]
        definitions = ", ".join(f"{name} {kind}" for name, kind in zip(columns, kinds, strict=True))
        sql.execute(
            f"CREATE TEMPORARY TABLE rewritten ({definitions}, checksum bigint, id bigint PRIMARY KEY)"
        )
        for rows in batches:
            sql.copy(
                "rewritten",
                ", ".join((*columns, "checksum", "id")),
                (_converted(row, convert) for row in rows),
            )
        assignments = ", ".join(f"{name} = rewritten.{name}" for name in (*columns, "checksum"))
        sql.execute(f"UPDATE {table} SET {assignments} FROM rewritten WHERE rewritten.id = {table}.id")
        sql.execute("DROP TABLE rewritten")
        sql.execute(sealing_statement(table) if is_sealed else unsealing_statement(table))

    def set_text_types(self, sql: Connection, is_sealed: bool) -> None:
        """Let the text columns of tables without rows hold ciphertext, or text."""
        query = """SELECT atttypid = 'bytea'::regtype FROM pg_attribute
            WHERE attrelid = ?::regclass AND attname = ?"""
        for table, columns in SEALED_COLUMNS.items():
            text = next(column for column in columns if column in TEXT_COLUMNS)
            (is_bytes,) = sql.execute(query, (table, text)).fetchone()
            if is_bytes != is_sealed:
                sql.execute(sealing_statement(table) if is_sealed else unsealing_statement(table))

    def note_all_changed(self, sql: Connection) -> None:
        """Give the gallery a new generation and new states, after a change that no `Store` made."""
        rows = Rows(self.name, self.gallery)
        rows.sql = sql
        rows.note_vectors_changed()
        rows.note_wipe_due()
        sql.execute("UPDATE meta SET generation = generation + 1")
        sql.execute(*state_statement())

    def findings(self, sql: Sql) -> Iterator[Finding]:
        """Yield nothing: the server checks its own pages."""
        return iter(())

    def size_bytes(self) -> int:
        """Bytes of the tables, with their indexes."""
        with self.reading() as sql:
            (size,) = sql.execute(
                "SELECT COALESCE(SUM(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = to_regnamespace(?)",
                (self.address.schema,),
            ).fetchone()
            return int(size)

    def backup(self, file: Path) -> None:
        """Copy the present state to a new SQLite file, with all ids, checksums and ciphertext."""
        with self.reading() as sql:
            create_database(file, copying_statements(sql))

    def wipe_deleted(self, wait: bool) -> bool:
        """Rewrite the tables without the remains of deleted rows, as far as the server lets the role."""
        with self._lock, errors_of(self.name):
            self._end(self._begin("BEGIN"))  # A connection that was lost is noticed here.
            return wipe(self._connected(), self.name, wait)


def _same(value: Any) -> Any:
    return value


def _converted(row: Sequence[Any], convert: list[Callable[[Any], Any]]) -> list[Any]:
    """Return a row whose first values are converted; None stays."""
    count = len(convert)
    changed = [
        None if value is None else change(value) for change, value in zip(convert, row[:count], strict=True)
    ]
    return [*changed, *row[count:]]
