"""The ids of a photo's faces in its row of the job file."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_IDS = msgspec.json.Decoder(list[str])


def face_ids_to_text(ids: Iterable[str]) -> str:
    """As JSON."""
    return msgspec.json.encode(list(ids)).decode()


def face_ids_from_text(text: str | None) -> list[str]:
    """Read the stored ids; none of a photo that was not analyzed."""
    return [] if text is None else _IDS.decode(text)
