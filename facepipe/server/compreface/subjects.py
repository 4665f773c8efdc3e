"""Subjects: the people of the gallery, and names that were added before their first face."""

from __future__ import annotations

from facepipe.gallery import Gallery
from facepipe.gallery.names import NameTakenError, UnknownPersonError, clean_name
from facepipe.server.database import ServerDatabase
from facepipe.server.errors import RefusedError


class Subjects:
    """The subjects of a gallery. A person there has at least one face; names without any are kept beside it.

    Args:
        gallery: Of the server.
        database: Holds the names without a face.
    """

    def __init__(self, gallery: Gallery, database: ServerDatabase) -> None:
        self._gallery, self._database = gallery, database

    def names(self) -> list[str]:
        """Return all subjects, sorted."""
        return sorted({person.name for person in self._gallery.people()}.union(self._empty()))

    def add(self, name: str) -> str:
        """Add a subject without a face; returns the name as stored.

        Raises:
            NameTakenError: There is one of this name.
            RefusedError: The gallery is encrypted: names would be stored in plain beside it.
        """
        name = clean_name(name)
        if self._gallery.info().encrypted:
            raise RefusedError(400, "encrypted", "the gallery is encrypted: add the subject with an example")
        if name in self.names():
            raise NameTakenError(f"subject {name!r} exists already")
        with self._database.writing() as sql:
            sql.execute("INSERT INTO empty_subjects VALUES (?) ON CONFLICT DO NOTHING", (name,))
        return name

    def rename(self, old: str, new: str) -> None:
        """Rename a subject; where the new name is another's, both become one.

        Raises:
            UnknownPersonError: There is no such subject.
        """
        old, new = clean_name(old), clean_name(new)
        was_empty = self._forget(old)
        if self._gallery.knows(old) and old != new:
            self._forget(new)
            if self._gallery.knows(new):
                self._gallery.merge(old, new)
            else:
                self._gallery.rename(old, new)
        elif was_empty and not self._gallery.knows(new):
            self.add(new)
        elif not was_empty and old != new:
            raise UnknownPersonError(f"subject {old!r} not found")

    def remove(self, name: str) -> int:
        """Erase a subject and all of its faces; returns how many faces.

        Raises:
            UnknownPersonError: There is no such subject.
        """
        name = clean_name(name)
        if self._forget(name) and not self._gallery.knows(name):
            return 0
        return self._gallery.remove(name)

    def fill(self, name: str) -> None:
        """Note that a subject has a face now."""
        self._forget(clean_name(name))

    def _empty(self) -> list[str]:
        with self._database.reading() as sql:
            rows = [] if sql is None else sql.execute("SELECT name FROM empty_subjects").fetchall()
        return [name for (name,) in rows]

    def _forget(self, name: str) -> bool:
        """Forget a name without faces; returns whether it was kept."""
        if name not in self._empty():
            return False
        with self._database.writing() as sql:
            return bool(sql.execute("DELETE FROM empty_subjects WHERE name = ?", (name,)).rowcount)
