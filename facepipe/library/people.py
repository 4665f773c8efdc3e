"""The people of a library: shown, renamed, merged, erased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.forgetting import forget_person
from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery.models import require_threshold
from facepipe.gallery.names import clean_name
from facepipe.library.changes import display_of, display_to_list
from facepipe.library.gallery_changes import GalleryChangesMixin
from facepipe.library.models import LibraryFace, PersonSummary, Step
from facepipe.library.storage import PersonDisplay, StepState


class PeopleMixin(GalleryChangesMixin):
    """People."""

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
        changes = {"people": [[name, display_to_list(before), display_to_list(after)]]}
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
            (name, display_to_list(shown.get(name)), display_to_list(display))
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
            (old, display_to_list(moved), None),
            (new, display_to_list(there), display_to_list(there or moved)),
        ]

        def show() -> None:
            for name, _, display in people:
                self._tables.show_person(name, display_of(display))

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
