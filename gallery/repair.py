"""A damaged gallery made whole again from all that can be read and trusted; the rest is put aside."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from facepipe.core.errors import GalleryError
from facepipe.core.files import atomic_write_bytes
from facepipe.gallery.files import copy_private, make_folder_aside
from facepipe.gallery.gallery import Gallery
from facepipe.gallery.index_check import index_findings
from facepipe.gallery.index_sync import INDEX_FILE
from facepipe.gallery.lost_faces import lost_faces
from facepipe.gallery.models import EncoderIdentity, Finding
from facepipe.gallery.opening import STORE_FILE
from facepipe.gallery.storage.database import create_database, open_alone, replace_database
from facepipe.gallery.storage.encryption import (
    Codec,
    KeyRecord,
    PlainCodec,
    SealingCodec,
    codec_of_gallery,
    key_records,
    key_statements,
    new_codec,
    secret_of_environment,
)
from facepipe.gallery.storage.errors import DamagedDatabaseError, errors_of
from facepipe.gallery.storage.integrity import Row, RowCheck, summarised
from facepipe.gallery.storage.log_check import alone, logs_of
from facepipe.gallery.storage.log_file import dropped_changes, mend_log
from facepipe.gallery.storage.schema import (
    CHECKED_COLUMNS,
    OLDEST_READABLE_VERSION,
    SCHEMA_VERSION,
    SEALED_COLUMNS,
    columns_of,
    creating_statements,
    row_checksum,
)

FINDINGS_MAX = 10
"""Of each kind that are told; further ones are counted."""
QUARANTINE_FILE = "quarantine.jsonl"
"""One JSON object a row: table, reason, columns; bytes as {"base64": ...}."""
_REPAIRED_FILE = "repaired.sqlite3"
_PROBED_IDS_MAX = 10_000_000
_OWN_IDS = ("people", "templates", "unknown_faces")
_DISPENSABLE = ("settings", "key_copy", "unknown_faces")
"""Tables that a gallery can be repaired without."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What was mended.

    Attributes:
        findings: What was wrong before; empty: nothing, and nothing was done.
        templates: How many are in the gallery now.
        quarantined: Number of rows that could be read but not trusted.
        brought_back: Number of lost faces that are unknown faces now: only their vectors were known.
        aside: The folder with the damaged file as it was and the rows in quarantine; None: only the index
            was made again. It holds personal data: delete it when it is not needed any more.
    """

    findings: tuple[Finding, ...]
    templates: int
    quarantined: int
    brought_back: int
    aside: Path | None


def verify(
    path: str | Path, encoder: EncoderIdentity | None = None, secret: bytes | None = None
) -> tuple[Finding, ...]:
    """Check a gallery from its database's pages to its index; empty: it is whole.

    Raises:
        GalleryError: There is no gallery, it is of another encoder than `encoder`, of a newer facepipe, or
            the key is not its own.
    """
    try:
        with Gallery.open(path, encoder, secret=secret) as gallery:
            with gallery._store.reading():
                found = tuple(summarised(gallery._store.findings(), FINDINGS_MAX))
            lost = lost_faces(gallery.path, gallery.encoder.dimensions)
            found += tuple(Finding("lost", str(faces)) for faces in lost)
            return found or index_findings(gallery.path / INDEX_FILE, gallery._store)
    except DamagedDatabaseError as error:
        return (Finding("database", str(error)),)


def repair(path: str | Path, encoder: EncoderIdentity | None = None, secret: bytes | None = None) -> Repair:
    """Make a gallery whole. No other process may have it open.

    A bad index is made again. Lost faces of which the index knew come back as unknown faces. Where the
    database is damaged, it is built anew from all rows that can be read and that agree with their checksums;
    a damaged log is read beyond the damage. The damaged files and the rows that are not to be trusted are put
    into a folder beside the gallery first.

    Args:
        path: The gallery's folder.
        encoder: Whose vectors it holds; needed only where the gallery can't say so itself any more.
        secret: The key of an encrypted gallery; None: that of the environment.

    Raises:
        GalleryError: Not even the encoder can be read, or another process has the gallery open.
    """
    path, secret = Path(path).resolve(), secret or secret_of_environment()
    findings = verify(path, secret=secret)
    aside, quarantined = None, 0
    if any(finding.code not in ("index", "lost") for finding in findings):
        aside, quarantined = _rebuild(path, encoder, secret)
    with Gallery.open(path, secret=secret) as gallery:
        lost = lost_faces(path, gallery.encoder.dimensions)
        brought_back = gallery.bring_back(lost)
        if lost:
            aside = aside or make_folder_aside(path, "damaged")
            for faces in lost:
                shutil.move(faces.file, aside / faces.file.name)
        if findings:
            gallery.rebuild_index()
        return Repair(findings, gallery.info().templates, quarantined, brought_back, aside)


@dataclass(frozen=True, slots=True)
class _Table:
    """What could be read of a table.

    Attributes:
        name: Of the table.
        columns: Names, as the file has them.
        rows: Values by rowid.
        refused: Rows that are not to be trusted, with the reason.
    """

    name: str
    columns: list[str]
    rows: dict[int, tuple[Any, ...]]
    refused: list[tuple[Row, str]] = field(default_factory=list)

    def row(self, rowid: int) -> Row:
        return dict(zip(self.columns, self.rows[rowid], strict=True))

    def value(self, rowid: int, column: str) -> Any:
        return self.rows[rowid][self.columns.index(column)]

    def refuse(self, rowid: int, reason: str) -> None:
        self.refused.append((self.row(rowid), reason))
        del self.rows[rowid]

    def mend(self, rowid: int, mended: Row, reason: str) -> None:
        """Put a row in the place of one that is kept aside."""
        self.refused.append((self.row(rowid), reason))
        self.rows[rowid] = tuple(mended[column] for column in self.columns)

    def refuse_faulty(self, check: RowCheck) -> None:
        for rowid in list(self.rows):
            fault = check.fault(self.name, self.row(rowid))
            if fault:
                self.refuse(rowid, fault[1])


def _rebuild(path: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> tuple[Path, int]:
    """Answers the folder with what was put aside, and the number of rows in quarantine."""
    file = path / STORE_FILE
    aside, is_log_mended = _copied_aside(path, file)
    try:
        return aside, _rebuild_from_copy(file, aside, encoder, secret)
    except BaseException:
        if not is_log_mended:  # Else it holds what is nowhere else.
            shutil.rmtree(aside)
        raise


def _copied_aside(path: Path, file: Path) -> tuple[Path, bool]:
    """Copy the files as they are, then mend the log; answers the copies' folder, and if it was mended."""
    log = logs_of(file)[0]
    with errors_of(file), alone(file):
        aside = make_folder_aside(path, "damaged")
        for part in (file, log):
            if part.exists():
                copy_private(part, aside / part.name)
        is_damaged = log.exists() and dropped_changes(file, log) > 0
        if is_damaged:
            mend_log(file, log)
    return aside, is_damaged


