"""Decisions, and how people are shown, as values that JSON holds: in steps, and in a library's export."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import numpy as np

from facepipe.batch.decision_table import StoredDecision, box_of
from facepipe.batch.decisions import Decision, Verdict
from facepipe.library.storage import PersonDisplay


def decision_to_dict(stored: StoredDecision) -> dict[str, Any]:
    """Return all of a decision; the face as base64 of its numbers, a vector as base64 of float32."""
    decision, embedding = stored.decision, stored.embedding
    return {
        "face": decision.face_id,
        "photo_sha256": decision.photo_sha256,
        "numbers": b64encode(stored.numbers).decode(),
        "verdict": decision.verdict and decision.verdict.value,
        "name": decision.name,
        "not_names": sorted(decision.not_names),
        "found_name": decision.found_name,
        "is_drawn": decision.is_drawn,
        "embedding": None if embedding is None else b64encode(embedding.astype("<f4").tobytes()).decode(),
        "decided_at": decision.decided_at,
    }


def decision_of(values: dict[str, Any]) -> StoredDecision:
    """Read `decision_to_dict`.

    Raises:
        Exception: KeyError, TypeError or ValueError: it is none.
    """
    numbers, embedding = b64decode(values["numbers"]), values["embedding"]
    decision = Decision(
        face_id=values["face"],
        photo_sha256=values["photo_sha256"],
        box_xyxy=box_of(numbers),
        verdict=None if values["verdict"] is None else Verdict(values["verdict"]),
        name=values["name"],
        not_names=frozenset(values["not_names"]),
        found_name=values["found_name"],
        is_drawn=values["is_drawn"],
        decided_at=values["decided_at"],
    )
    vector = None if embedding is None else np.frombuffer(b64decode(embedding), "<f4")
    return StoredDecision(decision, numbers, vector)


def display_to_list(display: PersonDisplay | None) -> list[Any] | None:
    """Return how a person is shown; None: as by default."""
    return None if display is None else [display.is_hidden, display.cover_face_id]


def display_of(values: list[Any] | None) -> PersonDisplay | None:
    """Read `display_to_list`."""
    return None if values is None else PersonDisplay(*values)
