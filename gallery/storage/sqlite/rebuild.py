"""A damaged database built anew from all rows that can be read and trusted; the others go to a file."""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.core.files import atomic_write_bytes
from facepipe.gallery.models import EncoderIdentity
from facepipe.gallery.storage.encryption import (
    Codec,
    KeyRecord,
    PlainCodec,
    SealingCodec,
    codec_of_gallery,
    key_records,
    key_statements,
    new_codec,
    sealed_sample,
)
from facepipe.gallery.storage.errors import DamagedDatabaseError
from facepipe.gallery.storage.integrity import Row, RowCheck
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, SEALED_COLUMNS, row_checksum
from facepipe.gallery.storage.sqlite.database import create_database, open_alone, replace_database
from facepipe.gallery.storage.sqlite.salvage import (
    SalvagedTable,
    largest,
    last_id,
    read_tables,
    readable_rows,
)
from facepipe.gallery.storage.sqlite.schema import creating_statements

QUARANTINE_FILE = "quarantine.jsonl"
"""One JSON object a row: table, reason, columns; bytes as {"base64": ...}."""
_REPAIRED_FILE = "repaired.sqlite3"
_OWN_IDS = ("people", "templates", "unknown_faces")


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
        last_ids = {name: max([*tables[name].rows, last_id(sql, name)]) for name in _OWN_IDS}
        _mend_names(sql, tables["people"])
        codec = _refuse_untrusted(file, tables, encoder, secret)
        _write_quarantine(aside / QUARANTINE_FILE, tables)
        generation = max(largest(sql, "generation", "meta"), largest(sql, "generation", "vector_states"))
        statements = _statements(tables, last_ids, generation + 1, codec)
        create_database(aside / _REPAIRED_FILE, chain(statements, _removals(sql)))
        replace_database(sql, file, aside / _REPAIRED_FILE)
    return sum(len(table.refused) for table in tables.values())


def _refuse_untrusted(
    file: Path, tables: dict[str, SalvagedTable], encoder: EncoderIdentity | None, secret: bytes | None
) -> Codec:
    """Take out the rows that are not to be trusted; returns the codec of those that are left."""
    meta, people, templates = (tables[name] for name in ("meta", "people", "templates"))
    records = _key_records(tables)
    for name in ("meta", "settings", "key_copy"):
        tables[name].refuse_faulty(RowCheck(0, PlainCodec()))
    if not meta.rows:
        meta.rows[1] = _meta_row(file, meta, encoder)
    dimensions = meta.value(1, "dimensions")
    codec = _codec(file, tables, records, secret)
    check = RowCheck(dimensions, codec)
    _mend_people(people, check)
    for name in _OWN_IDS:
        tables[name].refuse_faulty(check)
    _refuse_twins(tables["settings"], ("key",))
    _refuse_twins(people, ("name",))
    for rowid in list(templates.rows):
        if templates.value(rowid, "person_id") not in people.rows:
            templates.refuse(rowid, "its person is not there")
    _refuse_twins(templates, ("person_id", "photo_sha256", "vector"))
    inhabited = {templates.value(rowid, "person_id") for rowid in templates.rows}
    for rowid in list(people.rows):
        if rowid not in inhabited:
            people.refuse(rowid, "no template is there")
    return codec


def _key_records(tables: dict[str, SalvagedTable]) -> list[KeyRecord]:
    settings, copies = (map(tables[name].row, tables[name].rows) for name in ("settings", "key_copy"))
    return key_records(
        ((row["key"], row["value"], row["checksum"]) for row in settings),
        ((row["salt"], row["key_check"], row["checksum"]) for row in copies),
    )


def _codec(
    file: Path, tables: dict[str, SalvagedTable], records: list[KeyRecord], secret: bytes | None
) -> Codec:
    """Return the codec of a gallery's rows; a new one where a key is given and no row is left.

    Raises:
        GalleryError: `secret` is not their key, or they are plain although a key is given.
    """
    samples = [
        sample
        for name in SEALED_COLUMNS
        for sample in sealed_sample(name, map(tables[name].row, tables[name].rows))
    ]
    try:
        codec = codec_of_gallery(str(file), tables["meta"].value(1, "dimensions"), records, samples, secret)
    except DamagedDatabaseError:
        if secret is None or any(tables[name].rows for name in SEALED_COLUMNS):
            raise
        return new_codec(secret)
    if secret is None or isinstance(codec, SealingCodec):
        return codec
    if samples:
        raise GalleryError(f"{file}: a key is given, but the gallery is not encrypted: leave the key out")
    return new_codec(secret)


def _mend_names(sql: sqlite3.Connection, people: SalvagedTable) -> None:
    """Take a damaged name from the index of names, which holds every name too, where it fits the checksum."""
    for rowid, name in readable_rows(
        sql, "SELECT rowid, name FROM people INDEXED BY sqlite_autoindex_people_1"
    ):
        row = people.row(rowid) if rowid in people.rows else {}
        fits = row.get("checksum") == row_checksum(name, row.get("threshold_l2"))
        if row and fits and row["name"] != name:
            people.mend(rowid, {**row, "name": name}, "its name is not that of the index")


def _mend_people(people: SalvagedTable, check: RowCheck) -> None:
    """Keep people whose rows are as they were written, where only name or threshold is refused now."""
    for rowid in sorted(people.rows):
        fault = check.fault(people.name, people.row(rowid))
        if fault is None or fault[0] not in ("name", "threshold"):
            continue
        others = [people.row(other) for other in people.rows if other != rowid]
        with suppress(GalleryError):  # Whose name can't be read is refused later.
            people.mend(rowid, check.mended_person(people.row(rowid), others), fault[1])


def _meta_row(file: Path, meta: SalvagedTable, encoder: EncoderIdentity | None) -> tuple[Any, ...]:
    if encoder is None:
        raise GalleryError(
            f"{file}: not even the encoder can be read: say which it was with --encoder-weights NAME, or "
            "restore a backup"
        )
    known = {
        "encoder_name": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "dimensions": encoder.dimensions,
        "threshold_l2": encoder.threshold_l2,
    }
    return tuple(known.get(column) for column in meta.columns)


def _refuse_twins(table: SalvagedTable, columns: tuple[str, ...]) -> None:
    """Keep the first of rows that should differ in `columns`."""
    seen = set()
    for rowid in sorted(table.rows):
        key = tuple(table.value(rowid, column) for column in columns)
        if key in seen:
            table.refuse(rowid, "it is there before")
        seen.add(key)


def _removals(sql: sqlite3.Connection) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Statements that store the ids of removed templates, which an index must not bring back."""
    for generation, template_id in readable_rows(
        sql, "SELECT generation, template_id FROM removed_templates"
    ):
        if isinstance(generation, int) and isinstance(template_id, int):
            yield "INSERT INTO removed_templates VALUES (?, ?)", (generation, template_id)


def _write_quarantine(file: Path, tables: dict[str, SalvagedTable]) -> None:
    lines = [
        json.dumps({"table": table.name, "reason": reason, "columns": _as_json(row)})
        for table in tables.values()
        for row, reason in table.refused
    ]
    atomic_write_bytes(file, "".join(f"{line}\n" for line in lines).encode())


def _as_json(row: Row) -> dict[str, Any]:
    return {
        column: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for column, value in row.items()
    }


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
    for name in ("settings", *_OWN_IDS):
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
