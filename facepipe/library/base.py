"""The base of all parts of `Library`: its photos and faces in memory, and one step as one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.job import Job
from facepipe.batch.models import AnalyzedPhoto
from facepipe.batch.naming import Naming
from facepipe.batch.overlay import with_decisions
from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, Match
from facepipe.gallery import Gallery
from facepipe.library.models import LibraryFace, LibraryPhoto
from facepipe.library.storage import LibraryTables

_MIN_ID_DIGITS = 4


class LibraryBase:
    """An open library. One thread uses it.

    Args:
        job: The batch.
        gallery: That names its faces.
        naming: How they are named.

    Attributes:
        folder: Of the batch, its --out.
        gallery: Open.
        photos: By id, in the order of the last batch.
        faces: By id. Faces are replaced by new objects when they change.
        embeddings: float32 (m, d), unit length, of the faces with an `embedding_row`.
        version: Grows with every change of photos, faces, people and groups.
        photos_version: Grows when photos come, go, or are analyzed anew.
    """

    photos: Mapping[int, LibraryPhoto]
    faces: dict[str, LibraryFace]
    embeddings: FloatArray
    _copies: dict[str, dict[int, None]]  # ids of photos by content, in the order of the batch

    def __init__(self, job: Job, gallery: Gallery, naming: Naming) -> None:
        self.folder, self.gallery, self.version, self.photos_version = job.folder, gallery, 0, 0
        self._job, self._naming, self._tables = job, naming, LibraryTables(job)
        self._due_people: set[str] = set()
        self._due_photos: dict[int, None] = {}
        self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the batch and the gallery."""
        try:
            self._job.close()
        finally:
            self.gallery.close()

    @property
    def is_read_only(self) -> bool:
        """Whether another process works with the batch: this is how it was when the library was opened.

        Whatever would change anything raises `ReadOnlyJobError`.
        """
        return self._job.is_read_only

    # Reading

    def face(self, face_id: str) -> LibraryFace:
        """Return a face by its id, or by a beginning of it of at least 4 digits.

        Raises:
            UsageError: There is no such face, or there are several.
        """
        if face_id in self.faces:
            return self.faces[face_id]
        found = [id for id in self.faces if id.startswith(face_id)] if len(face_id) >= _MIN_ID_DIGITS else []
        if len(found) == 1:
            return self.faces[found[0]]
        problem = f"{len(found)} faces begin with" if found else "there is no face"
        raise UsageError(
            f"{self.folder}: {problem} {face_id!r}; give 12 digits, as the page and --json show them"
        )

    def picture(self, face_id: str) -> bytes | None:
        """Return the thumbnail of a face, 96 px on its longer side; None: there is none."""
        face = self.face(face_id)
        return self._job.faces.picture(face.photo_id, face.row)

    def preview(self, photo_id: int) -> bytes | None:
        """Return a photo with 200 px on its longer side; None: it has no face."""
        return self._job.faces.picture(photo_id, -1)

    def _photos_showing(self, face_id: str) -> Iterable[int]:
        """Ids of the photos that show a face: its own, and copies of that, which share the face's id."""
        face = self.faces.get(face_id)
        sha256 = None if face is None else self.photos[face.photo_id].sha256
        return () if sha256 is None else tuple(self._copies[sha256])

    def _selected(self, face_ids: Iterable[str]) -> list[LibraryFace]:
        return list({face.id: face for face in map(self.face, face_ids)}.values())

    # The state in memory

    @property
    def _dimensions(self) -> int:
        return self.gallery.encoder.dimensions

    def _load(self) -> None:
        """Read all photos and faces from the job."""
        groups, vectors = self._job.groups.read(), list[FloatArray]()
        self.photos, self.faces, self._copies = {}, {}, {}
        self.embeddings = np.zeros((0, self._dimensions), np.float32)
        for photo in self._job.faces.photos(self._dimensions):
            self._add_photo(photo, groups, vectors)
        self.embeddings = np.array(vectors, np.float32).reshape(len(vectors), self._dimensions)
        self._due_photos = dict.fromkeys(self._job.faces.due_for_naming())
        self.version += 1
        self.photos_version += 1

    def _add_photo(self, photo: AnalyzedPhoto, groups: Mapping[str, int], vectors: list[FloatArray]) -> None:
        ids = () if photo.faces is None else photo.faces.ids
        first_row = len(self.embeddings)
        assert isinstance(self.photos, dict)
        self.photos[photo.id] = LibraryPhoto(
            photo.id, photo.path, photo.sha256, photo.size_wh, photo.taken_at, photo.error, ids
        )
        if photo.faces is None or photo.sha256 is None:
            return
        self._copies.setdefault(photo.sha256, {})[photo.id] = None
        found = photo.faces.faces
        assert found.embeddings is not None
        assert found.matches is not None
        boxes, scores = found.boxes_xyxy.tolist(), found.scores.tolist()
        encoded = np.isfinite(found.embeddings[:, 0])
        enrollable = np.asarray(found.enrollable if found.enrollable is not None else [False] * len(ids))
        for row, id in enumerate(ids):
            decision = self._job.decisions.decision(id)
            self.faces[id] = LibraryFace(
                id=id,
                photo_id=photo.id,
                row=row,
                box_xyxy=tuple(boxes[row]),
                score=scores[row],
                match=self._shown(found.matches[row], decision) if decision else found.matches[row],
                is_enrollable=bool(enrollable[row]),
                embedding_row=first_row + len(vectors) if encoded[row] else None,
                decision=decision,
                group=groups.get(id),
            )
            if encoded[row]:
                vectors.append(found.embeddings[row])

    def _reload_photo(self, photo_id: int) -> None:
        """Read a photo whose faces have changed in number; their embeddings are added to the others."""
        groups = {id: face.group for id, face in self.faces.items() if face.group is not None}
        for id in self.photos[photo_id].face_ids if photo_id in self.photos else ():
            self.faces.pop(id, None)
        vectors = list[FloatArray]()
        self._add_photo(self._job.faces.photo(photo_id, self._dimensions), groups, vectors)
        if vectors:
            self.embeddings = np.concatenate([self.embeddings, np.array(vectors, np.float32)])
        self.version += 1
        self.photos_version += 1

    def _take_contents(self) -> None:
        """Take the content hashes of photos from the job: names may have been written into them."""
        assert isinstance(self.photos, dict)
        self._copies = {}
        for id, photo in self.photos.items():
            sha256 = None if photo.sha256 is None else self._job.faces.sha256(id)
            if sha256 != photo.sha256:
                self.photos[id] = replace(photo, sha256=sha256)
            if sha256 is not None:
                self._copies.setdefault(sha256, {})[id] = None
        self.version += 1
        self.photos_version += 1

    def _reread(self, photo_ids: Iterable[int]) -> None:
        """Take the names of photos from the job."""
        for photo_id in photo_ids:
            found = self._job.faces.of_photo(photo_id, self._dimensions)
            for id, match in zip(found.ids, found.faces.matches or (), strict=True):
                if id in self.faces:
                    self.faces[id] = replace(self.faces[id], match=match)
        self.version += 1

    def _show_decision(self, face_id: str) -> None:
        """Show what was decided about a face, until its photo is named again."""
        face, decision = self.faces[face_id], self._job.decisions.decision(face_id)
        settled = decision is not None and decision.verdict is not None
        group = None if settled else face.group
        shown = self._shown(face.match, decision)
        self.faces[face_id] = replace(face, match=shown, decision=decision, group=group)

    def _shown(self, match: Match, decision: Decision | None) -> Match:
        unnamed = np.full((1, self._dimensions), np.nan, np.float32)
        (shown,) = with_decisions([match], [decision], unnamed, {})
        return shown

    # Changing

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction on the job; where it fails, the decisions in memory are those of the file again."""
        try:
            with self._job.file.changing():
                yield
        except BaseException:
            self._job.decisions.read()
            raise
        self.__dict__.pop("_template_ids", None)
        self.version += 1

    @contextmanager
    def _changing_gallery(self) -> Iterator[None]:
        """Run a change of the gallery after which `follow_gallery` need not name all photos again."""
        before = self._tables.followed()
        with self.gallery.state_after_own_changes(before) as state_after:
            yield
        after = state_after()
        if after not in (before, None):
            with self._job.file.changing():
                self._tables.set_followed(after)

    @cached_property
    def _template_ids(self) -> dict[str, int]:
        """Ids of the gallery's templates that faces of the library have become, by face id."""
        return self._tables.templates()

    def _confirmed(self, name: str) -> list[LibraryFace]:
        return [
            face
            for face in self.faces.values()
            if face.decision is not None
            and face.decision.verdict is Verdict.IS
            and face.decision.name == name
        ]

    def _path(self, face: LibraryFace) -> Path:
        return self.photos[face.photo_id].path
