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
from facepipe.gallery.storage.integrity import rows_of
from facepipe.gallery.storage.rows import Table
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SEALED_COLUMNS
from facepipe.gallery.storage.settings import Settings

_PLACES = 2


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
            with closing(rows_of(self._rows.sql, f"SELECT {columns} FROM {table} NOT INDEXED")) as rows:
                sample = sealed_sample(table, rows)
            yield from sample

    def write(self) -> None:
        """Store the salt and the check of the codec in both places."""
        for statement, values in key_statements(self._rows.codec):
            self._rows.sql.execute(statement, values)

    def change(self, codec: Codec) -> None:
        """Write all rows anew with another codec. `Store.wipe_deleted` is due afterwards.

        Raises:
            GalleryError: A row is damaged.
        """
        old, self._rows.codec = self._rows.codec, codec
        for table, columns in SEALED_COLUMNS.items():
            self._rows.require_whole(table)
            self._rewrite(table, columns, old)
        self.write()
        self._rows.note_wipe_due()

    def _rewrite(self, table: str, columns: tuple[str, ...], old: Codec) -> None:
        sql, new = self._rows.sql, self._rows.codec
        assignments = ", ".join(f"{column} = ?" for column in columns)
        for (id,) in sql.execute(f"SELECT id FROM {table} ORDER BY id").fetchall():
            row = sql.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE id = ?", (id,)).fetchone()
            values = [new.seal(c, old.open(c, stored)) for c, stored in zip(columns, row, strict=True)]
            sql.execute(f"UPDATE {table} SET {assignments} WHERE id = ?", (*values, id))
        sql.execute(f"UPDATE {table} SET checksum = row_checksum({CHECKED_COLUMNS[table]})")
