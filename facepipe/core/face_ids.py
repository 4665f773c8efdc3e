"""Stable ids of faces, made of the content of their photo and their place in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from facepipe.core.boxes import iou
from facepipe.core.faces import FloatArray

FACE_ID_DIGITS = 12
"""Hexadecimal digits, 48 bits: among 100,000 faces two equal ids come about once in 50,000 libraries."""
SAME_FACE_IOU = 0.35
"""Boxes of one photo that overlap so far are of one face: detectors draw them more or less tightly."""
_FACE_ID = re.compile(f"[0-9a-f]{{{FACE_ID_DIGITS}}}")


def face_id(photo_sha256: str, box_xyxy: Sequence[float], taken: Collection[str] = ()) -> str:
    """Return the id of a face, the same wherever it is computed.

    Args:
        photo_sha256: Content hash of the photo.
        box_xyxy: The face in pixels of the upright photo; fractions of a pixel do not count.
        taken: Ids of other faces of the photo, which it does not get.
    """
    sides = " ".join(str(round(side)) for side in box_xyxy)
    for attempt in range(len(taken) + 1):
        digest = hashlib.sha256(f"{photo_sha256} {sides}{' again' * attempt}".encode()).hexdigest()
        if digest[:FACE_ID_DIGITS] not in taken:
            break
    return digest[:FACE_ID_DIGITS]


def with_new_ids(photo_sha256: str, boxes_xyxy: FloatArray, known: Iterable[str | None]) -> list[str]:
    """Return the ids of faces, boxes (n, 4): those that are known, and new ones in place of None."""
    known = list(known)
    ids, taken = [], {id for id in known if id is not None}
    for box, id in zip(boxes_xyxy.tolist(), known, strict=True):
        ids.append(face_id(photo_sha256, box, taken) if id is None else id)
        taken.add(ids[-1])
    return ids


def new_face_ids(photo_sha256: str, boxes_xyxy: FloatArray) -> list[str]:
    """Return the ids of a photo's faces, boxes (n, 4), of which none is known."""
    return with_new_ids(photo_sha256, boxes_xyxy, [None] * len(boxes_xyxy))


def is_face_id(text: str) -> bool:
    """Return whether a text has the form of an id."""
    return _FACE_ID.fullmatch(text) is not None


def same_faces(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> list[int | None]:
    """Return for each box (n, 4) the row of the same face among others (m, 4) of the photo; None: it is new.

    The pair with the largest overlap comes first, and no face is taken twice.
    """
    found: list[int | None] = [None] * len(boxes_xyxy)
    if not len(boxes_xyxy) or not len(others_xyxy):
        return found
    overlaps = iou(boxes_xyxy[:, None, :].astype(np.float64), others_xyxy.astype(np.float64))
    while overlaps.max() >= SAME_FACE_IOU:
        row, other = np.unravel_index(overlaps.argmax(), overlaps.shape)
        found[int(row)] = int(other)
        overlaps[row], overlaps[:, other] = 0, 0
    return found
