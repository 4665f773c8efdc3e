"""A batch's photos and faces, with what people decided about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from facepipe.core.faces import FloatArray
from facepipe.gallery import Gallery
from facepipe.library.models import Checked, FaceGroup, LibraryFace, LibraryPhoto, PersonSummary, Step


class Library:
    """The interface; being written. One thread uses it (the job's SQLite connection is that thread's).

    Every change is one transaction, durable when the method returns, and quick (milliseconds): the names of
    other faces that follow from it are found later, by `name_again`.

    Attributes:
        folder: Of the batch (its --out).
        gallery: Open.
        photos: By id, in the order of the last batch.
        faces: By id. New objects after every change; the mapping is the library's own.
        embeddings: float32 (m, d), unit length; `LibraryFace.embedding_row` leads into it.
        version: Grows with every change of photos, faces, people and groups.
    """

    folder: Path
    gallery: Gallery
    photos: Mapping[int, LibraryPhoto]
    faces: Mapping[str, LibraryFace]
    embeddings: FloatArray
    version: int

    @classmethod
    def open(cls, folder: Path, gallery: Path | None = None) -> Self:
        """Open a batch's folder, and its gallery (None: the one that the batch was last run with).

        Raises: UsageError (no batch there, unknown gallery), OutputError (in use, damaged), GalleryError.
        """
        raise NotImplementedError

    def close(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    # Reading

    def face(self, face_id: str) -> LibraryFace:
        """By its id or by a unique beginning of it of 4 and more digits. UsageError: there is none, or several."""
        raise NotImplementedError

    def people(self) -> list[PersonSummary]:
        """Everybody of the gallery, and everybody who was confirmed, by name (casefolded)."""
        raise NotImplementedError

    def faces_of(self, name: str) -> list[LibraryFace]:
        """Faces with this name, the most doubtful first; confirmed ones last."""
        raise NotImplementedError

    def groups(self) -> list[FaceGroup]:
        """The largest group first; settled faces are in none."""
        raise NotImplementedError

    def picture(self, face_id: str) -> bytes | None:
        """The thumbnail of a face as WebP (96 px)."""
        raise NotImplementedError

    def preview(self, photo_id: int) -> bytes | None:
        """The photo as a small WebP (224 px)."""
        raise NotImplementedError

    def nearest_template(self, face_id: str, name: str) -> str | None:
        """Id of the library's face that is the nearest enrolled face of a person; None: it is not of this library."""
        raise NotImplementedError

    def checked(self, name: str | None = None) -> Checked:
        """How many names were right, of all people or of one."""
        raise NotImplementedError

    # Deciding. `face_ids` unknown: UsageError, nothing is changed. Names go through clean_name (GalleryError).

    def confirm(self, face_ids: Sequence[str], name: str) -> Step:
        """These faces are this person, who need not be known yet."""
        raise NotImplementedError

    def reject(self, face_ids: Sequence[str], name: str) -> Step:
        """These faces are not this person."""
        raise NotImplementedError

    def mark_not_faces(self, face_ids: Sequence[str]) -> Step:
        raise NotImplementedError
    def ignore(self, face_ids: Sequence[str]) -> Step: ...
    def reset(self, face_ids: Sequence[str]) -> Step:
        """Forget what was decided about these faces."""
        raise NotImplementedError

    def name_group(self, number: int, name: str) -> Step: ...
    def ignore_group(self, number: int) -> Step: ...
    def rename(self, old: str, new: str) -> Step: ...
    def merge(self, source: str, into: str) -> Step: ...
    def set_hidden(self, name: str, is_hidden: bool) -> Step: ...
    def set_cover(self, name: str, face_id: str) -> Step: ...
    def erase(self, name: str) -> int:
        """Erase a person from the gallery and the library; can't be undone. Answers how many photos are concerned."""
        raise NotImplementedError

    def steps(self, limit: int = 100) -> list[Step]:
        """The last steps, the newest first."""
        raise NotImplementedError

    def undo(self) -> Step | None:
        """Take the last step back that was not undone; None: there is none."""
        raise NotImplementedError

    # What follows from decisions

    def name_again(self, max_photos: int | None = None) -> int:
        """Name the faces of photos again that a change may concern; answers how many photos are left to do.

        To be called after changes until it answers 0, in small portions where somebody waits for the next click.
        """
        raise NotImplementedError
