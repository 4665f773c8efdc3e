"""A connection to PostgreSQL that takes the tables' statements, with `?` where a value stands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict

from facepipe.gallery.address import PostgresAddress
from facepipe.gallery.storage.home import Cursor, SettingValue
from facepipe.gallery.storage.postgres.vector_table import SEARCH_SETTINGS

CONNECT_TIMEOUT_S = 10
"""Of each host, unless the address or `PGCONNECT_TIMEOUT` names another."""
_DEFAULTS = {
    "application_name": "facepipe",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""So that a server or network that is gone is noticed within a minute. A service file goes before them."""
_VARIABLES = {"application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT"}
_SERVER_SETTINGS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "jit": "off",
}
"""So that the server notices a client that is gone, for whose transaction others wait. JIT takes longer."""
_STREAMED_ROWS = 1000
_COPIED_ROWS_MIN = 20
"""Fewer rows are sooner inserted by a statement."""


def connect(address: PostgresAddress) -> Connection:
    """Connect; libpq takes what the URL leaves out from its variables, service and password files.

    Raises:
        psycopg.Error: No connection can be made.
    """
    given = conninfo_to_dict(address.conninfo)
    if "service" in given or "PGSERVICE" in os.environ:
        defaults: dict[str, Any] = {}
    else:
        defaults = {
            key: value
            for key, value in _DEFAULTS.items()
            if key not in given and _VARIABLES.get(key, key) not in os.environ
        }
    raw = psycopg.connect(address.conninfo, autocommit=True, client_encoding="UTF8", **defaults)
    raw.prepare_threshold = None  # Plans of other types of columns would be left when a gallery is encrypted.
    raw.adapters.register_dumper(SettingValue, _SettingDumper)
    raw.adapters.register_dumper(SettingValue, _BinarySettingDumper)
    raw.adapters.register_loader("json", _SettingLoader)
    settings = {"search_path": address.schema, **_SERVER_SETTINGS, **SEARCH_SETTINGS}
    calls = ", ".join(["set_config(%s, %s, false)"] * len(settings))
    with closed_on_error(raw):
        raw.execute(f"SELECT {calls}".encode(), [text for setting in settings.items() for text in setting])
    return Connection(raw)


@contextmanager
def closed_on_error(raw: psycopg.Connection[Any]) -> Iterator[None]:
    """Close a new connection where what prepares it inside fails."""
    try:
        yield
    except BaseException:
        raw.close()
        raise


class Connection:
    """A connection outside and inside of transactions, as `facepipe.gallery.storage.home.Sql` has it.

    Attributes:
        raw: The driver's, in its mode that begins no transactions.
        total_changes: Number of rows inserted, updated and deleted.
    """

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw
        self.total_changes = 0
        self._streams = 0

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, be it a failed one."""
        status = self.raw.info.transaction_status
        return status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    @property
    def is_idle(self) -> bool:
        """Whether no transaction is open and no statement runs."""
        return self.raw.info.transaction_status == pq.TransactionStatus.IDLE

    @property
    def is_usable(self) -> bool:
        """Whether the connection is open, as far as is known without asking the server."""
        return not (self.raw.closed or self.raw.broken)

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        with suppress(psycopg.Error):
            self.raw.close()

    def run(self, statements: str) -> str:
        """Run statements without values, in one message; returns how the last one says it ended."""
        return self.raw.execute(statements.encode(), prepare=False).statusmessage or ""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Run a statement."""
        cursor = self.raw.cursor(binary=True)
        cursor.execute(_translated(statement), values)
        if cursor.description is None:
            self.total_changes += max(cursor.rowcount, 0)
        return cursor

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> None:
        """Run a statement that returns no rows once for each row of values, without waiting in between."""
        cursor = self.raw.cursor()
        cursor.executemany(_translated(statement), rows)
        self.total_changes += max(cursor.rowcount, 0)

    def stream(self, query: str, values: Sequence[Any] = ()) -> Cursor:
        """Run a query with a cursor in the server."""
        self._streams += 1
        cursor = self.raw.cursor(f"stream_{self._streams}", binary=True)
        cursor.itersize = _STREAMED_ROWS
        cursor.execute(_translated(query), values)
        return _Stream(cursor)

    def insert(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> list[int]:
        """Insert rows into a table with ids; returns the new ids, which rise."""
        if not rows:
            return []
        if len(rows) < _COPIED_ROWS_MIN:
            marks = ", ".join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))
            values = [value for row in rows for value in row]
            query = f"INSERT INTO {table} ({columns}) VALUES {marks} RETURNING id"
            ids = [id for (id,) in self.execute(query, values).fetchall()]
            self.total_changes += len(ids)
            return sorted(ids)
        query = f"SELECT nextval(pg_get_serial_sequence('{table}', 'id')) FROM generate_series(1, ?)"
        ids = [id for (id,) in self.execute(query, (len(rows),)).fetchall()]
        self.copy(table, f"id, {columns}", ((id, *row) for id, row in zip(ids, rows, strict=True)))
        return ids

    def last_id(self, table: str) -> int:
        """Return the largest id that was ever given in a table; 0: none."""
        query = f"SELECT pg_sequence_last_value(pg_get_serial_sequence('{table}', 'id')::regclass)"
        return int(self.execute(query).fetchone()[0] or 0)

    def raise_last_id(self, table: str, id: int) -> None:
        """Give larger ids only than `id`, and than those of all rows that are there."""
        (largest,) = self.execute(f"SELECT COALESCE(MAX(id), 0) FROM {table}").fetchone()
        if (last := max(id, largest, self.last_id(table))) > 0:
            self.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), ?)", (last,))

    def copy(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Store rows with all their values, ids too."""
        types = self._types(table, columns)
        with self.raw.cursor() as cursor:
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
            self.total_changes += max(cursor.rowcount, 0)

    def _types(self, table: str, columns: str) -> list[int]:
        """Return the object ids of the types of columns."""
        described = self.execute(f"SELECT {columns} FROM {table} LIMIT 0").description
        return [column.type_code for column in described]


class _Stream:
    """A cursor in the server, closed after its last row: an open one keeps its table from being altered."""

    def __init__(self, cursor: psycopg.ServerCursor[Any]) -> None:
        self._cursor = cursor
        self._rows = iter(cursor)
        self.rowcount, self.description = cursor.rowcount, cursor.description

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._rows)
        except StopIteration:
            self.close()
            raise

    def fetchone(self) -> Any:
        return next(self, None)

    def fetchall(self) -> list[Any]:
        return list(self)

    def close(self) -> None:
        self._cursor.close()


@lru_cache(maxsize=4096)
def _translated(statement: str) -> bytes:
    """Return a statement as psycopg takes it."""
    return statement.replace("%", "%%").replace("?", "%s").encode()


class _SettingDumper(Dumper):
    """Writes the value of a setting as JSON: a number, or bytes as hexadecimal text."""

    oid = psycopg.adapters.types["json"].oid

    def dump(self, obj: SettingValue) -> Buffer:
        value = obj.value.hex() if isinstance(obj.value, bytes) else obj.value
        return json.dumps(value).encode()


class _BinarySettingDumper(_SettingDumper):
    """Writes the same for binary copies."""

    format = pq.Format.BINARY


class _SettingLoader(Loader):
    """Reads the value of a setting."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Any:
        try:
            value = json.loads(bytes(data))
            return bytes.fromhex(value) if isinstance(value, str) else value
        except ValueError:
            return bytes(data)  # Which agrees with no checksum.
