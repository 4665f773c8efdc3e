"""What people decide about faces and groups of faces, and what can be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from facepipe.batch.decisions import Decision, Verdict
from facepipe.batch.groups import FacesToGroup, remember_groups
from facepipe.core.counting import counted
from facepipe.core.errors import UsageError
from facepipe.gallery.matching import Doubt
from facepipe.gallery.names import clean_name
from facepipe.library.models import Checked, FaceGroup, Step
from facepipe.library.steps import Change, StepsMixin


class DecidingMixin(StepsMixin):
    """Decisions about faces and groups, each of them a step. Ids that are not there raise `UsageError`."""

    def confirm(self, face_ids: Sequence[str], name: str) -> Step:
        """Say that faces are a person, who need not be known yet.

        Raises:
            GalleryError: The name can't be used.
        """
        name = clean_name(name)
        return self._decide(
            face_ids, _is(name), lambda count: f"{counted(count, 'face')} confirmed as {name}"
        )

    def reject(self, face_ids: Sequence[str], name: str) -> Step:
        """Say that faces are not a person.

        Raises:
            GalleryError: The name can't be used.
        """
        name = clean_name(name)

        def change(decision: Decision) -> Decision:
            rejected = replace(decision, not_names=decision.not_names | {name})
            return replace(rejected, verdict=None, name=None) if decision.name == name else rejected

        return self._decide(face_ids, change, lambda count: f"{counted(count, 'face')} not {name}")

    def mark_not_faces(self, face_ids: Sequence[str]) -> Step:
        """Say that boxes are false alarms of the detector."""
        change = _verdict(Verdict.NOT_A_FACE)
        return self._decide(face_ids, change, lambda count: f"{counted(count, 'box')} without a face")

    def ignore(self, face_ids: Sequence[str]) -> Step:
        """Say that nobody wants to name faces: they are never asked about again."""
        return self._decide(
            face_ids, _verdict(Verdict.IGNORE), lambda count: f"{counted(count, 'face')} ignored"
        )

    def reset(self, face_ids: Sequence[str]) -> Step:
        """Forget what was decided about faces."""

        def change(decision: Decision) -> Decision:
            return replace(decision, verdict=None, name=None, not_names=frozenset())

        return self._decide(face_ids, change, lambda count: f"{counted(count, 'face')} undecided again")

    # Groups

    def groups(self) -> list[FaceGroup]:
        """Return the groups of unknown faces, the largest first; settled and named faces are in none."""
        members: dict[int, list[str]] = {}
        for face in self.faces.values():
            if face.group is not None and face.name is None and not face.is_settled:
                members.setdefault(face.group, []).append(face.id)
        groups = [FaceGroup(number, self._typical_first(ids)) for number, ids in members.items()]
        return sorted(groups, key=lambda group: (-len(group.face_ids), group.number))

    def regroup(self) -> None:
        """Group the unknown faces anew; groups keep their numbers."""
        self.take_groups(self.faces_to_group().found_groups(self.group_within_l2))

    @property
    def group_within_l2(self) -> float:
        """Mean distance up to which unknown faces are likely one person's."""
        return self._naming.group_within_l2

    def faces_to_group(self) -> FacesToGroup:
        """Return the faces that are near nobody, and that enrollment would take."""
        found = [
            face
            for face in self.faces.values()
            if face.match.reason == Doubt.NOBODY_NEAR.value
            and face.is_enrollable
            and face.embedding_row is not None
            and not face.is_settled
        ]
        photos = [self.photos[face.photo_id].sha256 or "" for face in found]
        rows = np.array([face.embedding_row for face in found], np.int64)
        return FacesToGroup([face.id for face in found], photos, self.embeddings[rows])

    def take_groups(self, groups: Sequence[Sequence[str]]) -> None:
        """Take groups that were found among `faces_to_group`; they keep their numbers."""
        numbers = remember_groups(self._job, groups)
        for id, face in self.faces.items():
            if face.group != numbers.get(id):
                self.faces[id] = replace(face, group=numbers.get(id))
        self.version += 1

    def group(self, number: int) -> FaceGroup:
        """Return a group by its number.

        Raises:
            UsageError: There is none.
        """
        for group in self.groups():
            if group.number == number:
                return group
        raise UsageError(
            f"{self.folder}: there is no group {number} of unknown faces: see `facepipe cluster`"
        )

    def name_group(self, number: int, name: str) -> Step:
        """Say that all faces of a group are a person; raises as `group` and `confirm`."""
        name, group = clean_name(name), self.group(number)
        return self._decide(group.face_ids, _is(name), lambda _: f"group {number} confirmed as {name}")

    def ignore_group(self, number: int) -> Step:
        """Say that nobody wants to name the faces of a group; raises as `group`."""
        group = self.group(number)
        return self._decide(group.face_ids, _verdict(Verdict.IGNORE), lambda _: f"group {number} ignored")

    def _typical_first(self, face_ids: Sequence[str]) -> tuple[str, ...]:
        rows = [self.faces[id].embedding_row for id in face_ids]
        embeddings = self.embeddings[[row for row in rows if row is not None]]
        order = np.argsort(-(embeddings @ embeddings.sum(axis=0)), kind="stable")
        return tuple(face_ids[index] for index in order.tolist())

    # How good the names were

    def checked(self, name: str | None = None) -> Checked:
        """Count how many names that the gallery had found were right, of those that people checked.

        Args:
            name: Found for the face; None: any.
        """
        counts = [own for found, own in self.checked_by_name().items() if name in (None, found)]
        return Checked(sum(own.right for own in counts), sum(own.wrong for own in counts))

    def checked_by_name(self) -> dict[str, Checked]:
        """Count them for each name that the gallery had found and people checked."""
        counts: dict[str, Checked] = {}
        for stored in self._job.decisions:
            decision = stored.decision
            found = decision.found_name
            if found is None:
                continue
            is_right = decision.name == found
            is_other = decision.verdict is not None and not is_right
            is_wrong = found in decision.not_names or is_other
            if is_right or is_wrong:
                before = counts.get(found, Checked(0, 0))
                counts[found] = Checked(before.right + is_right, before.wrong + is_wrong)
        return counts


def _is(name: str) -> Change:
    return lambda decision: replace(
        decision, verdict=Verdict.IS, name=name, not_names=decision.not_names - {name}
    )


def _verdict(verdict: Verdict) -> Change:
    return lambda decision: replace(decision, verdict=verdict, name=None)
