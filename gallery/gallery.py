"""A gallery: people, remembered by the vectors of their faces, and the names it gives to new faces."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import FloatArray, Match
from facepipe.core.files import make_private_folder
from facepipe.gallery.archive import read_archive, write_archive
from facepipe.gallery.index_sync import INDEX_FILE, DerivedIndex
from facepipe.gallery.lost_faces import LostFaces, as_unknown
from facepipe.gallery.matching import (
    PersonAt,
    PersonDistance,
    as_matches,
    doubts,
    nearest_people,
    others_than,
    rank_people,
)
from facepipe.gallery.models import (
    Contents,
    EncoderIdentity,
    GalleryInfo,
    NewTemplate,
    Person,
    Template,
    UnknownFace,
    require_threshold,
    require_vectors,
)
from facepipe.gallery.names import clean_name, lookalike_key, lookalike_sentence, lookalikes
from facepipe.gallery.storage.encryption import KEY_VARIABLE, secret_of_environment
from facepipe.gallery.storage.schema import SCHEMA_VERSION
from facepipe.gallery.storage.store import Store

STORE_FILE = "gallery.sqlite3"

logger = logging.getLogger("facepipe")


class Gallery:
    """A folder with the truth in SQLite and an index derived from it. Open it with `Gallery.open`.

    A change that has returned is on disk; a killed process loses nothing of it. Other processes may read and
    change the gallery at the same time. Threads may share one `Gallery`, forked processes too. Close it
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
        self._index = DerivedIndex(path, store)
        self._people_counted = (-1, 0)  # At which generation, and how many.

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: EncoderIdentity | None = None,
        *,
        create: bool = False,
        secret: bytes | None = None,
    ) -> Gallery:
        """Open the gallery in folder `path`.

        Args:
            path: The folder.
            encoder: Whose vectors will be added or matched. None: to manage people only.
            create: Make an empty gallery, in a private folder, where there is none; needs `encoder`.
            secret: The key of an encrypted gallery; None: that of the environment (`FACEPIPE_GALLERY_KEY`).
                A gallery made with a key is encrypted.

        Raises:
            GalleryError: There is no gallery, it can't be opened, it is damaged, of another encoder, or the
                key is not its own.
        """
        path = Path(path)
        file = path / STORE_FILE
        secret = secret or secret_of_environment()
        try:
            if not file.exists():
                _create(path, file, encoder if create else None, secret)
        except OSError as error:
            raise GalleryError(f"{path}: no gallery can be opened there ({error.strerror})") from error
        store = Store(file, secret)
        try:
            if create:
                store.require_no_unused_key()
            elif store.has_unused_key:
                logger.warning(
                    "%s: a key is given, but the gallery is not encrypted (`gallery encrypt`)", path
                )
            _require_same_encoder(path, store, encoder)
            gallery = cls(path, store, encoder)
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

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """All that is read inside is of one state, whoever writes meanwhile.

        Threads that share the gallery wait. Nothing can be changed inside.
        """
        with self._store.reading():
            yield

    # People

    def add(self, name: str, templates: Sequence[NewTemplate]) -> list[int]:
        """Remember faces of a person, who need not be known yet.

        The same face of the same photo (`photo_sha256`) is stored once a person; without a photo's hash, the
        very same vector is. So enrolling again changes nothing. Whether a new name looks like another's is
        answered by `people_like`, before.

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
            self._index.is_due = True
            return self._store.add(name, templates)

    def people(self) -> list[Person]:
        """Everybody, by name."""
        with self._store.reading():
            people = self._store.people()
        return sorted(people, key=lambda person: (person.name.casefold(), person.name))

    def knows(self, name: str) -> bool:
        """Whether somebody has this name."""
        with self._store.reading():
            return self._store.has_person(self._stored_name(name))

    def people_like(self, name: str) -> list[str]:
        """Others whose names people can't tell from this one, sorted: see `lookalike_key`."""
        name = clean_name(name)
        key = lookalike_key(name)
        with self._store.reading():
            names = self._store.names()
        return sorted(other for other in names if other != name and lookalike_key(other) == key)

    def templates(self, name: str) -> list[Template]:
        """A person's templates, oldest first.

        Raises:
            GalleryError: Nobody has this name.
        """
        with self._store.reading():
            return self._store.templates(self._stored_name(name))[0]

    def vectors(self, name: str) -> FloatArray:
        """The vectors of a person's templates, float32 (n, d) in the order of `templates`."""
        with self._store.reading():
            return self._store.templates(self._stored_name(name))[1]

    def has_photo(self, photo_sha256: str, name: str | None = None) -> bool:
        """Whether a face of this photo is stored already, of anybody or of the person `name`."""
        with self._store.reading():
            return self._store.has_photo(photo_sha256, None if name is None else self._stored_name(name))

    def rename(self, old: str, new: str) -> None:
        """Give a person another name.

        Raises:
            GalleryError: Nobody is named `old`, or somebody is named `new`.
        """
        new = clean_name(new)
        with self._warning_of_lookalikes(), self._store.changing():
            self._store.rename(self._stored_name(old), new)
        self._store.wipe_deleted()

    def merge(self, source: str, into: str) -> int:
        """Make one person of two: `into` gets the templates of `source`, who is forgotten; answers how many.

        Raises:
            GalleryError: One of them is not known, or both are the same.
        """
        with self._store.changing():
            source, into = self._stored_name(source), self._stored_name(into)
            if source == into:
                raise GalleryError(f"{source!r} can't be merged into the same person")
            self._index.is_due = True
            count = self._store.merge(source, into)
        self._index.erase_removed()
        self._store.wipe_deleted()
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
        with self._store.changing():
            self._index.is_due = True
            unknown_within_l2 = self._default_threshold(self._store.counts()[1]) or 0.0
            count = self._store.remove(self._stored_name(name), unknown_within_l2)
        self._index.erase_removed()
        self._store.wipe_deleted()
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
        with self._store.changing():
            self._index.is_due = True
            count = self._store.remove_photo(sources, photo_sha256)
        self._index.erase_removed()
        self._store.wipe_deleted()
        return count

    def _stored_name(self, name: str) -> str:
        """A name as its person has it: earlier versions stored names with invisible characters.

        Inside a transaction.
        """
        cleaned = clean_name(name)
        return name if name != cleaned and self._store.has_person(name) else cleaned

    @contextmanager
    def _warning_of_lookalikes(self) -> Iterator[None]:
        """Warn of names that came into the gallery inside and can't be told from others."""
        with self._store.reading():
            before = set(self._store.names())
        yield
        with self._store.reading():
            after = set(self._store.names())
        for names in lookalikes(after) if after - before else []:
            if not before.issuperset(names):
                logger.warning("%s: similar_name: %s", self.path, lookalike_sentence(names))

    def crop(self, template_id: int) -> bytes | None:
        """The encoded picture of a template's face; None: it was not kept.

        Raises:
            GalleryError: There is no such template.
        """
        with self._store.reading():
            return self._store.crop("templates", template_id)

    # Thresholds

    @property
    def threshold_l2(self) -> float | None:
        """The gallery's own largest distance at which a face is named; None: the encoder's applies."""
        with self._store.reading():
            return self._store.threshold()

    def set_threshold(self, threshold_l2: float | None) -> None:
        """Give the gallery its own threshold; None: take it away.

        Raises:
            UsageError: It is not within 0..2.
        """
        if threshold_l2 is not None:
            require_threshold(threshold_l2)
        with self._store.changing():
            self._store.set_threshold(threshold_l2)

    def set_person_threshold(self, name: str, threshold_l2: float | None) -> None:
        """Give a person their own threshold, which goes before the gallery's; None: take it away.

        Raises:
            GalleryError: Nobody has this name.
            UsageError: The threshold is not within 0..2.
        """
        if threshold_l2 is not None:
            require_threshold(threshold_l2)
        with self._store.changing():
            self._store.set_person_threshold(self._stored_name(name), threshold_l2)

    # Unknown faces

    def remember_unknown(self, faces: Sequence[NewTemplate]) -> list[int]:
        """Remember faces without a name, to be grouped and named later; they never name anybody.

        The same face of the same photo is stored once.

        Returns:
            Ids of the newly stored faces, in order; fewer than `faces` where some were stored before.

        Raises:
            GalleryError: As for `add`.
        """
        self._require_encoder()
        for face in faces:
            require_vectors(face.embedding[None], self.encoder.dimensions, "embedding of an unknown face")
        with self._store.changing():
            return self._store.add_unknown(faces)

    def unknown_faces(self) -> list[UnknownFace]:
        """All faces remembered without a name, oldest first, with their vectors."""
        with self._store.reading():
            return self._store.unknown_faces()

    def unknown_crop(self, unknown_id: int) -> bytes | None:
        """The encoded picture of an unknown face; None: it was not kept.

        Raises:
            GalleryError: There is no such unknown face.
        """
        with self._store.reading():
            return self._store.crop("unknown_faces", unknown_id)

    def forget_unknown(self, ids: Sequence[int]) -> None:
        """Erase unknown faces: all of `ids` or, where one is not there, none.

        Raises:
            GalleryError: There is no unknown face of one of these ids.
        """
        with self._store.changing():
            self._store.remove_unknown(ids)
        self._store.wipe_deleted()

    def enroll_unknown(self, ids: Sequence[int], name: str) -> list[int]:
        """Make unknown faces templates of a person, who need not be known yet, in one transaction.

        Returns:
            Ids of the new templates; fewer than `ids` where the person had some of the faces already.

        Raises:
            GalleryError: There is no unknown face of one of these ids (nothing is changed), or the name is
                not to be used.
        """
        name = clean_name(name)
        if not ids:
            raise GalleryError(f"no faces given to remember of {name!r}")
        with self._warning_of_lookalikes(), self._store.changing():
            self._index.is_due = True
            return self._store.enroll_unknown(ids, name)

    @property
    def state(self) -> str:
        """Names what the gallery holds now: another after every change, also of a copy of the gallery."""
        with self._store.reading():
            return self._store.state()

    def info(self) -> GalleryInfo:
        """The gallery in figures."""
        with self._store.reading():
            generation, index_is_behind = self._store.generation(), self._index.is_file_behind()
            people, templates, unknown_faces = self._store.counts()
            threshold_l2 = self._store.threshold()
        files = [*self.path.glob(f"{STORE_FILE}*"), *self.path.glob(f"{INDEX_FILE}*")]
        return GalleryInfo(
            path=self.path,
            encoder=self.encoder,
            schema_version=SCHEMA_VERSION,
            generation=generation,
            people=people,
            templates=templates,
            unknown_faces=unknown_faces,
            threshold_l2=threshold_l2,
            size_bytes=sum(file.stat().st_size for file in files),
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
    ) -> tuple[Match, ...]:
        """Name the faces of one photo.

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
            one_person_per_photo: False where the faces are of different photos.
            person_distance: What the distance to a person is. Default thresholds are made for its default.

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
        with self._store.reading():
            index = self._index.current()
            nearest = rank_people(index, self._store, embeddings, person_distance)
            standard_l2 = self._default_threshold(len(index)) if threshold_l2 is None else threshold_l2
            standard_l2 = standard_l2 or 0.0
            own_l2 = self._store.thresholds_of(nearest.people)
            names = self._store.names_of(nearest.people)
        thresholds_l2 = np.array([own_l2.get(int(person), standard_l2) for person in nearest.first])
        reasons = doubts(nearest, thresholds_l2, min_margin_l2, one_person_per_photo)
        return as_matches(nearest, reasons, thresholds_l2, names)

    def nearest_others(self, name: str, embeddings: FloatArray) -> list[PersonAt | None]:
        """Of each vector, float32 (n, d), the nearest person who is not `name`, by the nearest template."""
        require_vectors(embeddings, self.encoder.dimensions, "embeddings to compare")
        with self._store.reading():
            nearest = nearest_people(self._index.current(), self._store, embeddings)
            names = self._store.names_of(nearest.people)
            name = self._stored_name(name)
        return others_than(name, nearest, names)

    @property
    def default_threshold_l2(self) -> float | None:
        """What `match` takes for people without a threshold of their own; None: none was set or measured."""
        with self._store.reading():
            return self._default_threshold(len(self._index.current()))  # SQLite counts row by row.

    def _default_threshold(self, templates: int) -> float | None:
        """Inside a transaction."""
        own_l2 = self._store.threshold()
        if own_l2 is not None:
            return own_l2
        return self.encoder.default_threshold_l2(templates, self._people_count()) or None

    def _people_count(self) -> int:
        """Inside a transaction; SQLite counts row by row, so only after a change."""
        generation = self._store.generation()
        if self._people_counted[0] != generation:
            self._people_counted = (generation, self._store.counts()[0])
        return self._people_counted[1]

    # Archives

    def export_archive(self, file: str | Path) -> None:
        """Write everybody to one zip of JSON and safetensors (see `facepipe.gallery.archive`), atomically.

        Raises:
            GalleryError: The file can't be written, or lies inside the gallery's folder.
        """
        file = Path(file)
        self._require_outside(file)
        with self._store.reading():
            contents = self._store.contents()
        write_archive(file, self.encoder, contents)

    def import_archive(self, file: str | Path) -> int:
        """Add everybody in an archive, in one transaction; answers how many templates were new.

        People of the same name are taken as the same person. Thresholds are taken over for new people, and
        for the gallery where it was empty.

        Raises:
            GalleryError: The archive is not to be trusted, or of another encoder; nothing is changed.
        """
        return self.add_contents(read_archive(Path(file), self.encoder))

    def add_contents(self, contents: Contents) -> int:
        """Add what an archive or another gallery holds, in one transaction; answers how many were new."""
        with self._warning_of_lookalikes(), self._store.changing():
            self._index.is_due = True
            return self._store.add_contents(contents)

    def merge_from(self, other: str | Path, secret: bytes | None = None) -> int:
        """Add everybody of another gallery, as `import_archive` does; answers how many templates were new.

        Args:
            other: Its folder; no byte in it is changed, not even where it is of an older schema.
            secret: Its key, where it is encrypted; None: that of the environment.

        Raises:
            GalleryError: It can't be read or holds vectors of another encoder; nothing is changed.
        """
        other = Path(other)
        _require_gallery(other)
        source = Store(other / STORE_FILE, secret or secret_of_environment(), scratch=self.path)
        try:
            _require_same_encoder(other, source, self.encoder)
            with source.reading():
                contents = source.contents()
        finally:
            source.close()
        return self.add_contents(contents)

    def backup(self, folder: str | Path) -> None:
        """Copy the present state to a gallery of its own, while other processes read and write.

        Args:
            folder: Where there is no gallery yet; made private where it does not exist.

        Raises:
            GalleryError: It can't be written, holds a gallery, or lies inside this one.
        """
        folder = Path(folder)
        self._require_outside(folder)
        if (folder / STORE_FILE).exists():
            raise GalleryError(f"{folder}: holds a gallery already: give the backup a folder of its own")
        _make_folder(folder)
        self._store.backup(folder / STORE_FILE)

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
        with self._store.changing():
            self._store.convert(secret)
            self._index.forget_file()
        self._index.is_due = True  # Whoever decrypts a gallery closes it with an index.
        self._store.wipe_deleted()

    def bring_back(self, lost: Sequence[LostFaces]) -> int:
        """Remember lost faces as unknown ones; answers how many were not there already."""
        faces = as_unknown(lost)
        with self._store.changing():
            return len(self._store.add_unknown(faces))

    def rebuild_index(self) -> None:
        """Throw the index away and make it again."""
        self._index.rebuild()

    def _require_outside(self, target: Path) -> None:
        if target.resolve().is_relative_to(self.path.resolve()):
            raise GalleryError(f"{target}: archives and backups can't be kept in the gallery's own folder")

    def _require_encoder(self) -> None:
        if not self._takes_vectors:
            raise GalleryError(f"{self.path}: open the gallery with an encoder to add or match faces")


def import_archive(path: str | Path, file: str | Path, encoder: EncoderIdentity) -> int:
    """Add everybody in an archive to the gallery in `path`, which is made where there is none.

    Returns:
        How many templates were new.

    Raises:
        GalleryError: As for `Gallery.import_archive`; then no gallery is made.
    """
    contents = read_archive(Path(file), encoder)
    with Gallery.open(path, encoder, create=True) as gallery:
        return gallery.add_contents(contents)


def encrypt(path: str | Path, secret: bytes | None) -> None:
    """Encrypt the gallery in `path`, as `Gallery.encrypt` does.

    Raises:
        UsageError: There is no secret.
    """
    if not secret:
        raise UsageError(f"encrypting needs a key: --key-file FILE, or ${KEY_VARIABLE}")
    path = Path(path)
    _require_gallery(path)
    store = Store(path / STORE_FILE)
    try:
        Gallery(path, store, None).encrypt(secret)
    finally:
        store.close()


def _require_gallery(path: Path) -> None:
    if not (path / STORE_FILE).exists():
        raise GalleryError(f"{path}: there is no gallery: make one with `facepipe enroll`")


def _create(path: Path, file: Path, encoder: EncoderIdentity | None, secret: bytes | None) -> None:
    if path.exists() and not path.is_dir():
        raise GalleryError(f"{path}: a gallery is a folder, this is a file")
    if encoder is None:
        raise GalleryError(f"{path}: there is no gallery: make one with `facepipe enroll`")
    _make_folder(path)
    Store.create(file, encoder, secret)


def _require_same_encoder(path: Path, store: Store, encoder: EncoderIdentity | None) -> None:
    if encoder is not None and not encoder.makes_same_vectors_as(store.encoder):
        store.require_whole_encoder()
        go_on = f"go on with --encoder-weights {store.encoder.name}"
        if store.encoder.name == encoder.name:  # which were trained further since
            go_on = "go on with the version of facepipe that made it"
        raise GalleryError(
            f"{path}: this gallery holds vectors of {store.encoder}, which can't be compared with those "
            f"of {encoder}: {go_on}, or enroll the photos again into another gallery"
        )


def _make_folder(path: Path) -> None:
    try:
        make_private_folder(path)
    except OSError as error:
        raise GalleryError(f"{path}: the folder can't be made ({error.strerror})") from error
