"""What steps of a library change in the gallery besides templates: names, and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from facepipe.core.faces import Match
from facepipe.library.deciding import DecidingMixin


class GalleryChangesMixin(DecidingMixin):
    """Changes of the gallery, as steps keep them: done, also twice, and taken back."""

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
        """Undo `_change_gallery`, unless that was done."""
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

    def _own_threshold(self, name: str | None) -> float | None:
        if name is None:
            return self.gallery.threshold_l2
        return next((person.threshold_l2 for person in self.gallery.people() if person.name == name), None)

    def _give_threshold(self, name: str | None, threshold_l2: float | None) -> None:
        if name is None:
            self.gallery.set_threshold(threshold_l2)
        elif self.gallery.knows(name):
            self.gallery.set_person_threshold(name, threshold_l2)

    def _leave_concerned(self, change: Mapping[str, Any]) -> None:
        """Leave the photos for `name_again` that a change of the gallery concerns. Inside a transaction."""
        if change["op"] == "threshold":
            self._leave_everything()
            return
        for face in self.faces.values():
            if change["new"] in (face.match.name, face.match.candidate_name, face.match.runner_up_name):
                self._due_photos[face.photo_id] = None
        self._job.faces.leave_for_naming(self._due_photos)

    def _leave_everything(self) -> None:
        """Leave all photos for `name_again`."""
        self._due_photos |= dict.fromkeys(self.photos)
        self._job.faces.leave_for_naming(self._due_photos)

    def _relabel(self, old: str, new: str) -> None:
        """Show a new name at once, and leave the photos for `name_again`."""
        for id, face in self.faces.items():
            match = face.match
            if old in (match.name, match.candidate_name, match.runner_up_name):
                self.faces[id] = replace(face, match=_relabeled(match, old, new))
                self._due_photos[face.photo_id] = None
        with self._changing():
            self._job.faces.leave_for_naming(self._due_photos)


def _relabeled(match: Match, old: str, new: str) -> Match:
    def renamed(name: str | None) -> str | None:
        return new if name == old else name

    return replace(
        match,
        name=renamed(match.name),
        candidate_name=renamed(match.candidate_name),
        runner_up_name=renamed(match.runner_up_name),
    )
