"""A gallery: people, remembered by the vectors of their faces, and the names it gives to new faces."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import FloatArray, Match
from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.archive import read_archive
from facepipe.gallery.encoder_change import EncoderChangeMixin
from facepipe.gallery.matching import PersonAt, as_matches, doubts, others_than
from facepipe.gallery.models import EncoderIdentity, GalleryInfo, require_threshold, require_vectors
from facepipe.gallery.names import stored_name
from facepipe.gallery.opening import open_existing, open_store, store_in
from facepipe.gallery.people import PeopleMixin
from facepipe.gallery.ranking import (
    NearestPeople,
    PersonDistance,
    nearest_people,
    people_by_distance,
    rank_people,
)
from facepipe.gallery.search.views import NamingView
from facepipe.gallery.storage.encryption import KEY_VARIABLE, secret_of_environment
from facepipe.gallery.storage.schema import SCHEMA_VERSION
from facepipe.gallery.transfer import TransferMixin
from facepipe.gallery.unknown import UnknownFacesMixin

_Named = tuple[NearestPeople, npt.NDArray[np.float64], dict[int, str]]
"""The nearest people of n faces, the threshold of each face float64 (n,), and names by person id."""

logger = logging.getLogger("facepipe")


class Gallery(PeopleMixin, UnknownFacesMixin, TransferMixin, EncoderChangeMixin):
    """A folder with the truth in SQLite and an index derived from it, or a schema of a PostgreSQL database.

    Open it with `Gallery.open`.
    A change that has returned is on disk; a killed process loses nothing of it. Other processes may read and
    change the gallery at the same time. Threads may share one `Gallery`, forked processes too. Close it
    (or use it in `with`): closing saves the index, so that the next opening need not catch up.

    Attributes:
        path: The folder or the address of the database.
        encoder: Whose vectors it holds, with the default threshold.
        read_only: The file or its folder may not be written; changes raise `GalleryError`.
    """

    @classmethod
    def open(
        cls,
        path: str | Path | PostgresAddress,
        encoder: EncoderIdentity | None = None,
        *,
        create: bool = False,
        secret: bytes | None = None,
    ) -> Gallery:
        """Open the gallery at `path`.

        Args:
            path: A folder, or the URL of a PostgreSQL database: see `facepipe.gallery.address`.
            encoder: Whose vectors will be added or matched. None: to manage people only.
            create: Make an empty gallery, in a private folder or a schema of its own, where there is none;
                needs `encoder`.
            secret: The key of an encrypted gallery; None: that of the environment (`FACEPIPE_GALLERY_KEY`).
                A gallery made with a key is encrypted.

        Raises:
            GalleryError: There is no gallery, it can't be opened, it is damaged, of another encoder, or the
                key is not its own.
            MissingExtraError: It is in PostgreSQL, and the [postgres] extra is not installed.
        """
        address = parse_address(path)
        store = open_store(address, encoder, create, secret or secret_of_environment())
        try:
            gallery = cls(address, store, encoder)
            if encoder is not None:
                store.bind_to(encoder)
            if store.was_older:
                with store.changing():
                    gallery._index.forget_file()  # Of an older format.
            gallery._index.look_at_file()
        except BaseException:
            store.close()
            raise
        return gallery

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Save the index if it went ahead of its file, and close."""
        try:
            self._index.save()
        except GalleryError as error:  # The index can be made again; what was asked for is done.
            logger.warning("%s: the index could not be saved (%s); it can be made again", self.path, error)
        finally:
            self._index.drop()
            self._store.close()

    def info(self) -> GalleryInfo:
        """Return the gallery in figures."""
        with self._store.reading():
            generation, index_is_behind = self._store.generation(), self._index.is_file_behind()
            people, templates, unknown_faces = self._store.counts()
            threshold_l2 = self._store.settings.threshold()
        return GalleryInfo(
            path=self.path,
            encoder=self.encoder,
            schema_version=SCHEMA_VERSION,
            generation=generation,
            people=people,
            templates=templates,
            unknown_faces=unknown_faces,
            threshold_l2=threshold_l2,
            size_bytes=self._store.size_bytes() + self._index.size_bytes(),
            read_only=self.read_only,
            encrypted=self._store.is_encrypted,
            index_is_current=not templates or self._store.is_encrypted or not index_is_behind,
        )

    # Names for faces

    def match(
        self,
        embeddings: FloatArray,
        *,
        threshold_l2: float | None = None,
        min_margin_l2: float = 0.0,
        one_person_per_photo: bool = True,
        person_distance: PersonDistance = PersonDistance.NEAREST_OR_MEAN,
        photos: npt.ArrayLike | None = None,
    ) -> tuple[Match, ...]:
        """Name the faces of one photo, or of several at once.

        A face is only ever named its nearest person. With `one_person_per_photo`, a person wanted by several
        faces goes to the nearest of them and the others are unknown, although their distance is within the
        threshold. A face to which the next person is hardly farther is unsure and takes nobody's place.

        A person's own threshold goes before all others; then come `threshold_l2`, the gallery's, that at
        which 1% of strangers are named from a gallery of this size, where the encoder knows it (see
        `facepipe.gallery.calibration`), and the encoder's fixed one.

        Args:
            embeddings: float32 (n, d), unit length.
            threshold_l2: Largest Euclidean distance at which a face is named; None: the gallery's, or else
                the encoder's.
            min_margin_l2: By how much the next nearest person must be farther.
            one_person_per_photo: Whether a person is given to one face of a photo at most.
            person_distance: What the distance to a person is. Default thresholds are made for its default.
            photos: Which photo each face is in, integers (n,); None: all are in one.

        Returns:
            One answer a face.

        Raises:
            GalleryError: The vectors are not of that form, or the gallery is damaged.
            UsageError: The threshold is not within 0..2.
        """
        self._require_encoder()
        if threshold_l2 is not None:
            require_threshold(threshold_l2)
        require_threshold(min_margin_l2)
        require_vectors(embeddings, self.encoder.dimensions, "embeddings to match")

        def nearest_in(view: NamingView) -> _Named:
            nearest = rank_people(view, embeddings, person_distance)
            standard_l2 = self._default_threshold_of(view) if threshold_l2 is None else threshold_l2
            names, own_l2 = view.names_and_thresholds_of(nearest.people)
            limits_l2 = np.array([own_l2.get(id, standard_l2 or 0.0) for id in nearest.first.tolist()])
            return nearest, limits_l2, names

        nearest, thresholds_l2, names = self._index.answer(nearest_in)
        reasons = doubts(nearest, thresholds_l2, min_margin_l2, one_person_per_photo, photos)
        return as_matches(nearest, reasons, thresholds_l2, names)

    def nearest_others(self, name: str, embeddings: FloatArray) -> list[PersonAt | None]:
        """Of each vector, float32 (n, d), the nearest person who is not `name`, by the nearest template."""
        require_vectors(embeddings, self.encoder.dimensions, "embeddings to compare")

        def others_in(view: NamingView) -> list[PersonAt | None]:
            nearest = nearest_people(view.index, view.directory, embeddings)
            return others_than(stored_name(name, view.has), nearest, view.names_of(nearest.people))

        return self._index.answer(others_in)

    def search(
        self,
        embeddings: FloatArray,
        count: int,
        person_distance: PersonDistance = PersonDistance.NEAREST_OR_MEAN,
    ) -> list[list[PersonAt]]:
        """Of each vector, float32 (n, d), the nearest people, at most `count`, however far they are."""
        require_vectors(embeddings, self.encoder.dimensions, "embeddings to search")

        def people_in(view: NamingView) -> list[list[PersonAt]]:
            index, directory = view.index, view.directory
            found = [people_by_distance(index, directory, one, count, person_distance) for one in embeddings]
            names = view.names_of({id for people in found for id, _ in people})
            return [[PersonAt(names[id], l2) for id, l2 in people] for people in found]

        return self._index.answer(people_in)

    # Encryption

    def encrypt(self, secret: bytes) -> None:
        """Encrypt names, paths, vectors and crops with a key from `secret`; no plain byte is left in a file.

        All of it in one transaction: whoever kills it leaves the gallery as it was, or encrypted. Other
        processes that have it open must open it again.

        Raises:
            GalleryError: It is encrypted already, or may not be written.
            MissingExtraError: The library for it is not installed.
        """
        if self._store.is_encrypted:
            raise GalleryError(f"{self.path}: the gallery is encrypted already: decrypt it to change the key")
        self._convert(secret)

    def decrypt(self) -> None:
        """Undo `encrypt`.

        Raises:
            GalleryError: It is not encrypted, or may not be written.
        """
        if not self._store.is_encrypted:
            raise GalleryError(f"{self.path}: the gallery is not encrypted")
        self._convert(None)

    def _convert(self, secret: bytes | None) -> None:
        self._index.require_nothing_lost()
        with self._changing(erases=True):
            self._store.convert(secret)
            self._index.forget_file()
            self._index.is_due = True  # Whoever decrypts a gallery closes it with an index.

    def rebuild_index(self) -> None:
        """Throw the index away and make it again."""
        self._index.rebuild()


def import_archive(path: str | Path | PostgresAddress, file: str | Path, encoder: EncoderIdentity) -> int:
    """Add everybody in an archive to the gallery in `path`, which is made where there is none.

    Returns:
        How many templates were new.

    Raises:
        GalleryError: As for `Gallery.import_archive`; then no gallery is made.
    """
    contents = read_archive(Path(file), encoder)
    with Gallery.open(path, encoder, create=True) as gallery:
        return gallery.add_contents(contents)


def encrypt(path: str | Path | PostgresAddress, secret: bytes | None) -> None:
    """Encrypt the gallery in `path`, as `Gallery.encrypt` does.

    Raises:
        UsageError: There is no secret.
    """
    if not secret:
        raise UsageError(f"encrypting needs a key: --key-file FILE, or ${KEY_VARIABLE}")
    address = parse_address(path)
    store = store_in(open_existing(address), address)
    try:
        Gallery(address, store, None).encrypt(secret)
    finally:
        store.close()
