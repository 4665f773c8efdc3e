"""Integrity of a gallery: every row against its checksum, every vector, every reference."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.gallery.models import UNIT_LENGTH_TOLERANCE, Finding, is_threshold
from facepipe.gallery.names import clean_name, mended_name
from facepipe.gallery.storage.encryption import Codec
from facepipe.gallery.storage.home import Sql
from facepipe.gallery.storage.schema import CHECKED_COLUMNS, THRESHOLD_SETTING, row_checksum

_VECTOR_DTYPE = np.dtype("<f4")

Row = Mapping[str, Any]
"""A row as stored, by column."""


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Checks single rows.

    Attributes:
        dimensions: Length of a vector.
        codec: Converts values to what is stored, and back.
    """

    dimensions: int
    codec: Codec

    def fault(self, table: str, row: Row) -> tuple[str, str] | None:
        """Code and reason why a row is not to be trusted; None: it is."""
        checked = CHECKED_COLUMNS[table].split(", ")
        # A column is missing where its name in the schema is damaged.
        if row.get("checksum") != row_checksum(*(row.get(column) for column in checked)):
            return "checksum", "its checksum is not that of its bytes"
        try:
            if table == "people":
                return self._fault_of_name(row.get("name")) or _fault_of_threshold(row.get("threshold_l2"))
            if table == "meta":
                return _fault_of_threshold(row.get("threshold_l2"))
            if table == "settings" and row.get("key") == THRESHOLD_SETTING:
                return _fault_of_threshold(row.get("value"))
            if "vector" in checked:
                return self._fault_of_vector(row.get("vector"))
        except GalleryError as error:
            return "vector" if "vector" in checked else "name", str(error)
        return None

    def mended_person(self, row: Row, others: Iterable[Row]) -> Row:
        """Return a person's row with a name and a threshold that may be stored.

        Args:
            row: As written by an earlier version, which took names and thresholds that are refused now.
            others: The rows of the other people, whose names are taken.

        Raises:
            GalleryError: Its name is damaged.
        """
        name = mended_name(self.codec.open("name", row["name"]), set(self._names(others)))
        threshold_l2 = row.get("threshold_l2")
        sealed = self.codec.seal("name", name)
        kept_l2 = threshold_l2 if is_threshold(threshold_l2) else None
        return {**row, "name": sealed, "threshold_l2": kept_l2, "checksum": row_checksum(sealed, kept_l2)}

    def _names(self, people: Iterable[Row]) -> Iterator[str]:
        """Yield the names that can be read."""
        for row in people:
            with suppress(GalleryError):
                yield self.codec.open("name", row.get("name"))

    def _fault_of_name(self, stored: Any) -> tuple[str, str] | None:
        name = self.codec.open("name", stored)
        if not isinstance(name, str) or clean_name(name) != name:
            return "name", f"the name {name!r} is not as names are stored (invisible characters, or not NFC)"
        return None

    def _fault_of_vector(self, stored: Any) -> tuple[str, str] | None:
        data = self.codec.open("vector", stored)
        expected_bytes = self.dimensions * _VECTOR_DTYPE.itemsize
        if not isinstance(data, bytes) or len(data) != expected_bytes:
            return "vector", f"its vector is not of {self.dimensions} numbers"
        length = float(np.linalg.norm(np.frombuffer(data, _VECTOR_DTYPE).astype(np.float64)))
        if not abs(length - 1) <= UNIT_LENGTH_TOLERANCE:  # So that NaN and infinity count as bad too.
            return "vector", f"its vector has length {length:.4g}, expected 1"
        return None


def _fault_of_threshold(stored: Any) -> tuple[str, str] | None:
    if stored is None or is_threshold(stored):
        return None
    return "threshold", f"the threshold {stored!r} is outside 0..2"


def database_findings(sql: Sql, check: RowCheck) -> Iterator[Finding]:
    """Yield what is wrong with the rows, inside a transaction."""
    for table in CHECKED_COLUMNS:
        for row in rows_of(sql, f"SELECT * FROM {table}"):
            fault = check.fault(table, row)
            if fault:
                id = row["key" if table == "settings" else "id"]
                yield Finding(fault[0], f"{table} {id}: {fault[1]}")
    for query, code, message in _REFERENCES:
        for row in rows_of(sql, query):
            yield Finding(code, message.format(id=row["id"]))


_REFERENCES = (
    (
        "SELECT id FROM templates WHERE NOT EXISTS (SELECT 1 FROM people WHERE people.id = person_id)",
        "reference",
        "templates {id}: its person is not there",
    ),
    (
        "SELECT id FROM people WHERE NOT EXISTS (SELECT 1 FROM templates WHERE person_id = people.id)",
        "reference",
        "people {id}: no template is there",
    ),
    (
        "SELECT id FROM (SELECT id, ROW_NUMBER() OVER"
        " (PARTITION BY person_id, photo_sha256, vector ORDER BY id) AS place FROM templates) AS numbered"
        " WHERE place > 1 ORDER BY id",
        "duplicate",
        "templates {id}: the same face of the same photo and person is there before",
    ),
)


def rows_of(sql: Sql, query: str) -> Generator[Row, None, None]:
    """Return the rows of a query, by column."""
    # Closed where the file is damaged too: an open cursor would keep the file open.
    with closing(sql.stream(query)) as cursor:
        columns = [column[0] for column in cursor.description]
        for values in cursor:
            yield dict(zip(columns, values, strict=True))


def summarised(findings: Iterator[Finding], limit: int) -> Iterator[Finding]:
    """Yield the first `limit` findings of each code, and how many more there are."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.code] = counts.get(finding.code, 0) + 1
        if counts[finding.code] <= limit:
            yield finding
    for code, count in counts.items():
        if count > limit:
            yield Finding(code, f"{count - limit} more of this kind")
