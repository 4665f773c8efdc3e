"""Which person each template is of: in memory, or asked of the database."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import IdArray, RowsOfIds, ranges
from facepipe.gallery.ranking import VectorsOfTemplates
from facepipe.gallery.search.means import Means, computed_means
from facepipe.gallery.storage.template_table import TemplateTable

_NONE: IdArray = np.zeros(0, np.int64)


class StoredOwners:
    """The directory in the database (`ranking.Directory`). Inside a transaction.

    Args:
        templates: The table of all templates.
    """

    def __init__(self, templates: TemplateTable) -> None:
        self._templates = templates

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape; -1 where there is no such template."""
        return self._templates.people_of(template_ids)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""
        return self._templates.templates_of(person_ids)

    def means_of(self, people: IdArray, vectors_of: VectorsOfTemplates) -> FloatArray:
        """Return the means float32 (p, d) of the templates of people, rising, as unit vectors."""
        return computed_means(self, people, vectors_of)


class Owners:
    """The directory of all templates in memory (`ranking.Directory`).

    It takes 24 bytes a template and 16 a person; a mean takes 2 a number, for people with several templates.
    """

    def __init__(self) -> None:
        self._added: list[tuple[IdArray, IdArray]] = []
        self._known = _Columns(_NONE, _NONE)
        self._changed = _NONE
        """The people whose templates are others than those that the means are of."""
        self._means: Means | None = None

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape; -1 where there is no such template."""
        columns = self._columns
        rows, is_present = columns.rows.locate(template_ids.ravel())
        people = np.full(rows.shape, -1)
        people[is_present] = columns.people[rows[is_present]]
        return people.reshape(template_ids.shape)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""
        columns = self._columns.by_person
        rows, is_present = columns.rows.locate(np.unique(np.asarray(person_ids, np.int64)))
        rows = rows[is_present]
        first, end = columns.starts[rows], columns.starts[rows + 1]
        found, _ = ranges(first, end)
        return np.repeat(columns.people[rows], end - first), columns.template_ids[found]

    def means_of(self, people: IdArray, vectors_of: VectorsOfTemplates) -> FloatArray:
        """Return the means of the templates of people: see `ranking.Directory`.

        Those of everybody with several templates are held; `vectors_of` is asked for what has changed.
        """
        if self._means is None or len(self._changed):
            by_person = self._columns.by_person
            several = by_person.people[np.diff(by_person.starts) > 1]
            if self._means is None:
                self._means = Means(_NONE, vectors_of(_NONE).astype(np.float16))
            self._means = self._means.followed(
                several, self._changed, lambda some: computed_means(self, some, vectors_of)
            )
            self._changed = _NONE
        return self._means.of(people)

    def add(self, ids: IdArray, people: IdArray) -> None:
        """Add templates with larger ids than all before, rising, and the person of each."""
        self._added.append((ids, people))
        self._note_changed(people)

    def remove(self, ids: IdArray) -> None:
        """Forget these templates; others may be among them."""
        if len(ids):
            columns = self._columns
            is_kept = ~np.isin(columns.ids, ids)
            self._note_changed(columns.people[~is_kept])
            self._known = _Columns(columns.ids[is_kept], columns.people[is_kept])

    def move(self, ids: IdArray, people: IdArray) -> None:
        """Note who owns some templates now; others than those that are known may be among them."""
        if len(ids):
            columns = self._columns
            rows, is_present = columns.rows.locate(ids)
            moved = columns.people.copy()
            moved[rows[is_present]] = people[is_present]
            is_moved = moved != columns.people
            self._note_changed(np.concatenate([columns.people[is_moved], moved[is_moved]]))
            self._known = _Columns(columns.ids, moved)

    def _note_changed(self, people: IdArray) -> None:
        self._changed = np.union1d(self._changed, people)

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
    def rows(self) -> RowsOfIds:
        """Where each template stands."""
        return RowsOfIds(self.ids)

    @cached_property
    def by_person(self) -> _People:
        """The same, person by person."""
        order = np.argsort(self.people, kind="stable")
        people, starts = np.unique(self.people[order], return_index=True)
        return _People(people, np.append(starts, len(order)), self.ids[order])


class _People:
    """People int64 (p,), rising, and their template ids (n,): of each those from `starts` (p + 1,) on."""

    def __init__(self, people: IdArray, starts: IdArray, template_ids: IdArray) -> None:
        self.people, self.starts, self.template_ids = people, starts, template_ids
        self.rows = RowsOfIds(people)
