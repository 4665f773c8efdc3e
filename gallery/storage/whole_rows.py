"""Rows as one gallery takes them over from another: with their ids, and times and pictures as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.gallery.storage.rows import Table
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SEALED_COLUMNS, row_checksum

WHOLE_TABLES = ("people", "templates", "unknown_faces")
"""The tables of what a gallery holds, those that others refer to first."""

WholeRow = tuple[Any, ...]
"""The id of a row and the values of its `CHECKED_COLUMNS`, deciphered."""


class WholeRows(Table):
    """The rows of `WHOLE_TABLES`. Methods are called inside a transaction."""

    def after(self, table: str, id: int, count: int) -> list[WholeRow]:
        """Return the next rows with larger ids, at most `count`, by rising id.

        Raises:
            GalleryError: A row is damaged; elsewhere it would get a new checksum, and nobody would know.
        """
        columns = CHECKED_COLUMNS[table]
        rows = self._rows.sql.execute(
            f"SELECT id, checksum, {columns} FROM {table} WHERE id > ? ORDER BY id LIMIT ?", (id, count)
        ).fetchall()
        return [(row[0], *self._opened(table, *row)) for row in rows]

    def add(self, table: str, rows: Iterable[WholeRow]) -> None:
        """Store rows with their ids, which no row has."""
        sealed = [self._sealed(table, *row) for row in rows]
        self._rows.sql.copy(table, f"id, {CHECKED_COLUMNS[table]}, checksum", sealed)
        if table == "templates":
            self._rows.note_vectors_changed()

    def delete_all(self) -> None:
        """Delete all rows. `Store.wipe_deleted` is due afterwards."""
        for table in reversed(WHOLE_TABLES):
            self._rows.sql.execute(f"DELETE FROM {table}")
        self._rows.note_wipe_due()

    def largest_id(self, table: str) -> int:
        """Return the largest id of a row that is there; 0: there is none."""
        return int(self._rows.value(f"SELECT COALESCE(MAX(id), 0) FROM {table}"))

    def last_ids(self) -> dict[str, int]:
        """Return the largest id that each table ever gave."""
        return {table: self._rows.sql.last_id(table) for table in WHOLE_TABLES}

    def raise_last_ids(self, ids: dict[str, int]) -> None:
        """Give larger ids only than those from now on."""
        for table, id in ids.items():
            self._rows.sql.raise_last_id(table, id)

    def _opened(self, table: str, id: int, checksum: int, *stored: Any) -> list[Any]:
        if row_checksum(*stored) != checksum:
            raise GalleryError(
                f"{self._rows.gallery}: {table} {id} is damaged (its checksum is not that of its bytes): run "
                "`facepipe gallery repair`"
            )
        codec, sealed = self._rows.codec, SEALED_COLUMNS[table]
        columns = CHECKED_COLUMNS[table].split(", ")
        return [
            codec.open(column, value) if column in sealed else value
            for column, value in zip(columns, stored, strict=True)
        ]

    def _sealed(self, table: str, id: int, *values: Any) -> WholeRow:
        codec, sealed = self._rows.codec, SEALED_COLUMNS[table]
        columns = CHECKED_COLUMNS[table].split(", ")
        stored = [
            codec.seal(column, value) if column in sealed else value
            for column, value in zip(columns, values, strict=True)
        ]
        return (id, *stored, row_checksum(*stored))
