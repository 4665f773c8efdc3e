"""Which faces somebody has already, so that each face of a photo is stored once."""

from __future__ import annotations

import numpy as np

from facepipe.core.faces import FloatArray

SAME_VECTOR_L2 = 0.02
"""Vectors of one face in one photo are this near each other whatever runtime or batch size made them."""

Owner = tuple[int, ...]
"""The values of the columns that say whose a face is."""


class KnownFaces:
    """Faces by their owners and photos."""

    def __init__(self) -> None:
        self._of_photos: dict[tuple[Owner, str], list[FloatArray]] = {}
        self._without_photo: set[tuple[Owner, bytes]] = set()

    def note(self, owner: Owner, photo_sha256: str | None, vector: FloatArray) -> None:
        """Note a face with its vector float32 (d,)."""
        if photo_sha256 is None:
            self._without_photo.add((owner, vector.tobytes()))
        else:
            self._of_photos.setdefault((owner, photo_sha256), []).append(vector)

    def has(self, owner: Owner, photo_sha256: str | None, vector: FloatArray) -> bool:
        """Return whether the same face of the same photo is known.

        Where the photo is not known, only the very same vector is the same face.
        """
        if photo_sha256 is None:
            return (owner, vector.tobytes()) in self._without_photo
        known = self._of_photos.get((owner, photo_sha256), [])
        return any(np.linalg.norm(other - vector) <= SAME_VECTOR_L2 for other in known)
