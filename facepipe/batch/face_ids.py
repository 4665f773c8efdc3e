"""The ids of a photo's faces in its row of the job file."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec

from facepipe.core.face_ids import face_id
from facepipe.core.faces import FloatArray

_IDS = msgspec.json.Decoder(list[str])


def with_new_ids(photo_sha256: str, boxes_xyxy: FloatArray, known: Iterable[str | None]) -> list[str]:
    """Return the ids of faces, boxes (n, 4): those that are known, and new ones in place of None."""
    known = list(known)
    ids, taken = [], {id for id in known if id is not None}
    for box, id in zip(boxes_xyxy.tolist(), known, strict=True):
        ids.append(face_id(photo_sha256, box, taken) if id is None else id)
        taken.add(ids[-1])
    return ids


def face_ids_to_text(ids: Iterable[str]) -> str:
    """As JSON."""
    return json.dumps(list(ids))


def face_ids_from_text(text: str | None) -> list[str]:
    """Read the stored ids; none of a photo that was not analyzed."""
    return [] if text is None else _IDS.decode(text)
