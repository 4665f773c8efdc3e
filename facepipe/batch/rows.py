"""Faces, vectors and matches as the bytes and texts that stand in a row of the job file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from facepipe.core.faces import Faces, FloatArray, Match
from facepipe.gallery.matching import Doubt
from facepipe.quality import Reason, accepted_rows

_FACE_NUMBERS = 15
FACE_BYTES = _FACE_NUMBERS * 4
"""Of a face's box, score and landmarks."""


def face_bytes(faces: Faces, reasons: Sequence[Reason | None]) -> tuple[bytes, bytes, bytes]:
    """Numbers of all faces, vectors of those to be compared, and which of all enrolment would take."""
    assert faces.embeddings is not None
    assert faces.enrollable is not None
    columns = (faces.boxes_xyxy, faces.scores[:, None], faces.landmarks.reshape(len(faces), 10))
    vectors = faces.embeddings[accepted_rows(reasons)]
    numbers = np.hstack(columns).astype("<f4").tobytes()
    return numbers, vectors.astype("<f4").tobytes(), faces.enrollable.tobytes()


def faces_of(numbers: bytes) -> Faces:
    """The faces again, without vectors."""
    table = np.frombuffer(numbers, "<f4").astype(np.float32).reshape(-1, _FACE_NUMBERS)
    return Faces(table[:, :4], table[:, 4], table[:, 5:].reshape(-1, 5, 2))


def reasons_to_text(reasons: Sequence[Reason | None]) -> str:
    """As JSON."""
    return json.dumps([reason and reason.value for reason in reasons])


def reasons_of(text: str) -> list[Reason | None]:
    """The reasons again."""
    return [None if code is None else Reason(code) for code in json.loads(text)]


def vectors_of(stored: bytes, reasons: Sequence[Reason | None], dimensions: int) -> FloatArray:
    """float32 (n, d): the vectors again, rows of NaN where a face is not to be compared."""
    vectors = np.full((len(reasons), dimensions), np.nan, np.float32)
    vectors[accepted_rows(reasons)] = np.frombuffer(stored, "<f4").reshape(-1, dimensions)
    return vectors


def strangers_of(
    vectors: bytes, enrollable: bytes | None, reasons: str, matches: str
) -> Iterator[tuple[int, FloatArray]]:
    """Row and vector (d,) of the faces near nobody that enrolment would take."""
    if enrollable is None or not vectors:
        return
    rows = accepted_rows(reasons_of(reasons))
    table = np.frombuffer(vectors, "<f4").reshape(len(rows), -1)
    found = matches_of(matches)
    for row, vector in zip(rows.tolist(), table, strict=True):
        if enrollable[row] and found[row].reason == Doubt.NOBODY_NEAR.value:
            yield row, vector


def matches_to_text(matches: Sequence[Match]) -> str:
    """As JSON."""
    return json.dumps([asdict(match) for match in matches], ensure_ascii=False)


def matches_of(text: str) -> list[Match]:
    """The matches again."""
    return [Match(**fields) for fields in json.loads(text)]


def known_count(matches: Sequence[Match]) -> int:
    """How many have a name."""
    return sum(match.name is not None for match in matches)
