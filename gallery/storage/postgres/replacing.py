"""All rows of a gallery in PostgreSQL replaced by those of another one, in one transaction."""

from __future__ import annotations

from pathlib import Path

from facepipe.gallery.storage.home import Sql
from facepipe.gallery.storage.postgres.database import PostgresDatabase
from facepipe.gallery.storage.raw_rows import NUMBERED_TABLES, RAW_COLUMNS, raw_rows
from facepipe.gallery.storage.schema import CHECKED_COLUMNS

_REPLACED = ("settings", "key_copy", "people", "templates", "unknown_faces")


def replace_rows(home: PostgresDatabase, source: Sql, kept: Path) -> None:
    """Put the rows of a whole gallery in place of all that is there.

    Whoever has the gallery open must open it again: none of the states that they know was ever that of the
    new rows. No id of before is given again.

    Args:
        home: The gallery's.
        source: Inside a transaction on the other one, of the present schema.
        kept: Where the gallery as it was is copied to, an SQLite file, unless it was never changed.
    """
    with home.writing() as sql:
        vectors = home.vectors(sql)
        is_searched = vectors.is_there()
        vectors.drop()
        if sql.execute("SELECT 1 FROM meta WHERE generation > 0").fetchone():
            home.backup(kept)
        for table in reversed(_REPLACED):
            sql.execute(f"DELETE FROM {table}")
        is_encrypted = source.execute("SELECT 1 FROM key_copy").fetchone() is not None
        home.set_text_types(sql, is_encrypted)
        for table in _REPLACED:
            sql.copy(table, RAW_COLUMNS[table], raw_rows(source, table))
        for table in NUMBERED_TABLES:
            sql.raise_last_id(table, source.last_id(table))
        columns = f"generation, {CHECKED_COLUMNS['meta']}, checksum"
        generation, *values = source.execute(f"SELECT {columns} FROM meta").fetchone()
        assignments = ", ".join(f"{column} = ?" for column in columns.split(", ")[1:])
        sql.execute(
            f"UPDATE meta SET generation = GREATEST(generation, ?), {assignments}", (generation, *values)
        )
        sql.execute("DELETE FROM vector_states")
        home.note_all_changed(sql)
        if is_searched and not is_encrypted:
            vectors.create()
