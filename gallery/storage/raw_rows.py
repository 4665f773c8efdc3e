"""The rows of a gallery as they are stored, with ids, checksums and ciphertext, for a copy elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from facepipe.gallery.storage.home import SettingValue, Sql
from facepipe.gallery.storage.schema import CHECKED_COLUMNS

HISTORY_SETTING = "history"
"""Key of the setting that binds an SQLite file to its log; it belongs to no other database."""

RAW_COLUMNS = {
    "meta": f"id, generation, wipe_due, state, {CHECKED_COLUMNS['meta']}, checksum",
    "settings": f"{CHECKED_COLUMNS['settings']}, checksum",
    **{
        table: f"id, {CHECKED_COLUMNS[table]}, checksum"
        for table in ("key_copy", "people", "templates", "unknown_faces")
    },
    "vector_states": "generation, token",
    "removed_templates": "generation, template_id",
}
"""By table, all columns; those that others refer to come first."""
NUMBERED_TABLES = ("people", "templates", "unknown_faces")
"""Whose ids are never given again."""


def raw_rows(sql: Sql, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield all rows of a table, inside a transaction."""
    with closing(sql.stream(f"SELECT {RAW_COLUMNS[table]} FROM {table}")) as rows:
        for row in rows:
            if table != "settings":
                yield row
            elif row[0] != HISTORY_SETTING:
                yield row[0], SettingValue(row[1]), row[2]
