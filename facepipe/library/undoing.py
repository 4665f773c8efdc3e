"""The steps of a library: listed, taken back, and finished where a process was killed in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from facepipe.batch.decision_table import StoredDecision
from facepipe.library.changes import decision_of, display_of
from facepipe.library.models import LibraryFace, Step
from facepipe.library.people import PeopleMixin
from facepipe.library.storage import StepState


class UndoingMixin(PeopleMixin):
    """Steps, and undoing."""

    def steps(self, limit: int = 100) -> list[Step]:
        """Return the last steps, the newest first."""
        return [stored.step for stored in self._tables.steps(limit)]

    def undo(self) -> Step | None:
        """Take back the last step that was not taken back; None: there is none."""
        steps = self._tables.steps(1, [StepState.DONE])
        if not steps:
            return None
        stored = steps[0]
        pairs = [(decision_of(old), decision_of(new)) for old, new in stored.changes["decisions"]]
        before = [self._of_present_content(old) for old, _ in pairs]
        after = [new for _, new in pairs]
        gallery_change = stored.changes.get("gallery")
        with self._changing():
            if gallery_change is not None:
                self._leave_concerned(gallery_change)
            self._write_decisions(before)
            for name, display, _ in stored.changes.get("people", ()):
                self._tables.show_person(name, display_of(display))
            self._remove_drawn(before, after)
            self._tables.set_step_state(stored.id, StepState.UNDOING)
        self._finish_undo(stored.id, stored.changes)
        if stored.changes.get("drawn"):
            for new in after:
                if new.decision.face_id in self.faces:
                    self._reload_photo(self.faces[new.decision.face_id].photo_id)
        if gallery_change is not None and gallery_change["op"] == "rename":
            self._relabel(gallery_change["new"], gallery_change["old"])  # at once
        self._follow(after, before)
        self._give_back_thresholds(stored.changes.get("thresholds", {}))
        self._give_back_groups(stored.changes.get("groups", ()))
        return replace(stored.step, is_undone=True)

    def _give_back_thresholds(self, thresholds_l2: Mapping[str, float]) -> None:
        """Give people their own thresholds again whom the gallery had forgotten."""
        if thresholds_l2:
            self._sync_due_people()
        for name, threshold_l2 in thresholds_l2.items():
            if self._own_threshold(name) is None:
                with self._changing_gallery():
                    self._give_threshold(name, threshold_l2)

    def _give_back_groups(self, groups: Iterable[Sequence[Any]]) -> None:
        """Put unknown faces into their groups again: that of another face, or one whose number is free."""
        numbers: dict[str, int] = {}
        for number, ids, other in groups:
            now = self._present_group(number, other)
            if now is not None:
                unknown = [id for id in ids if id in self.faces and _is_unknown(self.faces[id])]
                numbers |= dict.fromkeys(unknown, now)
        for id, number in numbers.items():
            self.faces[id] = replace(self.faces[id], group=number)
        self._job.groups.add(numbers)

    def _present_group(self, number: int, other: str | None) -> int | None:
        """Return the number that a group has now; None: there is none, or it has become that of others."""
        if other is not None:
            return self.faces[other].group if other in self.faces else None
        return None if any(face.group == number for face in self.faces.values()) else number

    def _of_present_content(self, stored: StoredDecision) -> StoredDecision:
        """A decision about a photo as it is now: its metadata may have been edited since."""
        face = self.faces.get(stored.decision.face_id)
        sha256 = None if face is None else self.photos[face.photo_id].sha256
        if sha256 is None:
            return stored
        return replace(stored, decision=replace(stored.decision, photo_sha256=sha256))

    def _finish_undo(self, step_id: int, changes: Mapping[str, Any]) -> None:
        if "gallery" in changes:
            with self._changing_gallery():
                self._change_gallery_back(changes["gallery"])
        with self._changing():
            self._tables.set_step_state(step_id, StepState.UNDONE)

    def _remove_drawn(self, before: Iterable[StoredDecision], after: Iterable[StoredDecision]) -> None:
        for old, new in zip(before, after, strict=True):
            face = self.faces.get(new.decision.face_id)
            if new.decision.is_drawn and not old.decision.is_drawn and face is not None:
                self._job.faces.remove_drawn(face.photo_id, face.id, self._dimensions)

    def finish_after_kill(self) -> None:
        """Do what a killed process has left undone."""
        for stored in self._tables.steps(1, [StepState.DOING]):
            with self._changing_gallery():
                self._change_gallery(stored.changes["gallery"])
            with self._changing():
                self._tables.set_step_state(stored.id, StepState.DONE)
        for stored in self._tables.steps(1, [StepState.UNDOING]):
            self._finish_undo(stored.id, stored.changes)
        self._leave_after_kill()


def _is_unknown(face: LibraryFace) -> bool:
    return face.name is None and not face.is_settled
