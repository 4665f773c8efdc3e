"""Checks of single values that a job file holds."""

from __future__ import annotations

import math
import re
from datetime import datetime

SHA256 = re.compile("[0-9a-f]{64}")


class NotAsWrittenError(ValueError):
    """What is wrong with a job file."""


def are_texts(*values: object) -> bool:
    """Return whether all are texts of Unicode that are not empty."""
    return all(isinstance(value, str) and bool(value.encode()) for value in values)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: object) -> bool:
    """Return whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_bytes(value: object, multiple_of: int) -> bool:
    """Return whether a value is bytes of that many, or of a multiple."""
    return isinstance(value, bytes) and len(value) % multiple_of == 0


def is_time(value: object) -> bool:
    """Return whether a value is a time as ISO 8601."""
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        return False
    return isinstance(value, str) and value.isascii()


def require(is_so: bool, what: str) -> None:
    """Check a condition.

    Raises:
        NotAsWrittenError: It does not hold; `what` is wrong.
    """
    if not is_so:
        raise NotAsWrittenError(what)
