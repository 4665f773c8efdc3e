"""Rows of a gallery's tables: queries inside a transaction, checksums, and values as they are stored."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.gallery.index.parts import IdArray
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encryption import Codec, PlainCodec, SealingCodec
from facepipe.gallery.storage.home import Sql
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum

_VALUES_AT_ONCE = 999  # SQLite's smallest limit of values in a statement.
_UPDATED_ROWS = 200
_ID_MAX = 2**63 - 1
"""The databases' largest."""
_KINDS: dict[type | UnionType, str] = {float | None: "number", int: "id", str: "text"}


class Rows:
    """Queries on one gallery's tables.

    Attributes:
        name: What messages about the database begin with.
        gallery: What messages about the gallery begin with.
        encoder: Whose embeddings are stored.
        codec: Converts values to what is stored, and back.
        sql: The connection; inside a transaction only.
    """

    encoder: EncoderIdentity
    sql: Sql

    def __init__(self, name: str, gallery: str) -> None:
        self.name, self.gallery = name, gallery
        self.codec: Codec = PlainCodec()

    @property
    def is_encrypted(self) -> bool:
        """Whether names, paths, vectors and pictures stand in the file as ciphertext."""
        return isinstance(self.codec, SealingCodec)

    def value(self, query: str, *values: object) -> Any:
        """Return the first value of the first row."""
        return self.sql.execute(query, values).fetchone()[0]

    def exists(self, query: str, *values: object) -> bool:
        """Return whether a query has any row."""
        return self.sql.execute(query, values).fetchone() is not None

    def count(self, table: str) -> int:
        """Number of rows."""
        return int(self.value(f"SELECT COUNT(*) FROM {table}"))

    def of_ids(self, query: str, ids: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query that ends with IN, for any number of ids."""
        return self.of_values(query, ids)

    def of_values(self, query: str, values: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query that ends with IN, for any number of values."""
        for some in _batches(values, _VALUES_AT_ONCE):
            # Of few different lengths, so that statements are found prepared.
            some += some[-1:] * (min(1 << (len(some) - 1).bit_length(), _VALUES_AT_ONCE) - len(some))
            yield from self.sql.execute(f"{query} ({', '.join('?' * len(some))})", some).fetchall()

    def ids_of(self, query: str, ids: Iterable[int]) -> IdArray:
        """Return the rows int64 (n, 2) of a query of two ids that ends with IN, for any number of ids.

        Raises:
            GalleryError: One is no id.
        """
        return as_ids(list(self.of_ids(query, ids)))

    def require_whole(self, table: str, ids: Iterable[int] | None = None) -> None:
        """Check rows, all or those of some ids, against their checksums.

        Raises:
            GalleryError: One is damaged.
        """
        query = f"SELECT id, checksum, {CHECKED_COLUMNS[table]} FROM {table}"
        rows = self.sql.stream(query) if ids is None else self.of_ids(f"{query} WHERE id IN", ids)
        for id, checksum, *values in rows:
            if row_checksum(*values) != checksum:
                raise self.damaged(table, id)

    def damaged(self, table: str, id: int) -> GalleryError:
        """Return the error of a row that does not agree with its checksum."""
        return GalleryError(
            f"{self.gallery}: {table} {id} is damaged (its checksum is not that of its bytes): run "
            "`facepipe gallery repair`"
        )

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> list[int]:
        """Store rows, of all `CHECKED_COLUMNS` of a table, with their checksums; returns their ids."""
        checked = [(*row, row_checksum(*row)) for row in rows]
        return self.sql.insert(table, f"{CHECKED_COLUMNS[table]}, checksum", checked)

    def update(self, table: str, columns: Sequence[str], values_of: Mapping[int, Sequence[Any]]) -> None:
        """Change some columns of rows, and the checksums accordingly: damage must not get a fitting one.

        Args:
            table: The table.
            columns: The columns that change.
            values_of: By id, the values of these columns.

        Raises:
            GalleryError: A row is damaged.
        """
        checked = CHECKED_COLUMNS[table]
        assignments = ", ".join(f"{column} = ?" for column in (*columns, "checksum"))
        for ids in _batches(values_of, _UPDATED_ROWS):
            changed = []
            for id, checksum, *stored in self.of_ids(
                f"SELECT id, checksum, {checked} FROM {table} WHERE id IN", ids
            ):
                if row_checksum(*stored) != checksum:
                    raise self.damaged(table, id)
                row = dict(zip(checked.split(", "), stored, strict=True))
                row.update(zip(columns, values_of[id], strict=True))
                changed.append((*values_of[id], row_checksum(*row.values()), id))
            self.sql.executemany(f"UPDATE {table} SET {assignments} WHERE id = ?", changed)

    def delete(self, table: str, ids: Iterable[int]) -> None:
        """Delete rows by their ids."""
        for some in _batches(ids, _VALUES_AT_ONCE):
            self.sql.execute(f"DELETE FROM {table} WHERE id IN ({', '.join('?' * len(some))})", some)

    def first_missing(self, table: str, ids: Sequence[int]) -> int | None:
        """Return the first of some ids that no row has."""
        stored = {id for (id,) in self.of_ids(f"SELECT id FROM {table} WHERE id IN", filter(is_id, ids))}
        return next((id for id in ids if id not in stored), None)

    def note_vectors_changed(self) -> None:
        """Give the set of vectors a new state, once in each change: the generation is raised at its end."""
        token = secrets.token_bytes(16)
        self.sql.execute(
            "INSERT INTO vector_states SELECT generation + 1, ? FROM meta WHERE true ON CONFLICT DO NOTHING",
            (token,),
        )

    def note_wipe_due(self) -> None:
        """Note that remains of removed rows are to be wiped from the file."""
        self.sql.execute("UPDATE meta SET wipe_due = generation + 1")


class Table:
    """A table of a gallery. Methods are called inside a transaction.

    Args:
        rows: Of the gallery.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows


def _batches(values: Iterable[Any], count: int) -> Iterator[list[Any]]:
    every = list(values)
    for at in range(0, len(every), count):
        yield every[at : at + count]


def is_id(value: int) -> bool:
    """Return whether a number can be that of a row."""
    return 0 < value <= _ID_MAX


def require_kind(kind: type | UnionType, *values: object) -> None:
    """Check that stored values are of a kind, as reading does, which does not compare all checksums.

    Raises:
        GalleryError: One is of another kind, as a flipped bit makes it.
    """
    if not all(isinstance(value, kind) for value in values):
        raise _damaged_kind(kind)


def as_ids(rows: list[tuple[Any, ...]]) -> IdArray:
    """Return rows of two ids as int64 (n, 2).

    Raises:
        GalleryError: One is no id.
    """
    if not rows:
        return np.zeros((0, 2), np.int64)
    ids: IdArray = np.array(rows)
    if ids.dtype != np.int64:
        raise _damaged_kind(int)
    return ids


def _damaged_kind(kind: type | UnionType) -> GalleryError:
    return GalleryError(f"a stored {_KINDS[kind]} is damaged: run `facepipe gallery repair`")
