"""The people of a library: shown, renamed, merged, erased; and the steps that are taken back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.forgetting import forget_person
from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import Match
from facepipe.gallery.models import require_threshold
from facepipe.gallery.names import clean_name
from facepipe.library.changes import decision_of
from facepipe.library.deciding import DecidingMixin
from facepipe.library.models import LibraryFace, PersonSummary, Step
from facepipe.library.storage import PersonDisplay, StepState


class PeopleMixin(DecidingMixin):
    """People, and undoing."""

    def people(self) -> list[PersonSummary]:
        """Return everybody of the gallery, and everybody who was found or confirmed in a photo, by name."""
        templates = {person.name: person.template_count for person in self.gallery.people()}
        faces: dict[str, list[LibraryFace]] = {name: [] for name in templates}
        for face in self.faces.values():
            if face.name is not None:
                faces.setdefault(face.name, []).append(face)
        shown = self._tables.people()
        names = sorted(faces, key=lambda name: (name.casefold(), name))
        return [
            _summary(name, faces[name], templates.get(name, 0), shown.get(name, PersonDisplay()))
            for name in names
        ]

    def person(self, name: str) -> PersonSummary | None:
        """Return one of `people`, sooner than all of them; None: nobody has this name."""
        templates = len(self.gallery.templates(name)) if self.gallery.knows(name) else 0
        faces = [face for face in self.faces.values() if face.name == name]
        if not (templates or faces):
            return None
        return _summary(name, faces, templates, self._tables.people().get(name, PersonDisplay()))

    def knows(self, name: str) -> bool:
        """Return whether somebody of the gallery or the library has this name."""
        return self.gallery.knows(name) or any(face.name == name for face in self.faces.values())

    def faces_of(self, name: str) -> list[LibraryFace]:
        """Return the faces with a name, the most doubtful first and the confirmed ones last."""
        faces = [face for face in self.faces.values() if face.name == name]
        return sorted(faces, key=lambda face: (face.is_confirmed, -face.doubt))

    def nearest_template(self, face_id: str, name: str) -> str | None:
        """Return the face of the library that decides how near a face is to a person.

        Returns:
            Its id; None: the person's nearest template is not of this library, or there is none.
        """
        face = self.face(face_id)
        if face.embedding_row is None or not self.gallery.knows(name):
            return None
        templates, vectors = self.gallery.templates(name), self.gallery.vectors(name)
        nearest = templates[int(np.argmax(vectors @ self.embeddings[face.embedding_row]))].id
        return next((id for id, template_id in self._template_ids.items() if template_id == nearest), None)

    def set_hidden(self, name: str, is_hidden: bool) -> Step:
        """Show a person among the others, or not.

        Raises:
            UsageError: Nobody has this name.
        """
        return self._display(name, "hidden" if is_hidden else "shown", is_hidden=is_hidden)

    def set_cover(self, name: str, face_id: str) -> Step:
        """Choose the face that stands for a person.

        Raises:
            UsageError: Nobody has this name, or the face has another.
        """
        face = self.face(face_id)
        if face.name != name:
            raise UsageError(f"face {face.id} is {face.match.label}, not {name}: choose one of {name}'s")
        return self._display(name, "shown with another face", cover_face_id=face.id)

    def _display(self, name: str, what: str, **fields: Any) -> Step:
        self._require(name)
        before = self._tables.people().get(name, PersonDisplay())
        after = replace(before, **fields)
        changes = {"people": [[name, _display_to_list(before), _display_to_list(after)]]}
        with self._changing():
            self._tables.show_person(name, after)
            return self._tables.add_step(f"{name} {what}", {"decisions": [], **changes}, StepState.DONE).step

    # All decisions

    def decisions(self) -> list[StoredDecision]:
        """Return all decisions, also about photos that are not among those of the last batch."""
        return list(self._job.decisions)

    def displays(self) -> dict[str, PersonDisplay]:
        """Return how people are shown, where something was chosen."""
        return self._tables.people()

    def hidden_people(self) -> frozenset[str]:
        """Return the names of the people who are not shown."""
        return frozenset(name for name, display in self.displays().items() if display.is_hidden)

    def take_over(
        self, decisions: Sequence[StoredDecision], displays: Mapping[str, PersonDisplay], label: str
    ) -> Step:
        """Write decisions in place of those about the same faces, and how people are shown, as one step."""
        nothing = [
            replace(stored, decision=Decision(d.face_id, d.photo_sha256, d.box_xyxy), embedding=None)
            for stored in decisions
            for d in [stored.decision]
        ]
        before = [self._job.decisions.get(stored.decision.face_id) or stored for stored in nothing]
        shown = self._tables.people()
        people = [
            (name, _display_to_list(shown.get(name)), _display_to_list(display))
            for name, display in displays.items()
        ]

        def show() -> None:
            for name, display in displays.items():
                self._tables.show_person(name, display)

        step = self._step(label, before, decisions, {"people": people}, also=show)
        due = self._due_people
        self._load()
        self._due_people = due
        return step

    # Renaming and merging

    def rename(self, old: str, new: str) -> Step:
        """Give a person another name.

        Raises:
            UsageError: Nobody is named `old`.
            GalleryError: Somebody is named `new`, or the name can't be used.
        """
        self._require(old)
        new = clean_name(new)
        if self.knows(new):
            raise GalleryError(
                f"somebody is named {new!r} already: merge the two people, or choose another name"
            )
        return self._move_name(old, new, f"{old} renamed to {new}", {"op": "rename", "old": old, "new": new})

    def merge(self, source: str, into: str) -> Step:
        """Make one person of two, whose name is `into`.

        Raises:
            UsageError: Nobody has one of the names, or both are the same.
        """
        for name in (source, into):
            self._require(name)
        if source == into:
            raise UsageError(f"{source!r} can't be merged into the same person: choose another")
        known = self.gallery.knows(source)
        templates = [template.id for template in self.gallery.templates(source)] if known else []
        change = {
            "op": "merge",
            "old": source,
            "new": into,
            "templates": templates,
            "threshold_l2": self._own_threshold(source),
        }
        return self._move_name(source, into, f"{source} merged into {into}", change)

    def _move_name(self, old: str, new: str, label: str, gallery_change: dict[str, Any]) -> Step:
        """Change decisions, what is shown, and the gallery; a killed process leaves it to the next one."""
        before = [stored for stored in self._job.decisions if _speaks_of(stored, old)]
        after = [_with_name(stored, old, new) for stored in before]
        shown = self._tables.people()
        moved, there = shown.get(old), shown.get(new)
        people: list[tuple[str, Any, Any]] = [
            (old, _display_to_list(moved), None),
            (new, _display_to_list(there), _display_to_list(there or moved)),
        ]

        def show() -> None:
            for name, _, display in people:
                self._tables.show_person(name, _display_of(display))

        more = {"people": people, "gallery": gallery_change}
        step = self._step(label, before, after, more, StepState.DOING, also=show)
        with self._changing_gallery():
            self._change_gallery(gallery_change)
        with self._changing():
            self._tables.set_step_state(step.id, StepState.DONE)
        self._relabel(old, new)
        return step

    def set_threshold(self, name: str | None, threshold_l2: float) -> Step:
        """Name faces up to another distance.

        Args:
            name: Of this person; None: of all who have no threshold of their own.
            threshold_l2: Largest distance.

        Raises:
            UsageError: Nobody in the gallery has this name, or the threshold is not within 0..2.
        """
        require_threshold(threshold_l2)
        if name is not None and not self.gallery.knows(name):
            raise UsageError(f"{name!r} has no enrolled or confirmed face: confirm one first")
        who = "names are given" if name is None else f"{name} is named"
        change = {"op": "threshold", "name": name, "old": self._own_threshold(name), "new": threshold_l2}
        step = self._step(
            f"{who} up to {threshold_l2:.2f}",
            [],
            [],
            {"gallery": change},
            StepState.DOING,
            also=self._leave_everything,
        )
        with self._changing_gallery():
            self._change_gallery(change)
        with self._changing():
            self._tables.set_step_state(step.id, StepState.DONE)
        return step

    def _own_threshold(self, name: str | None) -> float | None:
        if name is None:
            return self.gallery.threshold_l2
        return next((person.threshold_l2 for person in self.gallery.people() if person.name == name), None)

    def _give_threshold(self, name: str | None, threshold_l2: float | None) -> None:
        if name is None:
            self.gallery.set_threshold(threshold_l2)
        elif self.gallery.knows(name):
            self.gallery.set_person_threshold(name, threshold_l2)

    def _leave_everything(self) -> None:
        """Leave all photos for `name_again`."""
        self._due_photos |= dict.fromkeys(self.photos)
        self._job.faces.leave_for_naming(self._due_photos)

    def _change_gallery(self, change: Mapping[str, Any]) -> None:
        """Do what a step does to the gallery, unless that was done."""
        old, new = change["old"], change["new"]
        if change["op"] == "threshold":
            self._give_threshold(change["name"], new)
            return
        if not self.gallery.knows(old):
            return
        if not self.gallery.knows(new):
            self.gallery.rename(old, new)
        elif change["op"] == "merge":
            self.gallery.merge(old, new)

    def _change_gallery_back(self, change: Mapping[str, Any]) -> None:
        old, new = change["old"], change["new"]
        if change["op"] == "threshold":
            self._give_threshold(change["name"], old)
            return
        if change["op"] == "rename":
            if self.gallery.knows(new) and not self.gallery.knows(old):
                self.gallery.rename(new, old)
            return
        there = (
            {template.id for template in self.gallery.templates(new)} if self.gallery.knows(new) else set()
        )
        moved = [id for id in change["templates"] if id in there]
        if moved:
            self.gallery.move_templates(moved, old)
        if change["threshold_l2"] is not None and self.gallery.knows(old):
            self.gallery.set_person_threshold(old, change["threshold_l2"])

    def _relabel(self, old: str, new: str) -> None:
        """Show a new name at once, and leave the photos for `name_again`."""
        for id, face in self.faces.items():
            match = face.match
            if old in (match.name, match.candidate_name, match.runner_up_name):
                self.faces[id] = replace(face, match=_relabeled(match, old, new))
                self._due_photos[face.photo_id] = None
        with self._changing():
            self._job.faces.leave_for_naming(self._due_photos)

    # Erasing

    def erase(self, name: str) -> int:
        """Erase a person from the gallery and the library; neither this nor earlier steps can be undone.

        What was found in photos in which the person is or may be goes too: the next batch analyzes them
        again.

        Returns:
            How many photos that are.

        Raises:
            UsageError: Nobody has this name.
        """
        self._job.require_writable()
        self._require(name)
        shown = {f.photo_id for f in self.faces.values() if name in (f.match.name, f.match.candidate_name)}
        self._name_photos(shown)  # what was decided just now is not among the names of the job yet
        photos = forget_person(self._job, {name})
        if self.gallery.knows(name):
            with self._changing_gallery():
                self.gallery.remove(name)
        with self._changing():
            self._tables.set_templates({}, list(self._template_ids))
        self._due_people.discard(name)
        self._load()
        return photos

    def _require(self, name: str) -> None:
        if not self.knows(name):
            raise UsageError(f"{self.folder}: nobody is named {name!r}: see `facepipe gallery list`")

    # Steps

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
                self._tables.show_person(name, _display_of(display))
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

    def _leave_concerned(self, change: Mapping[str, Any]) -> None:
        """Leave the photos for `name_again` that a change of the gallery concerns. Inside a transaction."""
        if change["op"] == "threshold":
            self._leave_everything()
            return
        for face in self.faces.values():
            if change["new"] in (face.match.name, face.match.candidate_name, face.match.runner_up_name):
                self._due_photos[face.photo_id] = None
        self._job.faces.leave_for_naming(self._due_photos)

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


def _summary(name: str, faces: list[LibraryFace], templates: int, display: PersonDisplay) -> PersonSummary:
    confirmed = sum(face.is_confirmed for face in faces)
    ids = {face.id for face in faces}
    cover = display.cover_face_id if display.cover_face_id in ids else _best(faces)
    return PersonSummary(name, len(faces), confirmed, templates, cover, display.is_hidden)


def _best(faces: list[LibraryFace]) -> str | None:
    """Id of the face to show: enrollable, confirmed, large."""

    def merit(face: LibraryFace) -> tuple[bool, bool, float]:
        left, top, right, bottom = face.box_xyxy
        return face.is_enrollable, face.is_confirmed, (right - left) * (bottom - top) * face.score

    return max(faces, key=merit).id if faces else None


def _is_unknown(face: LibraryFace) -> bool:
    return face.name is None and not face.is_settled


def _speaks_of(stored: StoredDecision, name: str) -> bool:
    decision = stored.decision
    return name in (decision.name, decision.found_name) or name in decision.not_names


def _with_name(stored: StoredDecision, old: str, new: str) -> StoredDecision:
    decision = stored.decision
    not_names = frozenset(new if name == old else name for name in decision.not_names)
    is_old = decision.verdict is Verdict.IS and decision.name == old
    name = new if is_old else decision.name
    found = new if decision.found_name == old else decision.found_name
    changed = replace(decision, name=name, found_name=found, not_names=not_names - {name or ""})
    return replace(stored, decision=changed)


def _relabeled(match: Match, old: str, new: str) -> Match:
    def renamed(name: str | None) -> str | None:
        return new if name == old else name

    return replace(
        match,
        name=renamed(match.name),
        candidate_name=renamed(match.candidate_name),
        runner_up_name=renamed(match.runner_up_name),
    )


def _display_to_list(display: PersonDisplay | None) -> list[Any] | None:
    return None if display is None else [display.is_hidden, display.cover_face_id]


def _display_of(values: list[Any] | None) -> PersonDisplay | None:
    return None if values is None else PersonDisplay(*values)
