"""Changes of decisions as steps, each of them one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Decision
from facepipe.batch.rows import face_bytes
from facepipe.core.errors import UsageError
from facepipe.library.changes import decision_to_dict
from facepipe.library.following import FollowingMixin
from facepipe.library.models import LibraryFace, Step
from facepipe.library.storage import StepState, now

Change = Callable[[Decision], Decision]


class StepsMixin(FollowingMixin):
    """Changes of decisions, written with the step that takes them back."""

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
            more: Further changes; see `facepipe.library.people` and `gallery_changes`.
            state: `DOING` where the gallery is still to be changed.
            also: Writes the further changes into the job.
        """
        changes = {
            "decisions": [
                [decision_to_dict(old), decision_to_dict(new)] for old, new in zip(before, after, strict=True)
            ],
            "thresholds": self._thresholds_at_stake(before, after),
            "groups": self._groups_at_stake(before),
            **(more or {}),
        }
        with self._changing():
            self._write_decisions(after)
            if also is not None:
                also()
            step = self._tables.add_step(label, changes, state)
        self._follow(before, after)
        return step.step

    def _thresholds_at_stake(
        self, before: Sequence[StoredDecision], after: Sequence[StoredDecision]
    ) -> dict[str, float]:
        """Own thresholds of people who lose a confirmed face: with the last one the gallery forgets them."""
        names = {old.decision.name for old in before} - {None}
        names -= {new.decision.name for new in after}
        people = self.gallery.people() if names else ()
        return {
            person.name: person.threshold_l2
            for person in people
            if person.name in names and person.threshold_l2 is not None
        }

    def _groups_at_stake(self, before: Sequence[StoredDecision]) -> list[list[Any]]:
        """Groups of faces that a step is about: the number, these faces, and another face, if any."""
        found: dict[int, list[str]] = {}
        for stored in before:
            face = self.faces.get(stored.decision.face_id)
            if face is not None and face.group is not None:
                found.setdefault(face.group, []).append(face.id)
        chosen = {id for ids in found.values() for id in ids}
        others: dict[int | None, str] = {}
        for face in self.faces.values() if found else ():
            if face.group in found and face.id not in chosen:
                others.setdefault(face.group, face.id)
        return [[number, ids, others.get(number)] for number, ids in found.items()]

    def _write_decisions(self, decisions: Iterable[StoredDecision]) -> None:
        photos = set[int]()
        for stored in decisions:
            self._job.decisions.put(stored)
            photos.update(self._photos_showing(stored.decision.face_id))
        self._job.faces.leave_for_naming(photos)

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
