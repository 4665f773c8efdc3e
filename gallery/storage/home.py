"""What a gallery's tables are in: an SQLite file or a schema of PostgreSQL, behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from facepipe.gallery.models import Finding


class Cursor(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """Number of rows that the statement changed."""

    @property
    def description(self) -> Any:
        """One item a column, whose first item is its name."""

    def fetchone(self) -> Any:
        """Return the next row; None: there is none."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows that are left."""

    def close(self) -> None:
        """Give up the rows that are left."""


class Sql(Protocol):
    """A connection inside a transaction.

    Statements are written in what SQLite and PostgreSQL have in common, with `?` where a value stands.
    """

    @property
    def total_changes(self) -> int:
        """Number of rows inserted, updated and deleted by this connection."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Cursor:
        """Run a statement; its rows may all be read into memory at once."""

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Run a statement that returns no rows once for each row of values."""

    def stream(self, query: str, values: Sequence[Any] = ()) -> Cursor:
        """Run a query of any number of rows; some are in memory at a time."""

    def insert(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> list[int]:
        """Insert rows into a table with ids; returns the new ids, which rise and were never given before."""

    def copy(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Store rows with all their values, ids too, which no row has."""

    def last_id(self, table: str) -> int:
        """Return the largest id that `insert` ever gave in a table; 0: none."""

    def raise_last_id(self, table: str, id: int) -> None:
        """Let `insert` give larger ids only than `id`, and than those of all rows that are there."""


class Home(Protocol):
    """The tables of one gallery, in a database.

    Attributes:
        name: What messages about the database begin with, such as the SQLite file.
        gallery: What messages about the gallery begin with, such as its folder.
    """

    name: str
    gallery: str

    @property
    def read_only(self) -> bool:
        """Nothing can be changed."""

    def close(self) -> None:
        """Close the connection."""

    def discard(self) -> None:
        """Close what turned out to be damaged."""

    def version(self, sql: Sql) -> int:
        """Return the version of the schema, at most `SCHEMA_VERSION`.

        Raises:
            GalleryError: What is there is no gallery, is of a newer facepipe, or of a version that can only
                be read after a migration and must not be migrated.
        """

    def migrate(self, sql: Sql, version: int) -> None:
        """Bring the schema from a version up to date, inside `migrating`."""

    def reading(self, version: int = ...) -> AbstractContextManager[Sql]:
        """Begin a transaction that reads one consistent state, however long it takes and whoever writes.

        Inside of another one it is that one.

        Args:
            version: That of the schema; an older one is seen as if it were up to date.
        """

    def writing(self, wait_s: float | None = None) -> AbstractContextManager[Sql]:
        """Begin the only transaction that writes: all of it is durable at the end or, on an error, none.

        Args:
            wait_s: How long to wait for other writers; None: 30 seconds.

        Raises:
            BusyDatabaseError: Another process was writing all the time.
        """

    def migrating(self) -> AbstractContextManager[Sql]:
        """Begin a transaction as `writing` does, that may change the schema."""

    def any_text(self, sql: Sql) -> AbstractContextManager[None]:
        """Read damaged text too, with escapes, inside the block."""

    def rewrite(
        self, sql: Sql, table: str, columns: Sequence[str], batches: Iterable[list[Any]], is_sealed: bool
    ) -> None:
        """Write the sealed columns of all rows of a table anew.

        Args:
            sql: Of a transaction that writes.
            table: A table of `SEALED_COLUMNS`.
            columns: Its sealed columns.
            batches: Of rows: values of these columns, the checksum and the id. Each is read from the table
                when it is wanted.
            is_sealed: The values are ciphertext, so that text columns hold bytes from now on.
        """

    def findings(self, sql: Sql) -> Iterator[Finding]:
        """Yield what the database itself finds wrong with its storage."""

    def wipe_deleted(self, wait: bool) -> bool:
        """Rewrite the storage without the remains of deleted rows, outside of any transaction.

        With `wait`, others that read or write are waited for.

        Returns:
            Whether it was done; if not, why is logged.
        """

    def backup(self, file: Path) -> None:
        """Copy the present state to a new SQLite file, while other processes read and write."""

    def size_bytes(self) -> int:
        """Return what the database takes of the disk."""


@dataclass(frozen=True, slots=True)
class SettingValue:
    """The value of a setting, for a statement: a number or bytes in one column."""

    value: float | bytes

    def __conform__(self, protocol: object) -> float | bytes:
        """Return what SQLite stores."""
        return self.value
