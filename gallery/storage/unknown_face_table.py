"""The table of faces that are remembered without a name."""

from __future__ import annotations

from collections.abc import Iterable

from facepipe.core.errors import GalleryError
from facepipe.gallery.models import NewTemplate, UnknownFace
from facepipe.gallery.storage.face_table import FaceTable
from facepipe.gallery.storage.schema import FACE_COLUMNS


class UnknownFaceTable(FaceTable):
    """All unknown faces."""

    name = "unknown_faces"

    def all(self) -> list[UnknownFace]:
        """Return all of them, oldest first."""
        rows = self._rows.sql.execute(
            f"SELECT vector, id, {FACE_COLUMNS} FROM unknown_faces ORDER BY id"
        ).fetchall()
        vectors = self.as_vectors([row[0] for row in rows], "unknown faces")
        return [
            UnknownFace(row[1], vector, *self._fields(row[2:]))
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def delete(self, ids: Iterable[int]) -> None:
        """Delete unknown faces. `Store.wipe_deleted` is due afterwards.

        Raises:
            GalleryError: There is none of one of these ids.
        """
        wanted = list(dict.fromkeys(ids))
        missing = self._rows.first_missing("unknown_faces", wanted)
        if missing is not None:
            raise GalleryError(
                f"{self._rows.gallery}: there is no unknown face {missing} (any more); nothing was changed"
            )
        self._rows.delete("unknown_faces", wanted)
        self._rows.note_wipe_due()

    def take(self, ids: Iterable[int]) -> list[NewTemplate]:
        """Delete unknown faces and return them, to be remembered of somebody.

        Raises:
            GalleryError: There is none of one of these ids, or it is damaged.
        """
        wanted = set(ids)
        faces = [face.as_new_template(self.crop(face.id)) for face in self.all() if face.id in wanted]
        self._rows.require_whole("unknown_faces", wanted)
        self.delete(wanted)
        return faces
