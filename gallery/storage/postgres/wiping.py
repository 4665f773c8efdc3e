"""The remains of deleted rows, which PostgreSQL leaves in its files until a table is rewritten."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field

import psycopg
from psycopg.errors import Diagnostic

from facepipe.gallery.storage.postgres.connections import Connection
from facepipe.gallery.storage.schema import SEALED_COLUMNS

_REWRITTEN_BYTES_MAX = {**dict.fromkeys(SEALED_COLUMNS, 1 << 28), "template_vectors": 1 << 24}
"""Of the tables with names and faces: nobody can read one while it is rewritten, which takes a second for so
much, or, where a graph is made again, some seconds."""
WAIT_S = 30.0
"""How long others who read or write may be waited for."""
_ATTEMPT_MS = 250
"""How long a rewriting may wait for readers: it keeps others out meanwhile."""
_RETRY_S = 0.2
_STATE = """SELECT relname, pg_total_relation_size(oid), pg_has_role(relowner, 'USAGE')
        OR CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN has_table_privilege(oid, 'MAINTAIN') ELSE false END
    FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace ORDER BY relname"""
_KEPT_ELSEWHERE = (
    "what was removed is gone from the gallery; the server's WAL, its replicas and its backups hold it "
    "until they are recycled, up to date and deleted"
)
_NOT_YET_WIPED = "what was removed is gone from the gallery, but not yet wiped from the server's files"
_ONLY_BY_OWNER = (
    "what was removed is gone from the gallery, but only the owner of its tables can wipe it from the "
    "server's files: it is wiped when the owner next opens the gallery"
)
_TOO_LARGE = (
    "the table {table} is too large to be rewritten while others wait, so the server overwrites what was "
    "removed in time; to wipe it now, run `VACUUM FULL {table}`"
)
_WARNED: set[str] = set()

logger = logging.getLogger("facepipe")


@dataclass
class _Notices:
    """What the server says of a VACUUM.

    Attributes:
        warnings: Why tables were passed over.
        kept: Number of dead rows that an older transaction may still read.
    """

    warnings: list[str] = field(default_factory=list)
    kept: int = 0

    def add(self, notice: Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "")
        number = re.match(r"[0-9]+", notice.message_detail or "")
        self.kept += int(number[0]) if number else 0


def wipe(sql: Connection, name: str, wait: bool) -> bool:
    """Rewrite the tables of names and faces; outside of any transaction.

    Large tables are not rewritten, since nobody could read them meanwhile: their dead space is given free, to
    be overwritten by later rows.

    Args:
        sql: Whose search path is the gallery's schema.
        name: What messages begin with.
        wait: Try again for `WAIT_S` where others are in the way; False: try once.

    Returns:
        Whether it was done; if not, why is logged.
    """
    tables = sql.execute(_STATE).fetchall()
    if not all(is_owner for _, _, is_owner in tables):
        if wait:
            logger.warning("%s: %s", name, _ONLY_BY_OWNER)
        return False
    deadline = time.monotonic() + (WAIT_S if wait else 0)
    for table, size_bytes, _ in tables:
        bytes_max = _REWRITTEN_BYTES_MAX.get(table)
        is_large = bytes_max is not None and size_bytes > bytes_max
        obstacle = _vacuum_until(sql, table, bytes_max is not None and not is_large, deadline)
        if obstacle:
            logger.warning("%s: %s (%s); the next opening wipes it", name, _NOT_YET_WIPED, obstacle)
            return False
        if is_large:
            logger.warning("%s: %s", name, _TOO_LARGE.format(table=table))
    if name not in _WARNED:
        _WARNED.add(name)
        logger.warning("%s: %s", name, _KEPT_ELSEWHERE)
    return True


def _vacuum_until(sql: Connection, table: str, full: bool, deadline: float) -> str | None:
    """Try until a time; returns what prevented it, None where it is done."""
    while obstacle := _vacuum(sql, table, full):
        if time.monotonic() > deadline:
            return obstacle
        time.sleep(_RETRY_S)
    return None


def _vacuum(sql: Connection, table: str, full: bool) -> str | None:
    """Vacuum a table; returns what prevented it, None where nothing is left of deleted rows."""
    notices = _Notices()
    sql.raw.add_notice_handler(notices.add)
    try:
        sql.run(f"SET lock_timeout = {_ATTEMPT_MS}")
        sql.run(f"VACUUM ({'FULL, ' if full else ''}VERBOSE) {table}")
    except psycopg.errors.LockNotAvailable:
        return "others are reading or writing"
    finally:
        sql.raw.remove_notice_handler(notices.add)
        if sql.is_usable:
            sql.run("RESET lock_timeout")
    if notices.warnings:
        return notices.warnings[0]
    return "an older transaction may still read it" if full and notices.kept else None
