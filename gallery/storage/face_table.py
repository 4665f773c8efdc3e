"""A table of faces: what templates and unknown faces have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.core.plain_text import text_of
from facepipe.gallery.models import NewTemplate, require_vectors
from facepipe.gallery.storage.rows import Table, require_kind

SAME_VECTOR_L2 = 0.02
"""Vectors of one face in one photo are this near each other whatever runtime or batch size made them."""

_VECTOR_DTYPE = np.dtype("<f4")


class UnknownFaceError(GalleryError):
    """There is no face of an id."""


class FaceTable(Table):
    """A table of faces.

    Attributes:
        name: Of the table.
    """

    name: str

    def count(self) -> int:
        """Number of faces."""
        return self._rows.count(self.name)

    def ids(self) -> list[int]:
        """Return the ids of all faces, rising."""
        return [id for (id,) in self._rows.sql.execute(f"SELECT id FROM {self.name} ORDER BY id")]

    def crop(self, id: int) -> bytes | None:
        """Return the encoded picture of a face; None: it was not kept.

        Raises:
            UnknownFaceError: There is no such face.
        """
        row = self._rows.sql.execute(f"SELECT crop FROM {self.name} WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise self._missing(id)
        crop: bytes | None = self._rows.codec.open("crop", row[0])
        return crop

    def insert_new(self, faces: Iterable[NewTemplate], **owner: int) -> list[int]:
        """Store faces; returns the ids of those that their owner did not have before.

        `owner` are the columns that say whose they are.
        """
        return [
            self._insert(face, owner)
            for face in faces
            if not self.holds(face.embedding, face.photo_sha256, **owner)
        ]

    def holds(self, vector: FloatArray, photo_sha256: str | None, **owner: int) -> bool:
        """Return whether the same face of the same photo is stored.

        Where the photo is not known, only the very same vector is the same face.
        """
        rows, of_owner = self._rows, "".join(f" AND {column} = ?" for column in owner)
        if photo_sha256 is None:
            return rows.exists(
                f"SELECT 1 FROM {self.name} WHERE photo_sha256 IS NULL AND vector = ?{of_owner}",
                rows.codec.seal("vector", vector.astype(_VECTOR_DTYPE).tobytes()),
                *owner.values(),
            )
        found = rows.sql.execute(
            f"SELECT vector FROM {self.name} WHERE photo_sha256 = ?{of_owner}",
            (rows.codec.seal("photo_sha256", photo_sha256), *owner.values()),
        ).fetchall()
        stored = self.as_vectors([vector for (vector,) in found], "the gallery")
        return bool((np.linalg.norm(stored - vector, axis=1) <= SAME_VECTOR_L2).any())

    def reencode(self, id: int, vector: FloatArray, crop: bytes | None) -> None:
        """Give a face the vector of another encoder, and another crop where one is given.

        Raises:
            GalleryError: The row is damaged.
        """
        codec = self._rows.codec
        values = {"vector": codec.seal("vector", vector.astype(_VECTOR_DTYPE).tobytes())}
        if crop is not None:
            values["crop"] = codec.seal("crop", crop)
        self._rows.update(self.name, id, **values)

    def delete_photo(self, sources: Sequence[str], photo_sha256: str | None) -> int:
        """Delete all faces of a photo, by its paths or content; returns how many."""
        codec = self._rows.codec
        where = "source = ?" + " OR source = ?" * (len(sources) - 1) + " OR photo_sha256 = ?"
        values = [codec.seal("source", _storable(source)) for source in sources]
        values.append(codec.seal("photo_sha256", photo_sha256))
        return self._rows.sql.execute(f"DELETE FROM {self.name} WHERE {where}", values).rowcount

    def as_vectors(self, stored: list[bytes], what: str) -> FloatArray:
        """Stored vectors as float32 (n, d).

        Raises:
            GalleryError: One is damaged; the message begins with `what`.
        """
        dimensions = self._rows.encoder.dimensions
        if self._rows.is_encrypted:
            stored = [self._rows.codec.open("vector", blob) for blob in stored]
        expected_bytes = dimensions * _VECTOR_DTYPE.itemsize
        if any(not isinstance(blob, bytes) or len(blob) != expected_bytes for blob in stored):
            raise GalleryError(f"{what}: a stored vector is cut (damaged: run `facepipe gallery repair`)")
        vectors = np.frombuffer(b"".join(stored), _VECTOR_DTYPE).reshape(-1, dimensions).astype(np.float32)
        require_vectors(vectors, dimensions, f"{what} (damaged: run `facepipe gallery repair`)")
        return vectors

    def _missing(self, id: int) -> UnknownFaceError:
        return UnknownFaceError(
            f"{self._rows.gallery}: there is no face {id} (any more) among its {self.name}"
        )

    def _fields(self, columns: Sequence[Any]) -> tuple[Any, ...]:
        """`FACE_COLUMNS` as the fields that templates and unknown faces end with."""
        source, *box, quality, photo_sha256, added_at = columns
        require_kind(float | None, *box, quality)
        require_kind(str, added_at)
        codec = self._rows.codec
        return (
            codec.open("source", source),
            None if None in box else tuple(box),
            quality,
            codec.open("photo_sha256", photo_sha256),
            added_at,
        )

    def _insert(self, new: NewTemplate, owner: dict[str, int]) -> int:
        codec = self._rows.codec
        # Adding 0.0 makes zero of minus zero, as SQLite does: its checksum would be another.
        box = (None,) * 4 if new.box_xyxy is None else tuple(float(side) + 0.0 for side in new.box_xyxy)
        row = (
            *owner.values(),
            codec.seal("vector", new.embedding.astype(_VECTOR_DTYPE).tobytes()),
            codec.seal("source", _storable(new.source)),
            *box,
            None if new.quality is None else float(new.quality) + 0.0,
            codec.seal("photo_sha256", new.photo_sha256),
            new.added_at or datetime.now(UTC).isoformat(timespec="seconds"),
            codec.seal("crop", new.crop),
        )
        return self._rows.insert(self.name, [row])[0]


def _storable(text: str | None) -> str | None:
    """File names may hold bytes that are no text; SQLite takes text only."""
    return None if text is None else text_of(text)
