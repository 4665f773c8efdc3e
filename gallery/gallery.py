"""A gallery: people, remembered by the vectors of their faces, and the names it gives to new faces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from facepipe.errors import GalleryError
from facepipe.faces import FloatArray, Match
from gallery.archive import read_archive, write_archive
from gallery.files import PRIVATE_FOLDER_MODE
from gallery.index import DamagedIndexError, VectorIndex, VectorState, saved_state
from gallery.matching import Directory, accepted_faces, as_matches, nearest_people
from gallery.records import (
    EncoderIdentity,
    GalleryInfo,
    NewTemplate,
    Person,
    Template,
    clean_name,
    require_threshold,
    require_vectors,
)
from gallery.store import SCHEMA_VERSION, Store

STORE_FILE = "gallery.sqlite3"
INDEX_FILE = "index.faiss"
INDEX_TEMPORARY_FILE = "index.faiss.tmp"

logger = logging.getLogger("facepipe")


class Gallery:
    """A folder with the truth in SQLite and an index derived from it. Open it with `Gallery.open`.

    A change that has returned is on disk; a killed process loses nothing of it. Other processes may read and
    change the gallery at the same time. Threads may share one `Gallery`; forked processes may not. Close it
    (or use it in `with`): closing saves the index, so that the next opening need not catch up.

    Attributes:
        path: The folder.
        encoder: Whose vectors it holds, with the default threshold.
        read_only: The file or its folder may not be written; changes raise `GalleryError`.
    """

    def __init__(self, path: Path, store: Store, encoder: EncoderIdentity | None) -> None:
        self.path = path
        self.encoder = encoder or store.encoder
        self.read_only = store.read_only
        self._store = store
        self._takes_vectors = encoder is not None
        self._index: VectorIndex | None = None
        self._index_is_due = False
        self._index_file_is_damaged = False
        self._directory: Directory | None = None
        # An index file that is missing, or older than this, is news; 0: there need not be one.
        self._expected_generation = store.opened_state.generation

    @classmethod
    def open(
        cls, path: str | Path, encoder: EncoderIdentity | None = None, *, create: bool = False
    ) -> Gallery:
        """Open the gallery in folder `path`.

        Args:
            path: The folder.
            encoder: Whose vectors will be added or matched. None: to manage people only.
            create: Make an empty gallery, in a private folder, where there is none; needs `encoder`.

        Raises:
            GalleryError: There is no gallery, it can't be opened, it is damaged, or of another encoder.
        """
        path = Path(path)
        file = path / STORE_FILE
        try:
            if not file.exists():
                _create(path, file, encoder if create else None)
        except OSError as error:
            raise GalleryError(f"{path}: no gallery can be opened there ({error.strerror})") from error
        store = Store(file)
        if encoder is not None and not encoder.makes_same_vectors_as(store.encoder):
            store.close()
            raise GalleryError(
                f"{path}: this gallery holds vectors of {store.encoder}, which can't be compared with those "
                f"of {encoder}: use the gallery's encoder, or enroll the photos again into another gallery"
            )
        return cls(path, store, encoder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Save the index if it went ahead of its file, and close."""
        try:
            self._save_index()
        except GalleryError as error:  # The index can be made again; what was asked for is done.
            logger.warning("%s: the index could not be saved (%s); it can be made again", self.path, error)
        finally:
            self._index, self._index_is_due = None, False
            self._store.close()

    # People

    def add(self, name: str, templates: Sequence[NewTemplate]) -> list[int]:
        """Remember faces of a person, who need not be known yet.

        The same face of the same photo (`photo_sha256`) is stored once a person; without a photo's hash, the
        very same vector is. So enrolling again changes nothing.

        Returns:
            Ids of the newly stored templates, in order; fewer than `templates` where some were stored before.

        Raises:
            GalleryError: The name is empty, a vector is not float32 of unit length and the gallery's
                dimensions, or the gallery may not be written.
        """
        self._require_encoder()
        name = clean_name(name)
        if not templates:
            raise GalleryError(f"no faces given to remember of {name!r}")
        for template in templates:
            require_vectors(template.embedding[None], self.encoder.dimensions, f"embedding of {name!r}")
        with self._store.changing():
            self._index_is_due = True
            return self._store.add(name, templates)

    def people(self) -> list[Person]:
        """Everybody, by name."""
        with self._store.reading():
            people = self._store.people()
        return sorted(people, key=lambda person: (person.name.casefold(), person.name))

    def templates(self, name: str) -> list[Template]:
        """A person's templates, oldest first.

        Raises:
            GalleryError: Nobody has this name.
        """
        with self._store.reading():
            return self._store.templates(clean_name(name))[0]

    def vectors(self, name: str) -> FloatArray:
        """The vectors of a person's templates, float32 (n, d) in the order of `templates`."""
        with self._store.reading():
            return self._store.templates(clean_name(name))[1]

    def has_photo(self, photo_sha256: str, name: str | None = None) -> bool:
        """Whether a face of this photo is stored already, of anybody or of the person `name`."""
        with self._store.reading():
            return self._store.has_photo(photo_sha256, None if name is None else clean_name(name))

    def rename(self, old: str, new: str) -> None:
        """Give a person another name.

        Raises:
            GalleryError: Nobody is named `old`, or somebody is named `new`.
        """
        old, new = clean_name(old), clean_name(new)
        with self._store.changing():
            self._store.rename(old, new)
        self._store.wipe_deleted()

    def merge(self, source: str, into: str) -> int:
        """Make one person of two: `into` gets the templates of `source`, who is forgotten; answers how many.

        Raises:
            GalleryError: One of them is not known, or both are the same.
        """
        source, into = clean_name(source), clean_name(into)
        if source == into:
            raise GalleryError(f"{source!r} can't be merged into the same person")
        with self._store.changing():
            self._index_is_due = True
            count = self._store.merge(source, into)
        self._store.wipe_deleted()
        return count

    def remove(self, name: str) -> int:
        """Forget a person: name, vectors and paths leave every file of the gallery.

        Returns:
            How many templates were erased.

        Raises:
            GalleryError: Nobody has this name.
        """
        name = clean_name(name)
        with self._store.changing():
            self._index_is_due = True
            count = self._store.remove(name)
            # Inside the transaction: index files are saved under the same lock, so no other process can
            # bring the erased vectors back.
            for derived in (INDEX_FILE, INDEX_TEMPORARY_FILE):
                (self.path / derived).unlink(missing_ok=True)
        self._expected_generation = 0
        self._store.wipe_deleted()
        return count

    def info(self) -> GalleryInfo:
        """The gallery in figures."""
        with self._store.reading():
            generation, state = self._store.generation(), self._store.vector_state()
            people, templates = self._store.counts()
        files = [*self.path.glob(f"{STORE_FILE}*"), *self.path.glob(f"{INDEX_FILE}*")]
        return GalleryInfo(
            path=self.path,
            encoder=self.encoder,
            schema_version=SCHEMA_VERSION,
            generation=generation,
            people=people,
            templates=templates,
            size_bytes=sum(file.stat().st_size for file in files),
            read_only=self.read_only,
            index_is_current=not templates or saved_state(self.path / INDEX_FILE) == state,
        )

    # Names for faces

    def match(
        self,
        embeddings: FloatArray,
        *,
        threshold_l2: float | None = None,
        min_margin_l2: float = 0.0,
        one_person_per_photo: bool = True,
    ) -> tuple[Match, ...]:
        """Name the faces of one photo.

        The distance to a person is that to the nearest template. A face is only ever named its nearest
        person. With `one_person_per_photo`, a person wanted by several faces goes to the nearest of them
        and the others are unknown, although their distance is within the threshold.

        Args:
            embeddings: float32 (n, d), unit length.
            threshold_l2: Largest Euclidean distance at which a face is named; None: the encoder's.
            min_margin_l2: By how much the next nearest person must be farther.
            one_person_per_photo: False where the faces are of different photos.

        Returns:
            One answer a face.

        Raises:
            GalleryError: The vectors are not of that form, or the gallery is damaged.
            UsageError: The threshold is negative or not finite.
        """
        self._require_encoder()
        threshold_l2 = self.encoder.threshold_l2 if threshold_l2 is None else threshold_l2
        require_threshold(threshold_l2)
        require_threshold(min_margin_l2)
        require_vectors(embeddings, self.encoder.dimensions, "embeddings to match")
        with self._store.reading():
            directory = self._current_directory()
            index = self._current_index(directory)
            nearest = nearest_people(index, directory, embeddings)
        accepted = accepted_faces(nearest, threshold_l2, min_margin_l2, one_person_per_photo)
        return as_matches(nearest, accepted, threshold_l2, directory.names)

    # Archives

    def export_archive(self, file: str | Path) -> None:
        """Write everybody to one zip of JSON and safetensors (see `gallery.archive`), atomically.

        Raises:
            GalleryError: The file can't be written, or lies inside the gallery's folder.
        """
        file = Path(file)
        if file.resolve().is_relative_to(self.path.resolve()):
            raise GalleryError(f"{file}: an archive can't be kept inside the gallery's own folder")
        with self._store.reading():
            people = [(person.name, *self._store.templates(person.name)) for person in self._store.people()]
        write_archive(file, self.encoder, people)

    def import_archive(self, file: str | Path) -> int:
        """Add everybody in an archive, in one transaction; answers how many templates were new.

        People of the same name are taken as the same person.

        Raises:
            GalleryError: The archive is not to be trusted, or of another encoder; nothing is changed.
        """
        people = read_archive(Path(file), self.encoder)
        with self._store.changing():
            self._index_is_due = True
            return sum(len(self._store.add(name, templates)) for name, templates in people.items())

    # The index, kept in step with the truth; all inside a transaction

    def _current_index(self, directory: Directory) -> VectorIndex:
        state = self._store.vector_state()
        self._index_is_due = True
        if self._index is None:
            self._index = self._load_index()
        if self._index.state != state:
            self._catch_up(self._index, directory, state)
        return self._index

    def _load_index(self) -> VectorIndex:
        """The saved index if it can be trusted, else an empty one; says what is wrong."""
        dimensions = self.encoder.dimensions
        try:
            index = VectorIndex.load(self.path / INDEX_FILE, dimensions)
        except FileNotFoundError:
            if self._expected_generation:
                self._say("is missing; it is made again")
            return VectorIndex(dimensions)
        except DamagedIndexError as error:
            self._index_file_is_damaged = True
            self._say(f"is damaged ({error}); it is made again")
            return VectorIndex(dimensions)
        if not self._store.went_through(index.state):
            self._say("belongs to another gallery; it is made again")
            return VectorIndex(dimensions)
        if index.state.generation < self._expected_generation:
            self._say("is out of date; it is brought up to date")
        return index

    def _say(self, what: str) -> None:
        logger.warning("%s: the index %s; nothing is lost", self.path / INDEX_FILE, what)

    def _catch_up(self, index: VectorIndex, directory: Directory, state: VectorState) -> None:
        """Add and remove what differs: an id means the same vector for ever."""
        wanted, held = directory.template_ids, index.ids
        index.remove(np.setdiff1d(held, wanted))
        for ids, vectors in self._store.vectors(np.setdiff1d(wanted, held)):
            index.add(ids, vectors)
        index.state = state

    def _current_directory(self) -> Directory:
        generation = self._store.generation()
        if self._directory is None or self._directory.generation != generation:
            self._directory = Directory(generation, *self._store.template_people(), self._store.names())
        return self._directory

    def _save_index(self) -> None:
        if self.read_only or not self._index_is_due:
            return
        file = self.path / INDEX_FILE
        with self._store.reading():
            if saved_state(file) == self._store.vector_state() and not self._index_file_is_damaged:
                return
        with self._store.changing():  # Changes nothing, but keeps other processes from changing meanwhile.
            index = self._current_index(self._current_directory())
            index.save(file, self.path / INDEX_TEMPORARY_FILE)

    def _require_encoder(self) -> None:
        if not self._takes_vectors:
            raise GalleryError(f"{self.path}: open the gallery with an encoder to add or match faces")


def _create(path: Path, file: Path, encoder: EncoderIdentity | None) -> None:
    if path.exists() and not path.is_dir():
        raise GalleryError(f"{path}: a gallery is a folder, this is a file")
    if encoder is None:
        raise GalleryError(f"{path}: there is no gallery: make one with `facepipe enroll`")
    path.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    Store.create(file, encoder)
