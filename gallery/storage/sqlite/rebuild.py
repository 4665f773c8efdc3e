"""A damaged database built anew from all rows that can be read and trusted; the others go to a file."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encryption import (
    Codec,
    key_statements,
)
from facepipe.gallery.storage.raw_rows import NUMBERED_TABLES
from facepipe.gallery.storage.salvaged import (
    QUARANTINE_FILE,
    SalvagedTable,
    refuse_untrusted,
    write_quarantine,
)
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, row_checksum
from facepipe.gallery.storage.sqlite.database import create_database, open_alone, replace_database
from facepipe.gallery.storage.sqlite.salvage import (
    largest,
    last_id,
    read_tables,
    readable_rows,
)
from facepipe.gallery.storage.sqlite.schema import creating_statements

_REPAIRED_FILE = "repaired.sqlite3"


def rebuild_database(file: Path, aside: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> int:
    """Build a database anew in place of `file`, whose copy and log lie in the folder `aside`.

    Args:
        file: The damaged database.
        aside: Where rows that can't be trusted are written to (`QUARANTINE_FILE`).
        encoder: Whose embeddings are stored; needed only where that can't be read from the file.
        secret: The key of an encrypted gallery.

    Returns:
        The number of rows in quarantine.

    Raises:
        GalleryError: Not even the encoder can be read, or another process has the gallery open.
    """
    with open_alone(file) as sql:
        tables = read_tables(file, sql)
        last_ids = {name: max([*tables[name].rows, last_id(sql, name)]) for name in NUMBERED_TABLES}
        _mend_names(sql, tables["people"])
        codec = refuse_untrusted(str(file), tables, encoder, secret)
        write_quarantine(aside / QUARANTINE_FILE, tables)
        generation = max(largest(sql, "generation", "meta"), largest(sql, "generation", "vector_states"))
        statements = _statements(tables, last_ids, generation + 1, codec)
        create_database(aside / _REPAIRED_FILE, chain(statements, _removals(sql)))
        replace_database(sql, file, aside / _REPAIRED_FILE)
    return sum(len(table.refused) for table in tables.values())


def _mend_names(sql: sqlite3.Connection, people: SalvagedTable) -> None:
    """Take a damaged name from the index of names, which holds every name too, where it fits the checksum."""
    for rowid, name in readable_rows(
        sql, "SELECT rowid, name FROM people INDEXED BY sqlite_autoindex_people_1"
    ):
        row = people.row(rowid) if rowid in people.rows else {}
        fits = row.get("checksum") == row_checksum(name, row.get("threshold_l2"))
        if row and fits and row["name"] != name:
            people.mend(rowid, {**row, "name": name}, "its name is not that of the index")


def _removals(sql: sqlite3.Connection) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Statements that store the ids of removed templates, which an index must not bring back."""
    for generation, template_id in readable_rows(
        sql, "SELECT generation, template_id FROM removed_templates"
    ):
        if isinstance(generation, int) and isinstance(template_id, int):
            yield "INSERT INTO removed_templates VALUES (?, ?)", (generation, template_id)


def _statements(
    tables: dict[str, SalvagedTable], last_ids: dict[str, int], generation: int, codec: Codec
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Statements that make the gallery anew; ids stay as they are, and none is ever given again."""
    meta = tables["meta"].row(1)
    encoder = EncoderIdentity(
        meta["encoder_name"], meta["encoder_fingerprint"], meta["dimensions"], meta["threshold_l2"]
    )
    yield from creating_statements(encoder)
    yield "UPDATE meta SET generation = ?", (generation,)
    yield "INSERT INTO vector_states VALUES (?, ?)", (generation, secrets.token_bytes(16))
    for name in ("settings", *NUMBERED_TABLES):
        table = tables[name]
        columns = [column for column in table.columns if column != "checksum"]
        marks = ", ".join("?" * len(columns))
        for rowid in sorted(table.rows):
            values = [table.value(rowid, column) for column in columns]
            yield f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", tuple(values)
        yield f"UPDATE {name} SET checksum = row_checksum({CHECKED_COLUMNS[name]})", ()
    yield from key_statements(codec)
    for name, last in last_ids.items():
        yield "DELETE FROM sqlite_sequence WHERE name = ?", (name,)
        yield "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, last)
