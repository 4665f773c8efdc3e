"""What follows from decisions: templates in the gallery, and the names of other faces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Box, Verdict
from facepipe.core.errors import GalleryError
from facepipe.core.face_ids import same_faces
from facepipe.core.faces import FloatArray
from facepipe.gallery import NewTemplate, Template
from facepipe.gallery.matching import Doubt
from facepipe.library.base import LibraryBase
from facepipe.library.models import LibraryFace
from facepipe.library.templates import useful_templates

_ENROLLABLE_WEIGHT, _OTHER_WEIGHT = 1.0, 0.5
"""Faces that enrollment would refuse become templates where a person has no better ones."""
_TINY = 1e-9
_NAMED_AT_ONCE = 8
"""Photos whose names are found before a change returns, where nothing is known about them before."""


class FollowingMixin(LibraryBase):
    """Names that follow from decisions. They are found later than these are made: see `name_again`."""

    def name_again(self, max_photos: int | None = None) -> int:
        """Name the faces again of photos that a change concerns.

        Confirmed faces become templates first. To be called after changes until nothing is left; in small
        portions where somebody waits meanwhile.

        Args:
            max_photos: How many photos and people at most; None: all.

        Returns:
            How many photos and people are left.
        """
        self._job.require_writable()
        self._sync_due_people(max_photos)
        ids = list(self._due_photos)[:max_photos]
        for id in ids:
            del self._due_photos[id]
        self._name_photos(ids)
        return len(self._due_photos) + len(self._due_people)

    def follow_gallery(self) -> None:
        """Where others have changed the gallery, its people or thresholds, leave the photos for `name_again`.

        What the library itself changes in the gallery concerns few photos; it leaves these at once.
        """
        self._job.require_writable()
        state = self.gallery.state
        if state == self._tables.followed():
            return
        self._naming.refresh()
        ids = self._job.faces.named_otherwise(self._naming.key)
        with self._job.file.changing():
            self._job.faces.leave_for_naming(ids)
            self._tables.set_followed(state)
        self._due_photos |= dict.fromkeys(ids)
        self.version += bool(ids)

    def name_everything(self) -> None:
        """Name all faces by the gallery as it is now; no photo is opened."""
        self._job.require_writable()
        self._sync_due_people()
        self._naming.refresh()
        self._due_photos |= dict.fromkeys(self._job.faces.named_otherwise(self._naming.key))
        self.name_again()

    # After a change

    def _follow(self, before: Iterable[StoredDecision], after: Iterable[StoredDecision]) -> None:
        """Show decisions, and leave what follows from them for `name_again`."""
        changed = dict.fromkeys(stored.decision.face_id for stored in after)
        people = set[str]()
        for stored in (*before, *after):
            decision = stored.decision
            named = {decision.name, decision.found_name, *decision.not_names}
            people |= {name for name in named if name is not None}
            if decision.face_id in self.faces:
                self._show_decision(decision.face_id)
                self._due_photos |= dict.fromkeys(self._photos_showing(decision.face_id))
        self._due_people |= people
        self._leave_rejected(before, after)
        undecided = [id for id in changed if id in self.faces and self.faces[id].decision is None]
        self._name_now({self.faces[id].photo_id for id in undecided}, people)

    def _leave_rejected(self, before: Iterable[StoredDecision], after: Iterable[StoredDecision]) -> None:
        """Have photos named again in which somebody is who was rejected for another, similar face."""
        names = set[str]()
        for old, new in zip(before, after, strict=True):
            names |= old.decision.not_names ^ new.decision.not_names
        for face in self.faces.values() if names else ():
            if face.match.name in names or face.match.candidate_name in names:
                self._due_photos[face.photo_id] = None

    def _name_now(self, photo_ids: Collection[int], people: Collection[str]) -> None:
        """Name the faces of photos again at once where these are few; else they have no name until then.

        Args:
            photo_ids: Of the photos.
            people: Whose templates follow first; what others lack makes these photos due again.
        """
        if not photo_ids:
            return
        if len(photo_ids) <= _NAMED_AT_ONCE:
            self._sync_people(people)
            self._name_photos(photo_ids)
            return
        for id, face in self.faces.items():
            if face.photo_id in photo_ids and not face.is_settled:
                unnamed = replace(face.match, name=None, candidate_name=None, reason=Doubt.NOBODY_NEAR.value)
                self.faces[id] = replace(face, match=unnamed)

    def _name_photos(self, photo_ids: Iterable[int]) -> None:
        """Name the faces of photos by the gallery as it is now."""
        ids = [id for id in photo_ids if id in self.photos and self.photos[id].error is None]
        if ids:
            self._naming.refresh()
            names = self._naming, self._naming.key, self._dimensions
            self._job.faces.name_again(*names, ids, self._negatives())
            self._reread(ids)

    def _negatives(self) -> dict[str, FloatArray]:
        """By name, the embeddings of faces that people said are not this person."""
        rows: dict[str, list[int]] = {}
        for stored in self._job.decisions:
            face = self.faces.get(stored.decision.face_id)
            if face is not None and face.embedding_row is not None:
                for name in stored.decision.not_names:
                    rows.setdefault(name, []).append(face.embedding_row)
        return {name: self.embeddings[own] for name, own in rows.items()}

    # Templates

    def template_faces(self, name: str) -> tuple[list[LibraryFace], list[LibraryFace]]:
        """Return the confirmed faces of a person that are templates, the most useful first, and the others.

        The others are set aside: they add nothing to the templates or are beyond their number, or enrollment
        would refuse them and there are better ones, or they are marks without an embedding.
        """
        useful = self._useful_faces(name)
        ids = {face.id for face in useful}
        return useful, [face for face in self._confirmed(name) if face.id not in ids]

    def _sync_due_people(self, max_people: int | None = None) -> None:
        """Give the gallery the templates that the decisions make, and take away those that they do not."""
        self._sync_people(sorted(self._due_people)[:max_people])

    def _sync_people(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            changed = self._sync_person(name)
            self._due_people.discard(name)
            if changed is not None:
                self._leave_near_faces(name, changed)

    def _sync_person(self, name: str) -> list[LibraryFace] | None:
        """Returns the faces whose templates came or went; None: the gallery has not changed."""
        wanted = {face.id: face for face in self._useful_faces(name)}
        stored = self.gallery.templates(name) if self.gallery.knows(name) else []
        stored_ids = {template.id for template in stored}
        owned = {face_id: id for face_id, id in self._template_ids.items() if id in stored_ids}
        gone = [id for id in owned if id not in wanted]
        refuted = {id for id in self._refuted(name, stored) if id not in owned.values()}
        missing = [
            face for id, face in wanted.items() if id not in owned and not self._is_enrolled(face, stored)
        ]
        if not (gone or refuted or missing or any(id in self._template_ids for id in wanted.keys() - owned)):
            return None
        added: dict[str, int] = {}
        with self._changing_gallery():
            if missing:  # first, so that nobody is left without a template on the way
                self.gallery.add(name, [self._new_template(face) for face in missing])
                added = self._ids_of(missing, self.gallery.templates(name))
            if gone or refuted:
                self.gallery.remove_templates([*(owned[id] for id in gone), *refuted])
        lost = [id for id in self._template_ids if id in wanted and id not in owned and id not in added]
        with self._changing():
            self._tables.set_templates(added, [*gone, *lost])
        changed = [*missing, *(self.faces[id] for id in gone if id in self.faces)]
        return changed + (self._confirmed(name) if refuted else [])

    def _refuted(self, name: str, stored: Sequence[Template]) -> Iterator[int]:
        """Ids of templates, enrolled elsewhere, of faces that people said are somebody or something else."""
        of_photo: dict[str | None, list[Template]] = {}
        for template in stored:
            of_photo.setdefault(template.photo_sha256, []).append(template)
        for decided in self._job.decisions:
            decision = decided.decision
            is_other = decision.verdict is not None and decision.name != name
            if (is_other or name in decision.not_names) and decision.photo_sha256 in of_photo:
                yield from _same_face(decision.box_xyxy, of_photo[decision.photo_sha256])

    def _useful_faces(self, name: str) -> list[LibraryFace]:
        faces = [face for face in self._confirmed(name) if face.embedding_row is not None]
        best = [face for face in faces if face.is_enrollable] or faces
        if not best:
            return []
        embeddings = self.embeddings[[face.embedding_row for face in best if face.embedding_row is not None]]
        weights = np.array([face.score for face in best], np.float32)
        return [best[row] for row in useful_templates(embeddings, weights).tolist()]

    def _is_enrolled(self, face: LibraryFace, stored: Sequence[Template]) -> bool:
        return bool(self._ids_of([face], stored))

    def _ids_of(self, faces: Sequence[LibraryFace], stored: Sequence[Template]) -> dict[str, int]:
        """Ids of the templates that were made of faces, by face id: of the same photo and place."""
        found: dict[str, int] = {}
        for face in faces:
            sha256 = self.photos[face.photo_id].sha256
            for id in _same_face(face.box_xyxy, [t for t in stored if t.photo_sha256 == sha256]):
                found[face.id] = id
        return found

    def _new_template(self, face: LibraryFace) -> NewTemplate:
        return NewTemplate(
            embedding=self.embeddings[face.embedding_row],
            source=str(self._path(face)),
            box_xyxy=face.box_xyxy,
            photo_sha256=self.photos[face.photo_id].sha256,
        )

    # Which names may change

    def _leave_near_faces(self, name: str, changed: Iterable[LibraryFace]) -> None:
        """Have photos named again whose faces may get another name after a change of a person's templates."""
        is_near = self._is_within_reach(name, changed)
        for face in self.faces.values():
            match = face.match
            concerns = name in (match.name, match.candidate_name, match.runner_up_name)
            if concerns or (face.embedding_row is not None and is_near[face.embedding_row]):
                self._due_photos[face.photo_id] = None

    def _is_within_reach(self, name: str, changed: Iterable[LibraryFace]) -> npt.NDArray[np.bool_]:
        """bool (m,), of `embeddings`: near enough to a changed template, or to the mean of all."""
        vectors = [self.embeddings[face.embedding_row] for face in changed if face.embedding_row is not None]
        if self.gallery.knows(name):
            total = self.gallery.vectors(name).sum(axis=0)
            vectors.append(total / max(float(np.linalg.norm(total)), _TINY))
        if not vectors:
            return np.zeros(len(self.embeddings), np.bool_)
        own_l2 = [person.threshold_l2 or 0.0 for person in self.gallery.people()]
        reach_l2 = max(self._naming.threshold_l2, *own_l2, 0.0) + self._naming.options.min_margin_l2
        cosines = self.embeddings @ np.array(vectors, np.float32).T
        near: npt.NDArray[np.bool_] = cosines.max(axis=1) >= 1 - reach_l2**2 / 2
        return near

    def _leave_after_kill(self) -> None:
        """Find the people whose templates a killed process has left as they were."""
        due = set(self._due_photos)
        for face in self.faces.values():
            decision = face.decision
            if decision is not None and decision.name is not None and face.photo_id in due:
                self._due_people.add(decision.name)
        for face_id, template_id in self._template_ids.items():
            stored = self._job.decisions.get(face_id)
            if stored is None or stored.decision.verdict is not Verdict.IS:
                self._due_people |= self._owner(template_id)

    def _owner(self, template_id: int) -> set[str]:
        try:
            return {self.gallery.template(template_id).person}
        except GalleryError:  # somebody has taken it away
            return set()


def _same_face(box_xyxy: Box, templates: Sequence[Template]) -> list[int]:
    """Id of the template of one photo that shows the face in a box, if there is one."""
    placed = [template for template in templates if template.box_xyxy is not None]
    boxes = np.array([template.box_xyxy for template in placed], np.float32).reshape(-1, 4)
    (row,) = same_faces(np.array([box_xyxy], np.float32), boxes)
    return [] if row is None else [placed[row].id]
