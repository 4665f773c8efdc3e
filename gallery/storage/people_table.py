"""The table of people: their names and their own thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from facepipe.gallery.models import Person, is_threshold
from facepipe.gallery.names import NameTakenError, UnknownPersonError
from facepipe.gallery.storage.rows import Table, require_kind
from facepipe.gallery.storage.schema import row_checksum


@dataclass(frozen=True, slots=True)
class StoredPerson:
    """A row as it is stored, read to be used later.

    Attributes:
        name: Plain text, or ciphertext in an encrypted gallery.
        threshold_l2: Of their own.
        checksum: Of both.
    """

    name: Any
    threshold_l2: Any
    checksum: int


class PeopleTable(Table):
    """All people."""

    def count(self) -> int:
        """Number of people."""
        return self._rows.count("people")

    def all(self) -> list[Person]:
        """Everybody, in no order."""
        self._rows.require_whole("people")
        rows = self._rows.sql.execute(
            "SELECT name, COUNT(*), MIN(added_at), MAX(added_at), threshold_l2 FROM people"
            " JOIN templates ON person_id = people.id GROUP BY people.id"
        )
        people = [Person(self._rows.codec.open("name", name), *rest) for name, *rest in rows]
        for person in people:
            require_kind(str, person.name, person.first_added_at, person.last_added_at)
            require_kind(float | None, person.threshold_l2)
        return [
            person if is_threshold(person.threshold_l2) else replace(person, threshold_l2=None)
            for person in people
        ]

    def names(self) -> list[str]:
        """Return the names of all people, in no order."""
        self._rows.require_whole("people")
        names = self._rows.sql.execute("SELECT name FROM people")
        return [self._rows.codec.open("name", name) for (name,) in names]

    def has(self, name: str) -> bool:
        """Return whether somebody has this name."""
        return self._rows.exists("SELECT 1 FROM people WHERE name = ?", self._rows.codec.seal("name", name))

    def ids(self) -> dict[str, int]:
        """Return the ids of all people by name."""
        self._rows.require_whole("people")
        rows = self._rows.sql.execute("SELECT name, id FROM people")
        return {self._rows.codec.open("name", name): id for name, id in rows}

    def id_of(self, name: str) -> int:
        """Return the id of a person.

        Raises:
            UnknownPersonError: Nobody has this name.
        """
        sealed = self._rows.codec.seal("name", name)
        row = self._rows.sql.execute("SELECT id FROM people WHERE name = ?", (sealed,)).fetchone()
        if row is None:
            raise UnknownPersonError(f"nobody is named {name!r}: see `facepipe gallery list`")
        return int(row[0])

    def names_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Person id to name; checked, so that nobody is given a damaged one."""
        return {id: self.name_of(id, person) for id, person in self.stored(ids).items()}

    def threshold_of(self, id: int) -> float | None:
        """Return a person's own threshold; None: there is none that can be used."""
        return usable_thresholds(self.stored([id])).get(id)

    def stored(self, ids: Iterable[int]) -> dict[int, StoredPerson]:
        """Person id to row, of those of some people that there are."""
        rows = self._rows.of_ids("SELECT id, name, threshold_l2, checksum FROM people WHERE id IN", ids)
        return {id: StoredPerson(*values) for id, *values in rows}

    def stored_after(self, id: int) -> dict[int, StoredPerson]:
        """Person id to row, of all people with larger ids."""
        rows = self._rows.sql.stream(
            "SELECT id, name, threshold_l2, checksum FROM people WHERE id > ? ORDER BY id", (id,)
        )
        return {id: StoredPerson(*values) for id, *values in rows}

    def name_of(self, id: int, person: StoredPerson) -> str:
        """Return the name in a row that was read earlier.

        Raises:
            GalleryError: The row is damaged.
        """
        if row_checksum(person.name, person.threshold_l2) != person.checksum:
            raise self._rows.damaged("people", id)
        name: str = self._rows.codec.open("name", person.name)
        return name

    def add(self, name: str) -> int:
        """Make a person if need be; returns the id."""
        return self.add_all([name])[name]

    def add_all(self, names: Iterable[str]) -> dict[str, int]:
        """Make people, as far as need be; returns their ids by name."""
        sealed = {self._rows.codec.seal("name", name): name for name in names}
        stored = self._rows.of_values("SELECT name, id FROM people WHERE name IN", sealed)
        ids = {sealed[name]: id for name, id in stored}
        new = [(name, None) for name in sealed if sealed[name] not in ids]
        new_ids = self._rows.insert("people", new)
        return ids | {sealed[name]: id for (name, _), id in zip(new, new_ids, strict=True)}

    def rename(self, old: str, new: str) -> None:
        """Give a person another name that nobody has. `Store.wipe_deleted` is due afterwards.

        Raises:
            UnknownPersonError: Nobody is named `old`.
            NameTakenError: Somebody else is named `new`.
        """
        id = self.id_of(old)
        if old != new and self.has(new):
            raise NameTakenError(
                f"somebody is named {new!r} already: to make one person of both, merge {old!r} into {new!r}"
            )
        self._rows.update("people", ("name",), {id: (self._rows.codec.seal("name", new),)})
        self._rows.note_wipe_due()

    def set_threshold(self, name: str, threshold_l2: float | None) -> None:
        """Give a person their own threshold; None: take it away."""
        threshold_l2 = None if threshold_l2 is None else float(threshold_l2) + 0.0
        self._rows.update("people", ("threshold_l2",), {self.id_of(name): (threshold_l2,)})

    def delete(self, id: int) -> None:
        """Delete a person whose templates are deleted. `Store.wipe_deleted` is due afterwards."""
        self._rows.sql.execute("DELETE FROM people WHERE id = ?", (id,))
        self._rows.note_wipe_due()

    def delete_those_without_templates(self) -> None:
        """Delete people of whom nothing is left."""
        self._rows.sql.execute(
            "DELETE FROM people WHERE NOT EXISTS (SELECT 1 FROM templates WHERE person_id = people.id)"
        )


def usable_thresholds(people: Mapping[int, StoredPerson]) -> dict[int, float]:
    """Person id to threshold, of those people who have one of their own that can be used."""
    thresholds = {id: person.threshold_l2 for id, person in people.items() if person.threshold_l2 is not None}
    require_kind(float | None, *thresholds.values())
    return {id: threshold_l2 for id, threshold_l2 in thresholds.items() if is_threshold(threshold_l2)}
