"""The key of an encrypted gallery: its salt and check, in two places of the file, and another key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from facepipe.gallery.storage.encryption import (
    KEY_SETTINGS,
    Codec,
    KeyRecord,
    key_records,
    key_statements,
    sealed_sample,
)
from facepipe.gallery.storage.home import Home
from facepipe.gallery.storage.integrity import rows_of
from facepipe.gallery.storage.rows import Table
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SEALED_COLUMNS, row_checksum
from facepipe.gallery.storage.settings import Settings

_PLACES = 2
_REWRITTEN_ROWS = 1000


class KeyRows(Table):
    """The salt and the check of a gallery's key."""

    def records(self) -> list[KeyRecord]:
        """Return the salt and the check, as they are in each place."""
        copies = self._rows.sql.execute(f"SELECT {CHECKED_COLUMNS['key_copy']}, checksum FROM key_copy")
        return key_records(Settings(self._rows).all(), copies)

    def are_damaged(self) -> bool:
        """Return whether the gallery is encrypted and one of the places is damaged."""
        if not self._rows.is_encrypted:
            return False
        records = self.records()
        return len(records) != _PLACES or not all(record.is_whole for record in records)

    def salts(self) -> tuple[Any, Any]:
        """Return the salts in both places, to notice that another process has changed them."""
        setting, copy = self._rows.sql.execute(
            "SELECT (SELECT value FROM settings WHERE key = ?), (SELECT salt FROM key_copy)", KEY_SETTINGS[:1]
        ).fetchone()
        return setting, copy

    def samples(self) -> Iterator[tuple[str, Any]]:
        """Some stored values of rows that agree with their checksums, with their columns."""
        for table in SEALED_COLUMNS:
            columns = f"{CHECKED_COLUMNS[table]}, checksum"
            with closing(rows_of(self._rows.sql, f"SELECT {columns} FROM {table}")) as rows:
                sample = sealed_sample(table, rows)
            yield from sample

    def write(self) -> None:
        """Store the salt and the check of the codec in both places."""
        for statement, values in key_statements(self._rows.codec):
            self._rows.sql.execute(statement, values)

    def change(self, codec: Codec, home: Home) -> None:
        """Write all rows anew with another codec. `Store.wipe_deleted` is due afterwards.

        Raises:
            GalleryError: A row is damaged.
        """
        old, self._rows.codec = self._rows.codec, codec
        for table, columns in SEALED_COLUMNS.items():
            self._rows.require_whole(table)
            home.rewrite(self._rows.sql, table, columns, self._resealed(table, old), self._rows.is_encrypted)
        self.write()
        self._rows.note_wipe_due()

    def _resealed(self, table: str, old: Codec) -> Iterator[list[Any]]:
        """Yield the rows of a table in batches: sealed columns of the present codec, checksum and id."""
        columns, last_id = CHECKED_COLUMNS[table].split(", "), 0
        query = (
            f"SELECT id, {', '.join(columns)} FROM {table} WHERE id > ? ORDER BY id LIMIT {_REWRITTEN_ROWS}"
        )
        while stored := self._rows.sql.execute(query, (last_id,)).fetchall():
            yield [
                self._reseal(table, old, id, dict(zip(columns, values, strict=True)))
                for id, *values in stored
            ]
            last_id = stored[-1][0]

    def _reseal(self, table: str, old: Codec, id: int, row: dict[str, Any]) -> tuple[Any, ...]:
        new = self._rows.codec
        sealed = {column: new.seal(column, old.open(column, row[column])) for column in SEALED_COLUMNS[table]}
        return (*sealed.values(), row_checksum(*{**row, **sealed}.values()), id)
