"""Which person each template is of, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from facepipe.gallery.index.parts import IdArray, locate, rows_of_values

_NONE: IdArray = np.zeros(0, np.int64)


class Owners:
    """The directory of all templates (`ranking.Directory`): 32 bytes of each."""

    def __init__(self) -> None:
        self._added: list[tuple[IdArray, IdArray]] = []
        self._known = _Columns(_NONE, _NONE)

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape; -1 where there is no such template."""
        columns = self._columns
        rows, is_present = locate(columns.ids, template_ids.ravel())
        people = np.full(rows.shape, -1)
        people[is_present] = columns.people[rows[is_present]]
        return people.reshape(template_ids.shape)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""
        order, people = self._columns.by_person
        rows, _ = rows_of_values(people, np.unique(np.asarray(person_ids, np.int64)))
        return people[rows], self._columns.ids[order[rows]]

    def add(self, ids: IdArray, people: IdArray) -> None:
        """Add templates with larger ids than all before, rising, and the person of each."""
        self._added.append((ids, people))

    def remove(self, ids: IdArray) -> None:
        """Forget these templates; others may be among them."""
        if len(ids):
            columns = self._columns
            is_kept = ~np.isin(columns.ids, ids)
            self._known = _Columns(columns.ids[is_kept], columns.people[is_kept])

    def move(self, ids: IdArray, people: IdArray) -> None:
        """Note who owns some templates now; others than those that are known may be among them."""
        if len(ids):
            columns = self._columns
            rows, is_present = locate(columns.ids, ids)
            moved = columns.people.copy()
            moved[rows[is_present]] = people[is_present]
            self._known = _Columns(columns.ids, moved)

    @property
    def _columns(self) -> _Columns:
        if self._added:
            every = [(self._known.ids, self._known.people), *self._added]
            ids, people = (np.concatenate(column) for column in zip(*every, strict=True))
            self._known, self._added = _Columns(ids, people), []
        return self._known


class _Columns:
    """Templates, rising, and the person of each."""

    def __init__(self, ids: IdArray, people: IdArray) -> None:
        self.ids, self.people = ids, people

    @cached_property
    def by_person(self) -> tuple[IdArray, IdArray]:
        """Rows of the templates person by person, and their people, rising."""
        order = np.argsort(self.people, kind="stable")
        return order, self.people[order]
