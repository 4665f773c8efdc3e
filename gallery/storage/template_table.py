"""The table of templates: the enrolled faces of people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from facepipe.core.faces import FloatArray
from facepipe.gallery.index.parts import IdArray, locate
from facepipe.gallery.models import NewTemplate, Template
from facepipe.gallery.storage.face_table import FaceTable
from facepipe.gallery.storage.known_faces import Owner
from facepipe.gallery.storage.rows import as_ids, is_id, require_kind
from facepipe.gallery.storage.schema import FACE_COLUMNS

_READ_ROWS = 4096
_READ_IDS = 1 << 16


class TemplateTable(FaceTable):
    """The templates of all people, by the ids of their people."""

    name = "templates"
    owner_columns = ("person_id",)

    def of_person(self, person_id: int, name: str) -> tuple[list[Template], FloatArray]:
        """Return the templates of the person `name`, oldest first, and their vectors float32 (n, d)."""
        rows = self._rows.sql.execute(
            f"SELECT vector, id, {FACE_COLUMNS} FROM templates WHERE person_id = ? ORDER BY id", (person_id,)
        ).fetchall()
        templates = [Template(row[1], name, *self._fields(row[2:])) for row in rows]
        return templates, self.as_vectors([row[0] for row in rows], f"templates of {name}")

    def of_ids(self, ids: Iterable[int]) -> tuple[list[Template], FloatArray]:
        """Return templates by their ids, in this order, and their vectors float32 (n, d).

        Raises:
            GalleryError: There is no template of one of these ids, or it or its person is damaged.
        """
        wanted = list(dict.fromkeys(ids))
        rows = {
            row[0]: row[1:]
            for row in self._rows.of_ids(
                f"SELECT templates.id, vector, person_id, name, {FACE_COLUMNS} FROM templates"
                " JOIN people ON people.id = person_id WHERE templates.id IN",
                filter(is_id, wanted),
            )
        }
        for id in wanted:
            if id not in rows:
                raise self._missing(id)
        self._rows.require_whole("people", {person_id for _, person_id, *_ in rows.values()})
        open_name = self._rows.codec.open
        found = [Template(id, open_name("name", rows[id][2]), *self._fields(rows[id][3:])) for id in wanted]
        return found, self.as_vectors([rows[id][0] for id in wanted], "templates")

    def contents(self) -> dict[int, list[NewTemplate]]:
        """Return the templates of everybody by the ids of people, each person's oldest first."""
        templates: dict[int, list[NewTemplate]] = {}
        for (person_id,), face in self.new_templates():
            templates.setdefault(person_id, []).append(face)
        return templates

    def has_photo(self, photo_sha256: str, person: str | None) -> bool:
        """Return whether a template of this photo is stored, of anybody or of one person."""
        sealed = self._rows.codec.seal("photo_sha256", photo_sha256)
        if person is None:
            return self._rows.exists("SELECT 1 FROM templates WHERE photo_sha256 = ?", sealed)
        return self._rows.exists(
            "SELECT 1 FROM templates JOIN people ON people.id = person_id"
            " WHERE photo_sha256 = ? AND name = ?",
            sealed,
            self._rows.codec.seal("name", person),
        )

    def people_of(self, template_ids: IdArray) -> IdArray:
        """Return the person ids of templates, in the same shape; -1 where there is no such template."""
        wanted = np.unique(template_ids).tolist()
        known, people = self._rows.ids_of("SELECT id, person_id FROM templates WHERE id IN", wanted).T
        rising = np.argsort(known)
        rows, is_present = locate(known[rising], template_ids.ravel())
        found = np.full(rows.shape, -1)
        found[is_present] = people[rising[rows[is_present]]]
        return found.reshape(template_ids.shape)

    def templates_of(self, person_ids: Sequence[int]) -> tuple[IdArray, IdArray]:
        """Return the templates of people: person ids (n,), rising, and template ids (n,)."""
        query = "SELECT person_id, id FROM templates WHERE person_id IN"
        owners, ids = self._rows.ids_of(query, person_ids).T
        order = np.lexsort((ids, owners))
        return owners[order], ids[order]

    def last_id(self) -> int:
        """Return the largest id that there is; 0: none."""
        return int(self._rows.value("SELECT COALESCE(MAX(id), 0) FROM templates"))

    def owned_after(self, template_id: int) -> Iterator[tuple[IdArray, IdArray, FloatArray]]:
        """Yield ids, people and vectors float32 (n, d) of all templates with larger ids, rising."""
        rows = self._rows.sql.stream(
            "SELECT id, person_id, vector FROM templates WHERE id > ? ORDER BY id", (template_id,)
        )
        while some := list(islice(rows, _READ_ROWS)):
            ids, people, vectors = zip(*some, strict=True)
            require_kind(int, *people)
            yield np.array(ids), np.array(people), self.as_vectors(list(vectors), "the gallery")

    def owners_after(self, template_id: int) -> tuple[IdArray, IdArray]:
        """Return ids and people, both (n,), of all templates with larger ids, rising."""
        # Where all are wanted, an index has them: no template need be read.
        where, values = ("WHERE id > ?", (template_id,)) if template_id else ("", ())
        rows = self._rows.sql.stream(f"SELECT id, person_id FROM templates {where}", values)
        batches = [as_ids([])]
        while some := list(islice(rows, _READ_IDS)):
            batches.append(as_ids(some))
        ids, people = np.concatenate(batches).T
        order = np.argsort(ids)
        return ids[order], people[order]

    def moved_after(self, generation: int) -> tuple[IdArray, IdArray]:
        """Return ids and people of the templates that later changes than that one gave to other people.

        Only of schemas that note it: see `Store.notes_moves`.
        """
        rows = self._rows.sql.execute(
            "SELECT id, person_id FROM templates WHERE id IN"
            " (SELECT template_id FROM moved_templates WHERE generation > ?)",
            (generation,),
        ).fetchall()
        ids, people = as_ids(rows).T
        return ids, people

    def vectors_after(self, template_id: int) -> Iterator[tuple[IdArray, FloatArray]]:
        """The vectors of all templates with larger ids, rising, in batches of ids and float32 (n, d)."""
        while True:
            rows = self._rows.sql.execute(
                "SELECT id, vector FROM templates WHERE id > ? ORDER BY id LIMIT ?", (template_id, _READ_ROWS)
            ).fetchall()
            if not rows:
                return
            ids = np.array([row[0] for row in rows], np.int64)
            yield ids, self.as_vectors([row[1] for row in rows], "the gallery")
            template_id = int(ids[-1])

    def add(self, person_id: int, templates: Iterable[NewTemplate]) -> list[int]:
        """Store templates of a person; returns the ids of those not stored before."""
        return self.add_of_people(((person_id,), template) for template in templates)

    def add_of_people(self, templates: Iterable[tuple[Owner, NewTemplate]]) -> list[int]:
        """Store templates with the ids of their people; returns the ids of those not stored before."""
        ids = self.insert_new(templates)
        if ids:
            self._rows.note_vectors_changed()
        return ids

    def hand_over(self, templates: Sequence[Template], vectors: FloatArray, person_id: int) -> int:
        """Give a person templates of others, and delete those that they hold already; returns how many moved.

        `Store.wipe_deleted` is due afterwards.
        """
        owner, moved, dropped = (person_id,), list[int](), list[int]()
        faces = [face.as_new_template(vector, None) for face, vector in zip(templates, vectors, strict=True)]
        known = self.known_like([(owner, face) for face in faces])
        for template, face in zip(templates, faces, strict=True):
            if known.has(owner, face.photo_sha256, face.embedding):
                dropped.append(template.id)
            else:
                known.note(owner, face.photo_sha256, face.embedding)
                moved.append(template.id)
        self.delete(dropped)
        self._rows.update("templates", self.owner_columns, dict.fromkeys(moved, owner))
        return len(moved)

    def delete(self, ids: Iterable[int]) -> int:
        """Delete templates; returns how many. `Store.wipe_deleted` is due afterwards.

        Raises:
            GalleryError: There is no template of one of these ids.
        """
        wanted = list(dict.fromkeys(ids))
        missing = self._rows.first_missing("templates", wanted)
        if missing is not None:
            raise self._missing(missing)
        self._rows.delete("templates", wanted)
        return self._after_deleting(len(wanted))

    def delete_of_person(self, person_id: int) -> int:
        """Delete all templates of a person; returns how many."""
        return self._after_deleting(
            self._rows.sql.execute("DELETE FROM templates WHERE person_id = ?", (person_id,)).rowcount
        )

    def delete_photo(self, sources: Sequence[str], photo_sha256: str | None) -> int:
        """Delete all templates of a photo, by its paths or content; returns how many."""
        return self._after_deleting(super().delete_photo(sources, photo_sha256))

    def _after_deleting(self, count: int) -> int:
        if count:
            self._rows.note_vectors_changed()
        return count
