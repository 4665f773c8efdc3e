"""Which person each template is of, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from facepipe.gallery.index.parts import IdArray, locate

_NONE: IdArray = np.zeros(0, np.int64)


class Owners:
    """The directory of all templates (`matching.Directory`)."""

    def __init__(self) -> None:
        self._ids, self._people = _NONE, _NONE  # Of templates, rising, and the person of each.
        self._templates: dict[int, IdArray] = {}

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape; -1 where there is no such template."""
        rows, is_present = locate(self._ids, template_ids.ravel())
        people = np.full(rows.shape, -1)
        people[is_present] = self._people[rows[is_present]]
        return people.reshape(template_ids.shape)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""
        wanted = sorted(set(person_ids))
        found = [self._templates.get(person, _NONE) for person in wanted]
        return np.repeat(np.array(wanted, np.int64), list(map(len, found))), np.concatenate([_NONE, *found])

    def add(self, ids: IdArray, people: IdArray) -> None:
        """Add templates with larger ids than all before, rising, and the person of each."""
        self._ids, self._people = np.concatenate([self._ids, ids]), np.concatenate([self._people, people])
        order = np.argsort(people, kind="stable")
        owners, starts = np.unique(people[order], return_index=True)
        for person, own in zip(owners.tolist(), np.split(ids[order], starts)[1:], strict=True):
            before = self._templates.get(person)
            self._templates[person] = own if before is None else np.concatenate([before, own])

    def remove(self, ids: IdArray) -> None:
        """Forget these templates; others may be among them."""
        is_removed = np.isin(self._ids, ids)
        for person in np.unique(self._people[is_removed]).tolist():
            self._keep(person, np.setdiff1d(self._templates[person], ids, assume_unique=True))
        self._ids, self._people = self._ids[~is_removed], self._people[~is_removed]

    def set_templates(self, people: Iterable[int], owners: IdArray, ids: IdArray) -> None:
        """Take over who owns which templates now.

        Args:
            people: Whose templates changed; all that were any of theirs are of some of them now, or removed.
            owners: int64 (n,), those of them who have templates, rising.
            ids: int64 (n,), the templates.
        """
        for person in people:
            self._keep(person, np.sort(ids[owners == person]))
        self._people[np.searchsorted(self._ids, ids)] = owners

    def _keep(self, person: int, ids: IdArray) -> None:
        if len(ids):
            self._templates[person] = ids
        else:
            self._templates.pop(person, None)
