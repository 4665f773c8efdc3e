"""Faces, embeddings and matches as the bytes and texts that a row of the job file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from facepipe.core.faces import Faces, FloatArray, Match
from facepipe.gallery.matching import Doubt
from facepipe.quality import accepted_rows
from facepipe.quality_rules import Reason

_FACE_NUMBERS = 15
_REASONS = msgspec.json.Decoder(list[str | None])
_MATCHES = msgspec.json.Decoder(list[Match])
FACE_BYTES = _FACE_NUMBERS * 4
"""Of a face's box, score and landmarks."""


def face_bytes(faces: Faces, reasons: Sequence[Reason | None]) -> tuple[bytes, bytes, bytes]:
    """Numbers of all faces, embeddings of those to be compared, and which of all enrollment would take."""
    assert faces.embeddings is not None
    assert faces.enrollable is not None
    columns = (faces.boxes_xyxy, faces.scores[:, None], faces.landmarks.reshape(len(faces), 10))
    embeddings = faces.embeddings[accepted_rows(reasons)]
    numbers = np.hstack(columns).astype("<f4").tobytes()
    return numbers, embeddings.astype("<f4").tobytes(), faces.enrollable.tobytes()


def faces_of(numbers: bytes) -> Faces:
    """Read the stored faces, without embeddings."""
    table = np.frombuffer(numbers, "<f4").astype(np.float32).reshape(-1, _FACE_NUMBERS)
    return Faces(table[:, :4], table[:, 4], table[:, 5:].reshape(-1, 5, 2))


def reasons_to_text(reasons: Sequence[Reason | None]) -> str:
    """As JSON."""
    return msgspec.json.encode([reason and reason.value for reason in reasons]).decode()


def reasons_of(text: str) -> list[Reason | None]:
    """Read the stored reasons."""
    return [None if code is None else Reason(code) for code in _REASONS.decode(text)]


def embeddings_of(stored: bytes, dimensions: int) -> FloatArray:
    """float32 (m, d): the embeddings again, of the faces to be compared."""
    return np.frombuffer(stored, "<f4").reshape(-1, dimensions)


def unknown_rows_of(
    vectors: bytes, enrollable: bytes | None, reasons: str, matches: str
) -> Iterator[tuple[int, FloatArray]]:
    """Row and embedding (d,) of the faces near nobody that enrollment would take."""
    if enrollable is None or not vectors:
        return
    rows = accepted_rows(reasons_of(reasons))
    found = matches_of(matches)
    embeddings = np.frombuffer(vectors, "<f4").reshape(len(rows), -1)
    for row, embedding in zip(rows.tolist(), embeddings, strict=True):
        if enrollable[row] and found[row].reason == Doubt.NOBODY_NEAR.value:
            yield row, embedding


def matches_to_text(matches: Sequence[Match]) -> str:
    """As JSON."""
    return msgspec.json.encode(list(matches)).decode()


def matches_of(text: str) -> list[Match]:
    """Read the stored matches.

    Raises:
        ValueError: They are none.
    """
    return _MATCHES.decode(text)


def known_count(matches: Sequence[Match]) -> int:
    """Return how many have a name."""
    return sum(match.name is not None for match in matches)
