"""CSV as spreadsheets write and read it, with nothing in it that they would run."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facepipe.core.errors import UsageError

BOM = "\ufeff"
"""At the start of a file it tells spreadsheets that the text is UTF-8."""

_DELIMITERS = (",", ";", "\t")
_FORMULA = re.compile("'*[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet computes, perhaps running programs; the last four are wide forms."""
_SEPARATOR_LINE = re.compile(r"sep=([,;\t])\r?\n", re.IGNORECASE)
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def csv_line(cells: Sequence[Any]) -> str:
    """Return a row of CSV (RFC 4180) without its line end.

    Text that a spreadsheet would take for a formula gets a `'` before it; `plain_cell` takes that away.
    """
    line = io.StringIO()
    # With this line end, and no other, the writer puts quotes about cells with any kind of line break.
    csv.writer(line, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n")


def plain_cell(cell: str) -> str:
    """Return what `csv_line` was given for this cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def read_rows(file: Path, words: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV: number of the line, and as many cells as there are columns in `words`.

    Commas, semicolons and tabs may separate the cells; UTF-8 and UTF-16 are read. The first row may be a
    header: then the columns are found by it, in any order, and others are passed over.

    Args:
        file: The CSV.
        words: For each column that is wanted the words that a header may call it by, its own name first.

    Raises:
        UsageError: Not readable, or a row has other columns; names the file and the line.
    """
    rows = list(_parsed(file, _text_of(file), words))
    wanted = ",".join(names[0] for names in words)
    columns = _header(rows[0][1], words) if rows else None
    for number, cells in rows[1:] if columns else rows:
        found = [cells[at] for at in columns if at < len(cells)] if columns else cells
        if len(found) != len(words) or not all(found):
            raise UsageError(f"{file}, line {number}: expected {wanted}, got {','.join(cells)!r}")
        yield number, found


def has_header(file: Path, words: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row of a CSV is a header with all these columns; see `read_rows`.

    Raises:
        UsageError: Not readable.
    """
    rows = _parsed(file, _text_of(file), words)
    return bool(rows) and _header(rows[0][1], words) is not None


def _text_of(file: Path) -> str:
    try:
        data = file.read_bytes()
        encoding = next((name for bom, name in _ENCODINGS.items() if data.startswith(bom)), None)
        return data.decode(encoding or _unmarked_encoding(data))
    except OSError as error:
        raise UsageError(f"{file}: can't read this CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file}: can't read this CSV: it is not UTF-8 ({error}); save it as 'CSV UTF-8'"
        ) from error


def _unmarked_encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 by the zero that every second byte of plain letters is."""
    first_zero = data.find(b"\0")
    if first_zero < 0:
        return "utf-8"
    return "utf-16-le" if first_zero % 2 else "utf-16-be"


def _parsed(file: Path, text: str, words: Sequence[Sequence[str]]) -> list[tuple[int, list[str]]]:
    """The rows that are not empty with their line numbers, by the delimiter that makes most sense of them."""
    stated = _SEPARATOR_LINE.match(text)
    if stated:
        return _split(file, text[stated.end() :], stated[1], 1)
    ways = [_split(file, text, delimiter, 0) for delimiter in _DELIMITERS]
    fitting = (rows for rows in ways if rows and _header(rows[0][1], words))
    regular = (rows for rows in ways if rows and all(len(cells) == len(words) for _, cells in rows))
    beginning = (rows for rows in ways if rows and len(rows[0][1]) == len(words))
    return next(fitting, None) or next(regular, None) or next(beginning, None) or ways[0]


def _split(file: Path, text: str, delimiter: str, lines_before: int) -> list[tuple[int, list[str]]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num + lines_before, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{file}: can't read this CSV: {error}") from error
    return [(number, [plain_cell(cell) for cell in cells]) for number, cells in rows if any(cells)]


def _header(cells: Sequence[str], words: Sequence[Sequence[str]]) -> list[int] | None:
    """Where the wanted columns are; None: the row is no header."""
    titles = [re.sub(r"[\W_]+", "", cell).casefold() for cell in cells]
    places = [next((titles.index(word) for word in names if word in titles), None) for names in words]
    found = [place for place in places if place is not None]
    return found if len(found) == len(words) else None
