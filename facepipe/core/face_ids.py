"""Stable ids of faces, made of the content of their photo and their place in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

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
