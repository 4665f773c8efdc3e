"""Ask a server of `facepipe serve` who is in photos, with types for its answers.

FACEPIPE_KEY=... python examples/name_by_server.py http://127.0.0.1:8000 PHOTO...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import msgspec


class Face(msgspec.Struct):
    """A face of `POST /v1/identify`; further fields are in `/v1/openapi.json`.

    Attributes:
        box_xyxy: Left, top, right and bottom in pixels of the upright photo.
        status: `named`, `unsure` or `unknown`.
        name: Who it is; None: nobody is near, or two people are about as near.
        distance_l2: To the nearest person; None: it was not compared, or nobody is enrolled.
    """

    box_xyxy: tuple[float, float, float, float]
    status: str
    name: str | None = None
    distance_l2: float | None = None


class Identified(msgspec.Struct):
    """The answer about a photo."""

    faces: list[Face]


class Refused(msgspec.Struct):
    """An answer that is an error."""

    code: str
    message: str


def identify(client: httpx.Client, photo: Path) -> list[Face]:
    """Return the faces of a photo with their names.

    Raises:
        RuntimeError: The server refuses the photo, or the key.
    """
    answer = client.post(
        "/v1/identify", content=photo.read_bytes(), headers={"Content-Type": "application/octet-stream"}
    )
    if answer.is_error:
        refused = msgspec.json.decode(answer.content, type=Refused)
        raise RuntimeError(f"{photo}: {refused.message} ({refused.code})")
    return msgspec.json.decode(answer.content, type=Identified).faces


def main(address: str, *photos: str) -> None:
    """Print a line for each face."""
    key = os.environ.get("FACEPIPE_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        for photo in photos:
            for face in identify(client, Path(photo)):
                distance = "" if face.distance_l2 is None else f"  {face.distance_l2:.2f}"
                print(f"{photo}  {face.name or face.status}{distance}")


if __name__ == "__main__":
    main(*sys.argv[1:])
