"""The faces of a photo as its row of the job file has them: found by the detector, or drawn by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from facepipe.batch.decision_table import DecisionTable, StoredDecision
from facepipe.batch.decisions import Decision
from facepipe.batch.models import KnownFace, StoredFaces
from facepipe.batch.overlay import with_decisions
from facepipe.core.face_ids import same_faces, with_new_ids
from facepipe.core.faces import Faces, FloatArray, Match
from facepipe.quality_rules import Reason

NameFaces = Callable[[Sequence[tuple[Faces, Sequence[Reason | None]]]], Sequence[Sequence[Match]]]
"""Names the faces of photos; those with a reason are not compared."""


def stored_faces(
    found: StoredFaces, photo_sha256: str, known: Sequence[KnownFace], decisions: DecisionTable
) -> StoredFaces:
    """Give faces their ids, and add those that were drawn by hand where none was found.

    Args:
        found: By the detector; `ids` are empty.
        photo_sha256: Content hash of the photo.
        known: Faces of the same content when it was analyzed before.
        decisions: Of the job.
    """
    boxes = found.faces.boxes_xyxy
    decided = [
        None if stored is None else stored.decision.face_id
        for stored in decisions.of_rows(photo_sha256, boxes)
    ]
    others = np.array([face.box_xyxy for face in known], np.float32).reshape(-1, 4)
    before = [None if row is None else known[row].id for row in same_faces(boxes, others)]
    taken = {id for id in decided if id is not None}
    ids = with_new_ids(
        photo_sha256,
        boxes,
        [own or (old if old not in taken else None) for own, old in zip(decided, before, strict=True)],
    )
    missing = [
        stored
        for stored in decisions.of_photo(photo_sha256)
        if stored.decision.is_drawn and stored.decision.face_id not in ids
    ]
    faces = replace(found, ids=tuple(ids))
    for stored in missing:
        faces = with_drawn(faces, stored)
    return faces


def with_drawn(photo: StoredFaces, stored: StoredDecision) -> StoredFaces:
    """Return the faces of a photo and one more, drawn by hand."""
    faces, own = photo.faces, stored.face
    assert faces.embeddings is not None
    embedding = stored.embedding
    is_encoded = embedding is not None and len(embedding) == faces.embeddings.shape[1]
    row = embedding if is_encoded and embedding is not None else np.full(faces.embeddings.shape[1], np.nan)
    enrollable = np.zeros(len(faces), np.bool_) if faces.enrollable is None else faces.enrollable
    threshold_l2 = faces.matches[0].threshold_l2 if faces.matches else 0.0
    reason = None if is_encoded else Reason.DRAWN
    more = Faces(
        np.concatenate([faces.boxes_xyxy, own.boxes_xyxy]),
        np.concatenate([faces.scores, own.scores]),
        np.concatenate([faces.landmarks, own.landmarks]),
        embeddings=np.concatenate([faces.embeddings, row[None].astype(np.float32)]),
        matches=(*(faces.matches or ()), Match(None, None, threshold_l2, reason=Reason.DRAWN.value)),
        enrollable=np.append(enrollable, is_encoded),
    )
    return StoredFaces(more, (*photo.reasons, reason), (*photo.ids, stored.decision.face_id))


def name_stored(
    photos: Sequence[StoredFaces],
    name: NameFaces,
    decisions: DecisionTable,
    negatives: Mapping[str, FloatArray],
) -> list[list[Match]]:
    """Name the faces of photos. Those of which a person decided what they are take nobody's place.

    Args:
        photos: Their faces.
        name: By a gallery.
        decisions: Of the job.
        negatives: See `with_decisions`.
    """
    decided = [[decisions.decision(id) for id in photo.ids] for photo in photos]
    parts = [part for own in decided for part in _settled_and_others(own)]
    asked = [_part(photos[number // 2], rows) for number, rows in enumerate(parts)]
    answers = iter(name([part for part in asked if len(part[0])]))
    named = []
    for number, (photo, own) in enumerate(zip(photos, decided, strict=True)):
        matches: dict[int, Match] = {}
        for rows in parts[2 * number : 2 * number + 2]:
            matches |= zip(rows, next(answers), strict=True) if rows else ()
        in_order = [matches[row] for row in range(len(own))]
        assert photo.faces.embeddings is not None
        named.append(with_decisions(in_order, own, photo.faces.embeddings, negatives))
    return named


def _settled_and_others(decided: Sequence[Decision | None]) -> tuple[list[int], list[int]]:
    """Rows of the faces of which a person decided what they are, and of the others."""
    settled = [row for row, d in enumerate(decided) if d is not None and d.verdict is not None]
    return settled, [row for row in range(len(decided)) if row not in settled]


def _part(photo: StoredFaces, rows: Sequence[int]) -> tuple[Faces, list[Reason | None]]:
    return photo.faces.select(rows), [photo.reasons[row] for row in rows]
