"""A table of faces: what templates and unknown faces have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.core.plain_text import text_of
from facepipe.gallery.models import NewTemplate, require_vectors
from facepipe.gallery.storage.known_faces import KnownFaces, Owner
from facepipe.gallery.storage.rows import Table, require_kind
from facepipe.gallery.storage.schema import FACE_COLUMNS

_INSERTED_FACES = 500
_VECTOR_DTYPE = np.dtype("<f4")


class UnknownFaceError(GalleryError):
    """There is no face of an id."""


class FaceTable(Table):
    """A table of faces.

    Attributes:
        name: Of the table.
        owner_columns: Names of the columns that say whose a face is.
    """

    name: str
    owner_columns: tuple[str, ...] = ()

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

    def insert_new(self, faces: Iterable[tuple[Owner, NewTemplate]]) -> list[int]:
        """Store faces with their owners; returns the ids of those that the owner did not have before."""
        every, ids = iter(faces), list[int]()
        while some := list(islice(every, _INSERTED_FACES)):
            known, rows = self.known_like(some), []
            for owner, face in some:
                if not known.has(owner, face.photo_sha256, face.embedding):
                    known.note(owner, face.photo_sha256, face.embedding)
                    rows.append(self._row(owner, face))
            ids += self._rows.insert(self.name, rows)
        return ids

    def known_like(self, faces: Sequence[tuple[Owner, NewTemplate]]) -> KnownFaces:
        """Return the stored faces that any of some new ones may be the same as."""
        known = KnownFaces()
        self._note_of_photos(known, {face.photo_sha256 for _, face in faces if face.photo_sha256})
        vectors_of: dict[Owner, list[FloatArray]] = {}
        for owner, face in faces:
            if face.photo_sha256 is None:
                vectors_of.setdefault(owner, []).append(face.embedding)
        for owner, vectors in vectors_of.items():
            self._note_without_photo(known, owner, vectors)
        return known

    def _note_of_photos(self, known: KnownFaces, photos: Iterable[str]) -> None:
        photo_of = {self._rows.codec.seal("photo_sha256", photo): photo for photo in photos}
        columns = ", ".join(("photo_sha256", "vector", *self.owner_columns))
        query = f"SELECT {columns} FROM {self.name} WHERE photo_sha256 IN"
        for photo, vector, *owner in self._rows.of_values(query, photo_of):
            known.note(tuple(owner), photo_of[photo], self.as_vectors([vector], "the gallery")[0])

    def _note_without_photo(self, known: KnownFaces, owner: Owner, vectors: Sequence[FloatArray]) -> None:
        seal = self._rows.codec.seal
        vector_of = {seal("vector", vector.astype(_VECTOR_DTYPE).tobytes()): vector for vector in vectors}
        of_owner = "".join(
            f" AND {column} = {id:d}" for column, id in zip(self.owner_columns, owner, strict=True)
        )
        query = f"SELECT vector FROM {self.name} WHERE photo_sha256 IS NULL{of_owner} AND vector IN"
        for (stored,) in self._rows.of_values(query, vector_of):
            known.note(owner, None, vector_of[stored])

    def reencode(self, faces: Mapping[int, tuple[FloatArray, bytes | None]]) -> None:
        """Give faces, by their ids, the vectors of another encoder, and other crops where they are given.

        Raises:
            GalleryError: A row is damaged.
        """
        codec = self._rows.codec
        vectors = {
            id: codec.seal("vector", vector.astype(_VECTOR_DTYPE).tobytes())
            for id, (vector, _) in faces.items()
        }
        crops = {id: codec.seal("crop", crop) for id, (_, crop) in faces.items() if crop is not None}
        both = {id: (vectors[id], crop) for id, crop in crops.items()}
        self._rows.update(self.name, ("vector", "crop"), both)
        self._rows.update(self.name, ("vector",), {id: (vectors[id],) for id in faces.keys() - crops.keys()})

    def new_templates(self) -> Iterator[tuple[Owner, NewTemplate]]:
        """Yield all faces, oldest first, to be stored elsewhere."""
        columns = ", ".join(("vector", "crop", *self.owner_columns, FACE_COLUMNS))
        rows = self._rows.sql.stream(f"SELECT {columns} FROM {self.name} ORDER BY id")
        owners, open_crop = len(self.owner_columns), self._rows.codec.open
        while some := list(islice(rows, _INSERTED_FACES)):
            vectors = self.as_vectors([row[0] for row in some], "the gallery")
            for vector, (_, crop, *rest) in zip(vectors, some, strict=True):
                source, box, quality, photo, added_at = self._fields(rest[owners:])
                opened = open_crop("crop", crop)
                yield (
                    tuple(rest[:owners]),
                    NewTemplate(vector, source, box, quality, photo, added_at, opened),
                )

    def ids_of_photo(self, photo_sha256: str) -> list[int]:
        """Return the ids of the faces of a photo, by its content."""
        sealed = self._rows.codec.seal("photo_sha256", photo_sha256)
        query = f"SELECT id FROM {self.name} WHERE photo_sha256 = ?"
        return [id for (id,) in self._rows.sql.execute(query, (sealed,)).fetchall()]

    def change_photo(self, former_sha256: str, photo_sha256: str) -> int:
        """Give the faces of a photo its new content hash; returns how many there are.

        Raises:
            GalleryError: A row is damaged.
        """
        ids = self.ids_of_photo(former_sha256)
        sealed = self._rows.codec.seal("photo_sha256", photo_sha256)
        self._rows.update(self.name, ["photo_sha256"], dict.fromkeys(ids, (sealed,)))
        return len(ids)

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

    def _row(self, owner: Owner, new: NewTemplate) -> tuple[Any, ...]:
        """Return what is stored of a face: the columns that are checked."""
        codec = self._rows.codec
        # Adding 0.0 makes zero of minus zero, as SQLite does: its checksum would be another.
        box = (None,) * 4 if new.box_xyxy is None else tuple(float(side) + 0.0 for side in new.box_xyxy)
        return (
            *owner,
            codec.seal("vector", new.embedding.astype(_VECTOR_DTYPE).tobytes()),
            codec.seal("source", _storable(new.source)),
            *box,
            None if new.quality is None else float(new.quality) + 0.0,
            codec.seal("photo_sha256", new.photo_sha256),
            new.added_at or datetime.now(UTC).isoformat(timespec="seconds"),
            codec.seal("crop", new.crop),
        )


def _storable(text: str | None) -> str | None:
    """File names may hold bytes that are no text; SQLite takes text only."""
    return None if text is None else text_of(text)
