"""The people of a gallery and their templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.models import NewTemplate, Person, Template, require_vectors
from facepipe.gallery.names import NameTakenError, clean_name, lookalike_key
from facepipe.gallery.ranking import PersonDistance, distances_to_people
from facepipe.gallery.thresholds import ThresholdsMixin


class PeopleMixin(ThresholdsMixin):
    """The people of a gallery and their templates."""

    def add(self, name: str, templates: Sequence[NewTemplate], *, known: bool | None = None) -> list[int]:
        """Remember faces of a person, who need not be known yet.

        The same face of the same photo (`photo_sha256`) is stored once a person; without a photo's hash, the
        very same vector is. So enrolling again changes nothing. Whether a new name looks like another's is
        answered by `people_like`, before.

        Args:
            name: The person.
            templates: Their faces.
            known: Whether somebody must have this name already, or nobody may; None: either.

        Returns:
            Ids of the newly stored templates, in order; fewer than `templates` where some were stored before.

        Raises:
            GalleryError: The name is empty, a vector is not float32 of unit length and the gallery's
                dimensions, or the gallery may not be written.
            UnknownPersonError: Nobody has the name, and somebody must.
            NameTakenError: Somebody has the name, and nobody may.
        """
        self._require_encoder()
        name = clean_name(name)
        if not templates:
            raise GalleryError(f"no faces given to remember of {name!r}")
        for template in templates:
            require_vectors(template.embedding[None], self.encoder.dimensions, f"embedding of {name!r}")
        with self._changing(vectors=True):
            if known:
                self._person_id(name)
            elif known is False and self._store.people.has(self._stored_name(name)):
                raise NameTakenError(f"somebody is named {name!r} already")
            return self._store.add(name, templates)

    def people(self) -> list[Person]:
        """Everybody, by name."""
        with self._store.reading():
            people = self._store.people.all()
        return sorted(people, key=lambda person: (person.name.casefold(), person.name))

    def knows(self, name: str) -> bool:
        """Return whether somebody has this name."""
        with self._store.reading():
            return self._store.people.has(self._stored_name(name))

    def people_like(self, name: str) -> list[str]:
        """Others whose names people can't tell from this one, sorted: see `lookalike_key`."""
        name = clean_name(name)
        key = lookalike_key(name)
        with self._store.reading():
            names = self._store.people.names()
        return sorted(other for other in names if other != name and lookalike_key(other) == key)

    def templates(self, name: str) -> list[Template]:
        """Return a person's templates, oldest first.

        Raises:
            GalleryError: Nobody has this name.
        """
        with self._store.reading():
            return self._faces_of(name)[0]

    def vectors(self, name: str) -> FloatArray:
        """Return the vectors of a person's templates, float32 (n, d) in the order of `templates`."""
        with self._store.reading():
            return self._faces_of(name)[1]

    def template(self, id: int) -> Template:
        """Return the template of an id.

        Raises:
            GalleryError: There is none.
        """
        with self._store.reading():
            return self._store.templates.of_ids([id])[0][0]

    def template_vector(self, id: int) -> FloatArray:
        """Return the vector of a template, float32 (d,).

        Raises:
            GalleryError: There is none of this id.
        """
        with self._store.reading():
            vector: FloatArray = self._store.templates.of_ids([id])[1][0]
            return vector

    def has_photo(self, photo_sha256: str, name: str | None = None) -> bool:
        """Return whether a face of this photo is stored already, of anybody or of the person `name`."""
        with self._store.reading():
            stored = None if name is None else self._stored_name(name)
            return self._store.templates.has_photo(photo_sha256, stored)

    def rename(self, old: str, new: str) -> None:
        """Give a person another name.

        Raises:
            GalleryError: Nobody is named `old`, or somebody is named `new`.
        """
        new = clean_name(new)
        with self._warning_of_lookalikes(), self._changing(erases=True):
            self._store.require_no_unused_key()
            self._store.people.rename(self._stored_name(old), new)

    def merge(self, source: str, into: str) -> int:
        """Make one person of two: `into` gets the templates of `source`, who is forgotten; returns how many.

        Raises:
            GalleryError: One of them is not known, or both are the same.
        """
        with self._changing(vectors=True, erases=True):
            source, into = self._stored_name(source), self._stored_name(into)
            if source == into:
                raise GalleryError(f"{source!r} can't be merged into the same person")
            into_id, source_id = self._store.people.id_of(into), self._store.people.id_of(source)
            count = self._store.templates.hand_over(*self._faces_of(source), into_id)
            self._store.delete_person(source_id)
            return count

    def remove(self, name: str) -> int:
        """Forget a person: name, vectors, crops and paths leave every file of the gallery.

        So do the unknown faces that would now get this name by their distance alone.

        Returns:
            How many templates were erased.

        Raises:
            GalleryError: Nobody has this name.
        """
        self._index.require_nothing_lost()
        with self._changing(vectors=True, erases=True):
            person_id = self._person_id(name)
            self._store.unknown.delete(self._unknown_faces_like(name))
            return self._store.delete_person(person_id)

    def remove_templates(self, ids: Iterable[int]) -> int:
        """Erase templates: vectors, crops and paths leave every file of the gallery.

        People of whom no other template is known are forgotten with them.

        Returns:
            How many were erased.

        Raises:
            GalleryError: There is no template of one of these ids; nothing is changed.
        """
        self._index.require_nothing_lost()
        with self._changing(vectors=True, erases=True):
            count = self._store.templates.delete(ids)
            if count:
                self._store.forget_people_without_templates()
            return count

    def move_templates(self, ids: Iterable[int], name: str) -> int:
        """Give templates to another person, who need not be known yet, in one transaction.

        A face that this person has already is dropped. People of whom nothing is left are forgotten.

        Returns:
            How many the person got.

        Raises:
            GalleryError: There is no template of one of these ids (nothing is changed), or the name is not to
                be used.
        """
        with self._warning_of_lookalikes(), self._changing(vectors=True, erases=True):
            self._store.require_no_unused_key()
            name = self._stored_name(name)
            templates, vectors = self._store.templates.of_ids(ids)
            rows = [row for row, template in enumerate(templates) if template.person != name]
            if not rows:
                return 0
            person_id = self._store.people.add(name)
            others = [templates[row] for row in rows]
            count = self._store.templates.hand_over(others, vectors[rows], person_id)
            self._store.forget_people_without_templates()
            return count

    def forget_photo(self, photo: str | Path, photo_sha256: str | None = None) -> int:
        """Forget every face of a photo, named or unknown: vectors, crops and paths leave every file.

        People of whom no other photo is known are forgotten with it.

        Args:
            photo: Its path, as enrolled or as found from here; the file need not exist any more.
            photo_sha256: Its content hash, where it is known: finds copies under other paths too.

        Returns:
            How many templates and unknown faces were erased.
        """
        sources = list(dict.fromkeys([str(photo), str(Path(photo).resolve())]))
        self._index.require_nothing_lost()
        with self._changing(vectors=True, erases=True):
            return self._store.delete_photo(sources, photo_sha256)

    def change_photos(self, sha256_by_former: Mapping[str, str]) -> int:
        """Take notice of photos whose metadata was edited: their faces are of another content from now on.

        Args:
            sha256_by_former: New content hashes of photos by those of before. Where the gallery has faces of
                both, nothing is changed: they would be there twice.

        Returns:
            How many templates and unknown faces are of such photos.
        """
        with self._store.reading():
            has_faces_of = self._store.has_faces_of
            known = [
                former
                for former, now in sha256_by_former.items()
                if has_faces_of(former) and not has_faces_of(now)
            ]
        if not known:
            return 0
        with self._changing():
            return sum(self._store.change_photo(former, sha256_by_former[former]) for former in known)

    def crop(self, template_id: int) -> bytes | None:
        """Return the encoded picture of a template's face; None: it was not kept.

        Raises:
            GalleryError: There is no such template.
        """
        with self._store.reading():
            return self._store.templates.crop(template_id)

    def _faces_of(self, name: str) -> tuple[list[Template], FloatArray]:
        """A person's templates, oldest first, and their vectors float32 (n, d). Inside a transaction."""
        name = self._stored_name(name)
        return self._store.templates.of_person(self._store.people.id_of(name), name)

    def _unknown_faces_like(self, name: str) -> list[int]:
        """Ids of the unknown faces that would get this name by their distance alone. Inside a transaction."""
        unknown = self._store.unknown.all()
        if not unknown:
            return []
        person_id, vectors = self._person_id(name), self._faces_of(name)[1]
        standard_l2 = self._default_threshold(self._store.settings.threshold(), self._store.sizes) or 0.0
        own_l2 = self._store.people.threshold_of(person_id)
        threshold_l2 = standard_l2 if own_l2 is None else own_l2
        one_person, measure = np.zeros(1, np.int64), PersonDistance.NEAREST_OR_MEAN
        return [
            face.id
            for face in unknown
            if distances_to_people(face.embedding, vectors, one_person, measure)[0] <= threshold_l2
        ]
