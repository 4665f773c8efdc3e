"""The base of all parts of `Library`: its photos and faces in memory, and one step as one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.job import Job
from facepipe.batch.models import AnalyzedPhoto
from facepipe.batch.naming import Naming
from facepipe.batch.overlay import with_decisions
from facepipe.batch.rows import face_bytes
from facepipe.core.errors import UsageError
from facepipe.core.faces import FloatArray, Match
from facepipe.gallery import Gallery
from facepipe.library.changes import decision_to_dict
from facepipe.library.models import LibraryFace, LibraryPhoto, Step
from facepipe.library.storage import LibraryTables, StepState, now

_MIN_ID_DIGITS = 4
Change = Callable[[Decision], Decision]


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
    """

    photos: Mapping[int, LibraryPhoto]
    faces: dict[str, LibraryFace]
    embeddings: FloatArray

    def __init__(self, job: Job, gallery: Gallery, naming: Naming) -> None:
        self.folder, self.gallery, self.version = job.folder, gallery, 0
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
        """Return the thumbnail of a face as WebP, longer side 96 px; None: there is none."""
        face = self.face(face_id)
        return self._job.faces.picture(face.photo_id, face.row)

    def preview(self, photo_id: int) -> bytes | None:
        """Return a photo as WebP, longer side 224 px; None: it has no face."""
        return self._job.faces.picture(photo_id, -1)

    def _selected(self, face_ids: Iterable[str]) -> list[LibraryFace]:
        return list({face.id: face for face in map(self.face, face_ids)}.values())

    # The state in memory

    @property
    def _dimensions(self) -> int:
        return self.gallery.encoder.dimensions

    def _load(self) -> None:
        """Read all photos and faces from the job."""
        groups, vectors = self._job.groups.read(), list[FloatArray]()
        self.photos, self.faces = {}, {}
        for photo in self._job.faces.photos(self._dimensions):
            self._add_photo(photo, groups, vectors)
        self.embeddings = np.array(vectors, np.float32).reshape(len(vectors), self._dimensions)
        self._due_photos = dict.fromkeys(self._job.faces.due_for_naming())
        self.version += 1

    def _add_photo(self, photo: AnalyzedPhoto, groups: Mapping[str, int], vectors: list[FloatArray]) -> None:
        ids = () if photo.faces is None else photo.faces.ids
        assert isinstance(self.photos, dict)
        self.photos[photo.id] = LibraryPhoto(
            photo.id, photo.path, photo.sha256, photo.size_wh, photo.taken_at, photo.error, ids
        )
        if photo.faces is None:
            return
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
                embedding_row=len(vectors) if encoded[row] else None,
                decision=decision,
                group=groups.get(id),
            )
            if encoded[row]:
                vectors.append(found.embeddings[row])

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

    def _decide(self, face_ids: Sequence[str], change: Change, label: Callable[[int], str]) -> Step:
        """Change what is decided about faces, as one step.

        Raises:
            UsageError: No face is given, or one is not there; nothing is changed.
        """
        faces = self._selected(face_ids)
        if not faces:
            raise UsageError("no face is given: choose at least one")
        before = [self._stored(face) for face in faces]
        after = [
            replace(stored, decision=replace(change(stored.decision), decided_at=now())) for stored in before
        ]
        return self._step(label(len(faces)), before, after)

    def _step(
        self,
        label: str,
        before: Sequence[StoredDecision],
        after: Sequence[StoredDecision],
        more: Mapping[str, Any] | None = None,
        state: StepState = StepState.DONE,
        also: Callable[[], None] | None = None,
    ) -> Step:
        """Write decisions in place of those of before, and remember the step, in one transaction.

        Args:
            label: For people to read.
            before: About the same faces as `after`.
            after: What is decided from now on.
            more: Further changes; see `facepipe.library.people`.
            state: `DOING` where the gallery is still to be changed.
            also: Writes the further changes into the job.
        """
        changes = {
            "decisions": [
                [decision_to_dict(old), decision_to_dict(new)] for old, new in zip(before, after, strict=True)
            ],
            **(more or {}),
        }
        with self._changing():
            self._write_decisions(after)
            if also is not None:
                also()
            step = self._tables.add_step(label, changes, state)
        self._follow(before, after)
        return step.step

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

    def _write_decisions(self, decisions: Iterable[StoredDecision]) -> None:
        photos = set()
        for stored in decisions:
            self._job.decisions.put(stored)
            face = self.faces.get(stored.decision.face_id)
            if face is not None:
                photos.add(face.photo_id)
        self._job.faces.leave_for_naming(photos)

    def _follow(self, before: Iterable[StoredDecision], after: Iterable[StoredDecision]) -> None:
        """Show decisions, and leave what follows from them for `name_again`."""
        for stored in (*before, *after):
            decision = stored.decision
            people = {decision.name, decision.found_name, *decision.not_names}
            self._due_people |= {name for name in people if name is not None}
            if decision.face_id in self.faces:
                self._show_decision(decision.face_id)
                self._due_photos[self.faces[decision.face_id].photo_id] = None

    def _stored(self, face: LibraryFace) -> StoredDecision:
        """What was decided about a face; an empty decision where nothing was."""
        stored = self._job.decisions.get(face.id)
        if stored is not None:
            return stored
        sha256 = self.photos[face.photo_id].sha256
        assert sha256 is not None
        numbers = self._numbers(face)
        return StoredDecision(Decision(face.id, sha256, face.box_xyxy, found_name=face.name), numbers)

    def _numbers(self, face: LibraryFace) -> bytes:
        photo = self._job.faces.of_photo(face.photo_id, self._dimensions)
        one = photo.faces.select([photo.ids.index(face.id)])
        assert one.embeddings is not None
        return face_bytes(one.with_enrollable(np.zeros(1, np.bool_)), [photo.reasons[face.row]])[0]

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
