"""Is a job file as it was written? Its structure, every row against its checksum, and what every row means.

A checksum finds what a disk or a copy has changed. What a value means is checked as well: a file that
somebody else has made has right checksums of anything.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from facepipe.batch.check_values import SHA256, are_texts, is_bytes, is_int, is_number, is_time, require
from facepipe.batch.face_ids import face_ids_from_text
from facepipe.batch.job_schema import CHECKED_COLUMNS, REPORT, SHARD, created_schema, schema_of
from facepipe.batch.library_checks import LIBRARY_CHECKS
from facepipe.batch.models import PREVIEW
from facepipe.batch.output_files import names_of
from facepipe.batch.rows import FACE_BYTES, faces_of, known_count, matches_of, reasons_of
from facepipe.batch.seal import SEALED_COLUMNS, Seal
from facepipe.batch.shards import parse_shard
from facepipe.core.face_ids import is_face_id
from facepipe.detector import DetectorOptions
from facepipe.quality import accepted_rows

Row = Mapping[str, Any]
"""A row by column, deciphered."""
_OF_FACES = ("vectors", "enrollable", "reasons", "matches", "face_ids", "taken_at")
_COORDINATE_MAX = 1e7
"""Pixels; no photo is so wide."""
_LEFT_SEALED = "webp"
"""Pictures are most of a job and mean nothing to it: they are deciphered when they are shown."""


def require_whole(database: sqlite3.Connection) -> None:
    """Check the structure of the file: pages, indexes, constraints, and that there are its own tables only.

    Raises:
        NotAsWrittenError: Something is wrong.
        sqlite3.Error: Likewise.
    """
    for (finding,) in database.execute("PRAGMA integrity_check(1)"):
        require(finding == "ok", finding)
    require(schema_of(database) == created_schema(), "its tables are not those of a job")


def require_plain_tables(database: sqlite3.Connection, *, has_checksums: bool) -> None:
    """As `require_whole`, of a job of before, whose tables had fewer columns.

    Args:
        database: Of the job.
        has_checksums: Its rows had checksums already; see `CHECKSUMS_SINCE`.
    """
    for (finding,) in database.execute("PRAGMA integrity_check(1)"):
        require(finding == "ok", finding)
    own = {(type, name) for type, name, *_ in created_schema()}
    require({(type, name) for type, name, *_ in schema_of(database)} <= own, "it has tables of others")
    statements = [statement for *_, statement in schema_of(database) if statement is not None]
    require(not any(statement.startswith("CREATE VIRTUAL") for statement in statements), "a virtual table")
    columns = [row[1] for row in database.execute("PRAGMA table_info(photos)")]
    is_so = "path" in columns and ("checksum" in columns) == has_checksums
    require(is_so, "its version is not that of its tables")


def require_checksums(
    database: sqlite3.Connection, checked_columns: Mapping[str, str] = CHECKED_COLUMNS
) -> None:
    """Check that every row is as it was written; raises as `require_whole`."""
    for table, columns in checked_columns.items():
        query = f"SELECT count(*) FROM {table} WHERE checksum IS NOT row_checksum({columns})"
        (count,) = database.execute(query).fetchone()
        require(not count, f"{count} of its {table} have another checksum")


def require_meaning(database: sqlite3.Connection, seal: Seal) -> None:
    """Check what every value means, so that whoever reads it later can rely on it.

    Raises:
        Exception: Of nearly every class: something is no value of a job.
    """
    for row in _rows(database, "settings", seal):
        _check_setting(row)
    dimensions = {_check_photo(row) for row in _rows(database, "photos", seal)} - {None}
    require(len(dimensions) < 2, "its embeddings are of several lengths")
    for row in _rows(database, "pictures", seal):
        require(is_int(row["photo_id"]) and is_int(row["face"]) and row["face"] >= PREVIEW, "a picture")
        require(isinstance(row["webp"], bytes), "a picture")
    for row in _rows(database, "products", seal):
        require(is_int(row["photo_id"]) and are_texts(row["kind"], row["made_of"]), "an output file")
        names_of(row["files"])
    for table, check in LIBRARY_CHECKS.items():
        for row in _rows(database, table, seal):
            check(row)
    for row in _rows(database, "moves", seal):
        source, target = json.loads(row["paths"])
        require(are_texts(source, target) and "\0" not in source + target, "a move")


def _rows(database: sqlite3.Connection, table: str, seal: Seal) -> Iterator[Row]:
    sealed = {*SEALED_COLUMNS.get(table, ())} - {_LEFT_SEALED}
    cursor = database.execute(f"SELECT * FROM {table}")
    columns = [column[0] for column in cursor.description]
    for values in cursor:
        row = dict(zip(columns, values, strict=True))
        yield {name: seal.open(name, value) if name in sealed else value for name, value in row.items()}


def _check_setting(row: Row) -> None:
    value = json.loads(row["value"])
    if row["key"] == "detector options":
        require(value["max_side"] is None or is_int(value["max_side"]), "the scale of photos")
        DetectorOptions(max_side=value["max_side"])
    if row["key"] == SHARD:
        parse_shard(value)
    if row["key"] == REPORT:
        require(is_number(value["group_within_l2"]) and isinstance(value["paths"], bool), "the report")


def _check_photo(row: Row) -> int | None:
    """Length of the embeddings; None where there is none."""
    path = row["path"]
    require(isinstance(path, bytes) and b"\0" not in path and os.path.abspath(path) == path, "a path")
    require(is_int(row["size_bytes"]) and is_int(row["mtime_ns"]), "the size or time of a photo")
    require(all(row[name] is None or is_int(row[name]) for name in ("place", "known", "told")), "a count")
    require(row["state"] in ("waiting", "done", "failed"), "the state of a photo")
    require(row["sha256"] is None or bool(SHA256.fullmatch(row["sha256"])), "a hash")
    require(row["error"] is None or are_texts(row["error"]), "an error")
    if row["numbers"] is None:
        require(row["state"] != "done", "a photo that is done without faces")
        require(all(row[name] is None for name in _OF_FACES), "faces")
        return None
    require(row["sha256"] is not None or row["state"] != "done", "a hash")
    return _check_faces(row)


def _check_faces(row: Row) -> int | None:
    require(all(is_int(row[side]) and row[side] > 0 for side in ("width", "height")), "the size of a photo")
    require(is_bytes(row["numbers"], FACE_BYTES), "the boxes of faces")
    faces = faces_of(row["numbers"])
    numbers = np.frombuffer(row["numbers"], "<f4")
    require(bool((np.abs(numbers) < _COORDINATE_MAX).all()), "the boxes of faces")  # NaN is not
    reasons, matches = reasons_of(row["reasons"]), matches_of(row["matches"])
    ids = face_ids_from_text(row["face_ids"])
    require(len(faces) == len(reasons) == len(matches) == len(ids), "the number of faces")
    require(all(map(is_face_id, ids)) and len(set(ids)) == len(ids), "the ids of faces")
    require(all(map(_is_match, matches)) and row["known"] == known_count(matches), "the names of faces")
    require(are_texts(row["named_by"]), "what faces were named by")
    require(row["taken_at"] is None or is_time(row["taken_at"]), "when a photo was taken")
    if row["enrollable"] is not None:
        require(is_bytes(row["enrollable"], 1) and len(row["enrollable"]) == len(faces), "what is enrollable")
    return _check_vectors(row["vectors"], len(accepted_rows(reasons)))


def _check_vectors(vectors: object, count: int) -> int | None:
    assert isinstance(vectors, bytes)
    if not count:
        require(not vectors, "the number of vectors")
        return None
    require(bool(vectors) and is_bytes(vectors, 4 * count), "the length of vectors")
    require(bool(np.isfinite(np.frombuffer(vectors, "<f4")).all()), "a vector")
    return len(vectors) // (4 * count)


def _is_match(match: Any) -> bool:
    texts = match.name, match.runner_up_name, match.candidate_name, match.reason
    distances = match.distance_l2, match.runner_up_distance_l2
    return (
        all(text is None or are_texts(text) for text in texts)
        and all(distance is None or is_number(distance) for distance in distances)
        and is_number(match.threshold_l2)
    )
