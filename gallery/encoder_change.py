"""A gallery made anew for another encoder: the same people and faces, with the vectors of the other one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from facepipe.core.errors import GalleryError
from facepipe.core.faces import FloatArray
from facepipe.gallery.base import GalleryBase
from facepipe.gallery.models import EncoderIdentity, require_threshold, require_vectors
from facepipe.gallery.storage.face_table import FaceTable


@dataclass(frozen=True, slots=True, eq=False)
class NewVector:
    """What a face is to another encoder.

    Attributes:
        embedding: float32 (d,), unit length.
        crop: The face as that encoder takes it, where the kept one is another; None: the crop stays.
    """

    embedding: FloatArray
    crop: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncoderChange:
    """All that a gallery gets with another encoder; faces without a vector are erased.

    Attributes:
        encoder: The other encoder.
        state: Of the gallery that it was made for.
        templates: New vectors by template id.
        unknown: New vectors of the faces without a name, by their ids.
        threshold_l2: The gallery's own; None: it has none any more.
        person_thresholds_l2: By name; people who are not in it have none any more.
    """

    encoder: EncoderIdentity
    state: str
    templates: Mapping[int, NewVector]
    unknown: Mapping[int, NewVector] = field(default_factory=dict)
    threshold_l2: float | None = None
    person_thresholds_l2: Mapping[str, float] = field(default_factory=dict)

    def require_valid(self) -> None:
        """Check vectors and thresholds.

        Raises:
            GalleryError: A vector is not float32 of unit length and the encoder's dimensions.
            UsageError: A threshold is not within 0..2.
        """
        for new in (*self.templates.values(), *self.unknown.values()):
            require_vectors(new.embedding[None], self.encoder.dimensions, "embedding of the new encoder")
        own = () if self.threshold_l2 is None else (self.threshold_l2,)
        for threshold_l2 in (*own, *self.person_thresholds_l2.values()):
            require_threshold(threshold_l2)


class EncoderChangeMixin(GalleryBase):
    """Another encoder for a gallery."""

    def change_encoder(self, change: EncoderChange) -> int:
        """Give all faces the vectors of another encoder, under the same ids, in one transaction.

        Whoever kills it leaves the gallery as it was, or made anew. All who have it open, this object too,
        get a `GalleryError` afterwards: they open it again with the other encoder.

        Returns:
            How many faces were erased, since they have no new vector.

        Raises:
            GalleryError: The gallery was changed since, a row is damaged, a vector is of another form, or the
                gallery may not be written.
            UsageError: A threshold is not within 0..2.
        """
        change.require_valid()
        self._index.require_nothing_lost()
        with self._store.changing():
            if self._store.state() != change.state:
                raise GalleryError(
                    f"{self.path}: the gallery was changed while its faces were encoded; it stays as it was: "
                    "run it again"
                )
            self._index.forget_file()  # While its state is one of this gallery's.
            self._index.drop()
            erased = self._reencode(change)
            self._set_thresholds(change)
            self._store.encoder_rows.replace(change.encoder)
            self._index.remake()
        return erased

    def _reencode(self, change: EncoderChange) -> int:
        store = self._store
        without_template = _replaced(store.templates, change.templates)
        without_unknown = _replaced(store.unknown, change.unknown)
        store.templates.delete(without_template)
        store.forget_people_without_templates()
        store.unknown.delete(without_unknown)
        return len(without_template) + len(without_unknown)

    def _set_thresholds(self, change: EncoderChange) -> None:
        self._store.settings.set_threshold(change.threshold_l2)
        for person in self._store.people.all():
            new_l2 = change.person_thresholds_l2.get(person.name)
            if person.threshold_l2 != new_l2:
                self._store.people.set_threshold(person.name, new_l2)


def _replaced(table: FaceTable, vectors: Mapping[int, NewVector]) -> list[int]:
    """Replace the vectors of a table; returns the ids of the faces that have no new one."""
    ids = table.ids()
    table.reencode({id: (vectors[id].embedding, vectors[id].crop) for id in ids if id in vectors})
    return [id for id in ids if id not in vectors]