def _rebuild_from_copy(file: Path, aside: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> int:
    """Answers the number of rows in quarantine."""
    with open_alone(file) as sql:
        tables = {name: _readable(sql, name, columns) for name, columns in _columns(file, sql).items()}
        last_ids = {name: max([*tables[name].rows, _last_id(sql, name)]) for name in _OWN_IDS}
        _mend_names(sql, tables["people"])
        codec = _refuse(file, tables, encoder, secret)
        _write_quarantine(aside / QUARANTINE_FILE, tables)
        generation = max(_largest(sql, "generation", "meta"), _largest(sql, "generation", "vector_states"))
        statements = _statements(tables, last_ids, generation + 1, codec)
        create_database(aside / _REPAIRED_FILE, chain(statements, _removals(sql)))
        replace_database(sql, file, aside / _REPAIRED_FILE)
    return sum(len(table.refused) for table in tables.values())


# Reading what can be read


def _columns(file: Path, sql: sqlite3.Connection) -> dict[str, list[str]]:
    """By table, its columns. Only how many there are is asked of the file: their names may be damaged."""
    counts = {}
    for name in CHECKED_COLUMNS:
        found: list[tuple[Any, ...]] = []
        _read(sql, f"SELECT cid FROM pragma_table_info('{name}')", found)
        counts[name] = len(found)
    for version in range(OLDEST_READABLE_VERSION, SCHEMA_VERSION + 1):
        known = columns_of(version)
        known.update({name: [] for name in _DISPENSABLE if not counts[name]})
        if counts == {name: len(columns) for name, columns in known.items()}:
            return known
    raise GalleryError(f"{file}: SQLite's own table of contents is damaged, or of schema 1: restore a backup")


def _readable(sql: sqlite3.Connection, name: str, columns: list[str]) -> _Table:
    """All rows up to the damage, from the end down to it, and those between that can be read singly."""
    table = _Table(name, columns, {})
    # By names of our own: Python can't read rows of columns whose names are no text.
    named = f"WITH found (row, {', '.join(columns)}) AS (SELECT rowid, * FROM {name} NOT INDEXED)"
    query = f"{named} SELECT * FROM found"
    found: list[tuple[Any, ...]] = []
    if columns and not _read(sql, f"{query} ORDER BY row", found):
        gap = max((rowid for rowid, *_ in found), default=0) + 1
        _read(sql, f"{query} ORDER BY row DESC", found)
        last = min((rowid for rowid, *_ in found if rowid >= gap), default=_last_id(sql, name))
        for rowid in range(gap, min(last + 1, gap + _PROBED_IDS_MAX)):
            _read(sql, f"{query} WHERE row = {rowid}", found)
    table.rows.update((rowid, tuple(values)) for rowid, *values in found)
    return table


def _read(sql: sqlite3.Connection, query: str, into: list[tuple[Any, ...]]) -> bool:
    """Append the rows; answers whether it went well to the end."""
    try:
        for row in sql.execute(query):
            into.append(row)
    except (sqlite3.DatabaseError, UnicodeError):
        return False
    return True


def _last_id(sql: sqlite3.Connection, name: str) -> int:
    """The last id that was given; 0: it can't be read, or none was."""
    return _largest(sql, "seq", f"sqlite_sequence WHERE name = '{name}'")


def _largest(sql: sqlite3.Connection, column: str, source: str) -> int:
    found: list[tuple[Any, ...]] = []
    _read(sql, f"SELECT {column} FROM {source}", found)
    return max((value for (value,) in found if isinstance(value, int)), default=0)


# Judging it


def _refuse(
    file: Path, tables: dict[str, _Table], encoder: EncoderIdentity | None, secret: bytes | None
) -> Codec:
    """Take out what is not to be trusted; answers the codec of the rows that are left."""
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


def _key_records(tables: dict[str, _Table]) -> list[KeyRecord]:
    settings, copies = (map(tables[name].row, tables[name].rows) for name in ("settings", "key_copy"))
    return key_records(
        ((row["key"], row["value"], row["checksum"]) for row in settings),
        ((row["salt"], row["key_check"], row["checksum"]) for row in copies),
    )


def _samples(tables: dict[str, _Table]) -> list[tuple[str, Any]]:
    """The stored values of one row of each table that agrees with its checksum, with their columns."""
    found: list[tuple[str, Any]] = []
    for name, columns in SEALED_COLUMNS.items():
        checked = CHECKED_COLUMNS[name].split(", ")
        for row in map(tables[name].row, tables[name].rows):
            if row["checksum"] == row_checksum(*(row[column] for column in checked)):
                found += [(column, row.get(column)) for column in columns]
                break
    return found


def _codec(file: Path, tables: dict[str, _Table], records: list[KeyRecord], secret: bytes | None) -> Codec:
    """The codec of a gallery's rows; a new one where a key is given and no row is left.

    Raises:
        GalleryError: `secret` is not their key, or they are plain although a key is given.
    """
    samples = _samples(tables)
    try:
        codec = codec_of_gallery(file, tables["meta"].value(1, "dimensions"), records, samples, secret)
    except DamagedDatabaseError:
        if secret is None or any(tables[name].rows for name in SEALED_COLUMNS):
            raise
        return new_codec(secret)
    if secret is None or isinstance(codec, SealingCodec):
        return codec
    if samples:
        raise GalleryError(f"{file}: a key is given, but the gallery is not encrypted: leave the key out")
    return new_codec(secret)


def _mend_names(sql: sqlite3.Connection, people: _Table) -> None:
    """Take a damaged name from the index of names, which holds every name too, where it fits the checksum."""
    found: list[tuple[Any, ...]] = []
    _read(sql, "SELECT rowid, name FROM people INDEXED BY sqlite_autoindex_people_1", found)
    for rowid, name in found:
        row = people.row(rowid) if rowid in people.rows else {}
        fits = row.get("checksum") == row_checksum(name, row.get("threshold_l2"))
        if row and fits and row["name"] != name:
            people.mend(rowid, {**row, "name": name}, "its name is not that of the index")


def _mend_people(people: _Table, check: RowCheck) -> None:
    """Keep people whose rows are as they were written, where only name or threshold is refused now."""
    for rowid in sorted(people.rows):
        fault = check.fault(people.name, people.row(rowid))
        if fault is None or fault[0] not in ("name", "threshold"):
            continue
        others = [people.row(other) for other in people.rows if other != rowid]
        with suppress(GalleryError):  # Whose name can't be read is refused later.
            people.mend(rowid, check.mended_person(people.row(rowid), others), fault[1])


def _meta_row(file: Path, meta: _Table, encoder: EncoderIdentity | None) -> tuple[Any, ...]:
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


def _refuse_twins(table: _Table, columns: tuple[str, ...]) -> None:
    """Keep the first of rows that should differ in `columns`."""
    seen = set()
    for rowid in sorted(table.rows):
        key = tuple(table.value(rowid, column) for column in columns)
        if key in seen:
            table.refuse(rowid, "it is there before")
        seen.add(key)


# Writing


def _removals(sql: sqlite3.Connection) -> Iterator[tuple[str, tuple[object, ...]]]:
    """What an index must not bring back."""
    found: list[tuple[Any, ...]] = []
    _read(sql, "SELECT generation, template_id FROM removed_templates", found)
    for generation, template_id in found:
        if isinstance(generation, int) and isinstance(template_id, int):
            yield "INSERT INTO removed_templates VALUES (?, ?)", (generation, template_id)


def _write_quarantine(file: Path, tables: dict[str, _Table]) -> None:
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
    tables: dict[str, _Table], last_ids: dict[str, int], generation: int, codec: Codec
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """What makes the gallery anew; ids stay as they are, and none is ever given again."""
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
    for name, last_id in last_ids.items():
        yield "DELETE FROM sqlite_sequence WHERE name = ?", (name,)
        yield "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, last_id)
