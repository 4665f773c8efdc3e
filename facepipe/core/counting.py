"""Numbers of things in messages: "1 photo", "2 photos"."""

from __future__ import annotations

_PLURALS = {"person": "people", "process": "processes"}


def counted(count: int, thing: str) -> str:
    """Return a number with its noun, given in the singular with what goes before it: `2 new faces`."""
    start, _, noun = thing.rpartition(" ")
    plural = _PLURALS.get(noun, f"{noun}s")
    return f"{count} {start and f'{start} '}{noun if count == 1 else plural}"
