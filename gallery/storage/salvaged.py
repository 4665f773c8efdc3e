"""Rows that could be read of a damaged gallery: which are to be trusted, and a file for the others."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import dataclass, field
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
    new_codec,
    sealed_sample,
)
from facepipe.gallery.storage.errors import DamagedDatabaseError
from facepipe.gallery.storage.integrity import Row, RowCheck
from facepipe.gallery.storage.raw_rows import NUMBERED_TABLES
from facepipe.gallery.storage.schema import SEALED_COLUMNS

QUARANTINE_FILE = "quarantine.jsonl"
"""One JSON object a row: table, reason, columns; bytes as {"base64": ...}."""


@dataclass(frozen=True, slots=True)
class SalvagedTable:
    """The rows that could be read of a table.

    Attributes:
        name: Of the table.
        columns: Names, as the schema has them.
        rows: Values by rowid.
        refused: Rows that are not to be trusted, with the reason.
    """

    name: str
    columns: list[str]
    rows: dict[int, tuple[Any, ...]]
    refused: list[tuple[Row, str]] = field(default_factory=list)

    def row(self, rowid: int) -> Row:
        """Return a row by column."""
        return dict(zip(self.columns, self.rows[rowid], strict=True))

    def value(self, rowid: int, column: str) -> Any:
        """One value of a row."""
        return self.rows[rowid][self.columns.index(column)]

    def refuse(self, rowid: int, reason: str) -> None:
        """Take a row out."""
        self.refused.append((self.row(rowid), reason))
        del self.rows[rowid]

    def mend(self, rowid: int, mended: Row, reason: str) -> None:
        """Put a row in the place of one that is kept aside."""
        self.refused.append((self.row(rowid), reason))
        self.rows[rowid] = tuple(mended[column] for column in self.columns)

    def refuse_faulty(self, check: RowCheck) -> None:
        """Take out the rows that do not pass a check."""
        for rowid in list(self.rows):
            fault = check.fault(self.name, self.row(rowid))
            if fault:
                self.refuse(rowid, fault[1])


def refuse_untrusted(
    database: str, tables: dict[str, SalvagedTable], encoder: EncoderIdentity | None, secret: bytes | None
) -> Codec:
    """Take out the rows that are not to be trusted; returns the codec of those that are left."""
    meta, people, templates = (tables[name] for name in ("meta", "people", "templates"))
    records = _key_records(tables)
    for name in ("meta", "settings", "key_copy"):
        tables[name].refuse_faulty(RowCheck(0, PlainCodec()))
    if not meta.rows:
        meta.rows[1] = _meta_row(database, meta, encoder)
    dimensions = meta.value(1, "dimensions")
    codec = _codec(database, tables, records, secret)
    check = RowCheck(dimensions, codec)
    _mend_people(people, check)
    for name in NUMBERED_TABLES:
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
    database: str, tables: dict[str, SalvagedTable], records: list[KeyRecord], secret: bytes | None
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
        codec = codec_of_gallery(database, tables["meta"].value(1, "dimensions"), records, samples, secret)
    except DamagedDatabaseError:
        if secret is None or any(tables[name].rows for name in SEALED_COLUMNS):
            raise
        return new_codec(secret)
    if secret is None or isinstance(codec, SealingCodec):
        return codec
    if samples:
        raise GalleryError(f"{database}: a key is given, but the gallery is not encrypted: leave the key out")
    return new_codec(secret)


def _mend_people(people: SalvagedTable, check: RowCheck) -> None:
    """Keep people whose rows are as they were written, where only name or threshold is refused now."""
    for rowid in sorted(people.rows):
        fault = check.fault(people.name, people.row(rowid))
        if fault is None or fault[0] not in ("name", "threshold"):
            continue
        others = [people.row(other) for other in people.rows if other != rowid]
        with suppress(GalleryError):  # Whose name can't be read is refused later.
            people.mend(rowid, check.mended_person(people.row(rowid), others), fault[1])


def _meta_row(database: str, meta: SalvagedTable, encoder: EncoderIdentity | None) -> tuple[Any, ...]:
    if encoder is None:
        raise GalleryError(
            f"{database}: not even the encoder can be read: say which it was with --encoder-weights NAME, or "
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


def write_quarantine(file: Path, tables: dict[str, SalvagedTable]) -> None:
    """Write the rows that were refused."""
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
