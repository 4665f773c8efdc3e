"""A damaged gallery in PostgreSQL mended in place; rows that are not to be trusted go to a file."""

from __future__ import annotations

from pathlib import Path

from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encoder_rows import encoder_values
from facepipe.gallery.storage.encryption import SealingCodec, key_statements
from facepipe.gallery.storage.integrity import Row, rows_of
from facepipe.gallery.storage.postgres.connections import Connection
from facepipe.gallery.storage.postgres.database import PostgresDatabase
from facepipe.gallery.storage.raw_rows import NUMBERED_TABLES
from facepipe.gallery.storage.salvaged import (
    QUARANTINE_FILE,
    SalvagedTable,
    refuse_untrusted,
    write_quarantine,
)
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum


def rebuild_rows(
    home: PostgresDatabase, aside: Path, encoder: EncoderIdentity | None, secret: bytes | None
) -> int:
    """Take the rows that are not to be trusted out of a gallery, in one transaction.

    Args:
        home: The gallery's.
        aside: The folder where those rows are written to (`QUARANTINE_FILE`).
        encoder: Whose embeddings are stored; needed only where that can't be read from the gallery.
        secret: The key of an encrypted gallery.

    Returns:
        The number of rows in quarantine.

    Raises:
        GalleryError: Not even the encoder can be read, or the gallery may not be written.
    """
    with home.writing() as sql:
        tables = {name: _read_table(sql, name) for name in CHECKED_COLUMNS}
        before = {name: table.rows.copy() for name, table in tables.items()}
        codec = refuse_untrusted(home.name, tables, encoder, secret)
        write_quarantine(aside / QUARANTINE_FILE, tables)
        _write_meta(sql, tables["meta"])
        for name in ("templates", "people", "unknown_faces", "settings"):
            _write_table(sql, tables[name], before[name])
        home.set_text_types(sql, isinstance(codec, SealingCodec))
        for statement, values in key_statements(codec):
            sql.execute(statement, values)
        home.note_all_changed(sql)
    return sum(len(table.refused) for table in tables.values())


def _read_table(sql: Connection, name: str) -> SalvagedTable:
    """Read a table, by id or, where there are no ids, by place."""
    read: list[Row] = list(rows_of(sql, f"SELECT * FROM {name}"))
    columns = list(read[0]) if read else ["id", *CHECKED_COLUMNS[name].split(", "), "checksum"]
    rows = {row.get("id", place): tuple(row.values()) for place, row in enumerate(read)}
    return SalvagedTable(name, columns, rows)


def _write_meta(sql: Connection, meta: SalvagedTable) -> None:
    """Store the encoder, where its row was damaged or is missing."""
    row = meta.row(1)
    values = encoder_values(EncoderIdentity(*(row[column] for column in CHECKED_COLUMNS["meta"].split(", "))))
    columns = [*CHECKED_COLUMNS["meta"].split(", "), "checksum"]
    replacing = ", ".join(f"{column} = excluded.{column}" for column in columns)
    sql.execute(
        f"INSERT INTO meta (id, generation, wipe_due, {', '.join(columns)}) SELECT 1,"
        " COALESCE((SELECT MAX(generation) FROM vector_states), 0), 0, ?, ?, ?::integer, ?::float8, ?::bigint"
        f" ON CONFLICT (id) DO UPDATE SET {replacing}",
        (*values, row_checksum(*values)),
    )


def _write_table(sql: Connection, table: SalvagedTable, before: dict[int, tuple[object, ...]]) -> None:
    """Delete the rows that were refused, and store those that were mended."""
    key = "id" if table.name in NUMBERED_TABLES else "key"
    at = table.columns.index(key)
    gone = [(row[at],) for id, row in before.items() if id not in table.rows]
    sql.executemany(f"DELETE FROM {table.name} WHERE {key} = ?", gone)
    for id, row in table.rows.items():
        if row != before[id]:
            assignments = ", ".join(f"{column} = ?" for column in table.columns)
            sql.execute(f"UPDATE {table.name} SET {assignments} WHERE {key} = ?", (*row, row[at]))
