"""The faces that a gallery remembers without a name."""

from __future__ import annotations

from collections.abc import Sequence

from facepipe.core.errors import GalleryError
from facepipe.gallery.base import GalleryBase
from facepipe.gallery.lost_faces import LostFaces, as_unknown
from facepipe.gallery.models import NewTemplate, UnknownFace, require_vectors
from facepipe.gallery.names import clean_name


class UnknownFacesMixin(GalleryBase):
    """The faces that a gallery remembers without a name."""

    def remember_unknown(self, faces: Sequence[NewTemplate]) -> list[int]:
        """Remember faces without a name, to be grouped and named later; they never name anybody.

        The same face of the same photo is stored once.

        Returns:
            Ids of the newly stored faces, in order; fewer than `faces` where some were stored before.

        Raises:
            GalleryError: As for `add`.
        """
        self._require_encoder()
        for face in faces:
            require_vectors(face.embedding[None], self.encoder.dimensions, "embedding of an unknown face")
        with self._changing():
            return self._store.add_unknown(faces)

    def unknown_faces(self) -> list[UnknownFace]:
        """Return all faces remembered without a name, oldest first, with their vectors."""
        with self._store.reading():
            return self._store.unknown.all()

    def unknown_crop(self, unknown_id: int) -> bytes | None:
        """Return the encoded picture of an unknown face; None: it was not kept.

        Raises:
            GalleryError: There is no such unknown face.
        """
        with self._store.reading():
            return self._store.unknown.crop(unknown_id)

    def forget_unknown(self, ids: Sequence[int]) -> None:
        """Erase unknown faces: all of `ids` or, where one is not there, none.

        Raises:
            GalleryError: There is no unknown face of one of these ids.
        """
        with self._changing(erases=True):
            self._store.unknown.delete(ids)

    def enroll_unknown(self, ids: Sequence[int], name: str) -> list[int]:
        """Make unknown faces templates of a person, who need not be known yet, in one transaction.

        Returns:
            Ids of the new templates; fewer than `ids` where the person had some of the faces already.

        Raises:
            GalleryError: There is no unknown face of one of these ids (nothing is changed), or the name is
                not to be used.
        """
        name = clean_name(name)
        if not ids:
            raise GalleryError(f"no faces given to remember of {name!r}")
        with self._warning_of_lookalikes(), self._changing(vectors=True):
            return self._store.add(name, self._store.unknown.take(ids))

    def bring_back(self, lost: Sequence[LostFaces]) -> int:
        """Remember lost faces as unknown ones; returns how many were not there already."""
        faces = as_unknown(lost)
        with self._changing():
            return len(self._store.add_unknown(faces))
