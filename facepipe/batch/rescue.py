"""A damaged job file gives way to a new one, which takes over what people decided."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from facepipe.batch.damage import DamagedJobError
from facepipe.batch.decision_table import DECISION_COLUMNS, DecisionTable, StoredDecision, decision_of_row
from facepipe.batch.job_file import JOB_FILE, JobFile, remove_job_file
from facepipe.batch.job_schema import CHECKED_COLUMNS
from facepipe.batch.library_checks import check_decision
from facepipe.batch.seal import SEALED_COLUMNS, Seal, known_seal
from facepipe.core.counting import counted
from facepipe.core.errors import FacepipeError
from facepipe.gallery.storage.encryption import secret_of_environment
from facepipe.gallery.storage.schema import row_checksum

_log = logging.getLogger("facepipe")


def open_job_file(folder: Path, *, create: bool, secret: bytes | None, again: bool) -> JobFile:
    """Open a job file, in place of a damaged one a new one where all is done `again`; see `JobFile`.

    Decisions whose rows are whole go into the new one.
    """
    try:
        return JobFile(folder, create=create, secret=secret)
    except DamagedJobError as error:
        if not again:
            raise
        _log.warning(
            "%s: a new one is begun; outdated pictures of before are no longer known, so remove them in %s",
            error.finding,
            folder,
        )
    key = secret or secret_of_environment()
    seal, decisions = _rescued(folder / JOB_FILE, key)
    remove_job_file(folder)
    file = JobFile(folder, create=create, secret=secret)
    if seal is not None and seal.is_encrypting:
        file.encrypt()
    table = DecisionTable(file.database, lambda: file.seal)
    with file.changing():
        for stored in decisions:
            table.put(stored)
    return file


def _rescued(path: Path, key: bytes | None) -> tuple[Seal | None, list[StoredDecision]]:
    """Read the decisions of a damaged file that are as they were written."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.create_function("row_checksum", -1, row_checksum, deterministic=True)
            seal = _seal_of(database, path, key)
            cursor = database.execute(
                f"SELECT * FROM decisions WHERE checksum IS row_checksum({CHECKED_COLUMNS['decisions']})"
            )
            columns = [column[0] for column in cursor.description]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor]
            (count,) = database.execute("SELECT count(*) FROM decisions").fetchone()
        decisions = [stored for row in rows for stored in _decisions_in(row, seal)]
    except (sqlite3.Error, FacepipeError) as error:
        _log.warning("%s: what people decided about faces can't be read from it (%s)", path, error)
        return None, []
    if count:
        kept = f"{len(decisions)} of {counted(count, 'decision')} about faces taken over"
        _log.warning("%s: %s from the damaged file", path, kept)
    return seal, decisions


def _seal_of(database: sqlite3.Connection, path: Path, key: bytes | None) -> Seal:
    row = database.execute("SELECT salt, key_check FROM encryption").fetchone()
    if row is None:
        return Seal(path)
    salt, check = row
    return known_seal(path, salt, check, key)


def _decisions_in(row: Mapping[str, Any], seal: Seal) -> list[StoredDecision]:
    """The decision of a row; none where its values mean nothing."""
    sealed = SEALED_COLUMNS["decisions"]
    try:
        check_decision({name: seal.open(name, row[name]) if name in sealed else row[name] for name in row})
        return [decision_of_row([row[name] for name in DECISION_COLUMNS.split(", ")], seal)]
    except Exception as error:  # of nearly every class
        _log.warning("a damaged decision is left out (%s)", error)
        return []
