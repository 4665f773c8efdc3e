"""The index of a gallery, kept in step with the truth: in memory, and in a file that may always be lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from facepipe.core.errors import GalleryError
from facepipe.core.files import remove_dead_temporaries, size_bytes
from facepipe.gallery.files import make_folder_aside, remove_left_over
from facepipe.gallery.index.file import (
    DamagedIndexError,
    OldIndexError,
    VectorState,
    claimed_state,
    delete_index,
    erase_rows,
    is_unfinished,
    move_index,
    record_file,
    saved_record,
)
from facepipe.gallery.index.vectors import VectorIndex, is_far_behind
from facepipe.gallery.lost_faces import (
    LostFaces,
    keep_lost,
    keep_unreadable,
    lost_faces,
    lost_files,
    missing_from,
)
from facepipe.gallery.search.followed_owners import FollowedOwners
from facepipe.gallery.search.views import Answer, NamingView, StoreView
from facepipe.gallery.storage.errors import BusyDatabaseError
from facepipe.gallery.storage.store import Store

INDEX_FILE = "index.faiss"
_SAVING_WAITS_S = 1.0
"""For other writers; an index that is not saved is caught up by the next opening."""

logger = logging.getLogger("facepipe")


def derived_files(folder: Path) -> list[Path]:
    """Return the files of a gallery that an index or lost faces may be in."""
    return [path for file in (folder / INDEX_FILE, *lost_files(folder)) for path in (file, record_file(file))]


class DerivedIndex:
    """The one index of an open gallery.

    Args:
        folder: The gallery's.
        store: Its truth.

    Attributes:
        is_due: Something was read or changed, so that the file may have to be written at the end.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._file = folder, folder / INDEX_FILE
        self._store = store
        self._owners = FollowedOwners(store)
        self._view = StoreView(store, self.current, self._owners.current)
        self._index: VectorIndex | None = None
        self.is_due = False
        self._file_is_damaged = False
        self._file_was_behind = False
        # A file that is missing, or older than this, is news; 0: there need not be one.
        self._expected_generation = 0 if store.is_encrypted else store.opened_state.generation

    def answer(self, read: Callable[[NamingView], Answer]) -> Answer:
        """Return what `read` makes of one state of the gallery, read in a transaction."""
        with self._store.reading():
            return read(self._view)

    def current(self) -> VectorIndex:
        """Return the index of the present vectors. Inside a transaction."""
        state = self._store.vector_state()
        self.is_due = True
        if self._index is None:
            self._index = self._load()
            # Whatever its state: a file that rows were erased from need not hold the newest.
            self._catch_up(self._index, state)
        elif self._index.state != state:
            self._catch_up(self._index, state)
        return self._index

    def size_bytes(self) -> int:
        """Bytes of the file and the record beside it."""
        return sum(map(size_bytes, self._folder.glob(f"{INDEX_FILE}*")))

    def drop(self) -> None:
        """Free the memory; what was not saved is made again when it is wanted."""
        self._index, self.is_due = None, False
        self._owners.drop()

    def save(self) -> None:
        """Write the file if the index went ahead of it. Outside of any transaction."""
        if self._store.read_only or self._store.is_encrypted or not self.is_due:
            return
        with self._store.reading():
            if not self.is_file_behind():
                return
            self.current().settle()  # Takes seconds where it is large, and nobody need wait for that.
        with (  # Changes nothing, but keeps other processes from changing meanwhile.
            suppress(BusyDatabaseError),
            self._store.changing(_SAVING_WAITS_S),
        ):
            self._keep_before_overwriting()
            self.current().save(self._file)

    def rebuild(self) -> None:
        """Throw the index away and make it again. Outside of any transaction."""
        with self._store.changing():
            self.forget_file()
        self._index, self.is_due = None, True
        self.save()

    def forget_file(self) -> None:
        """Delete the file.

        Inside a changing transaction: files are saved under the same lock, so none comes back.
        """
        self._keep_before_overwriting()
        remove_dead_temporaries(self._file.parent)
        delete_index(self._file)
        self._expected_generation = 0

    def remake(self) -> None:
        """Nothing: the next use makes the index again."""

    def is_file_behind(self) -> bool:
        """Return whether the file can't be used, or so much is missing from it that opening it takes long.

        Inside a transaction.
        """
        saved = saved_record(self._file)
        if saved is None or self._file_is_damaged or not self._store.went_through(saved.state):
            return True
        added = self._store.count_after(saved.last_id)
        return is_far_behind(saved, added, len(self._store.removed_after(saved.state.generation)))

    def look_at_file(self) -> None:
        """On opening: is it behind or ahead; and do what a process killed while removing could not any more.

        An index ahead of the truth proves that faces were lost; what it holds of them is kept, and every
        opening warns of it.
        """
        if not self._store.read_only:
            remove_left_over(self._folder)
        with self._store.reading():
            self._file_was_behind = self.is_file_behind()
            state = claimed_state(self._file)
            is_known = state is None or self._store.went_through(state)
            removed = self._store.removed_after(state.generation) if state and is_known else ()
        if self._store.read_only:
            if not is_known:
                self._tell_of_unknown_state()
        elif not is_known:
            # Where others write, or rows are damaged, the file stays as it is: saving tries this first, too.
            with suppress(GalleryError), self._store.changing(wait_s=0):
                self._keep_lost()
        elif is_unfinished(self._file):
            with suppress(BusyDatabaseError), self._store.changing(wait_s=0):  # Else it is being written.
                if is_unfinished(self._file):
                    delete_index(self._file)
                    self._expected_generation = 0
        elif len(removed):
            with suppress(BusyDatabaseError):  # The next opening does it.
                self.erase_removed(wait_s=0)
        for lost in lost_faces(self._folder, self._store.encoder.dimensions):
            logger.warning("%s", lost)

    def require_nothing_lost(self) -> None:
        """Refuse to erase a person or to encrypt while vectors of unknown people are kept beside.

        Outside of any transaction.

        Raises:
            GalleryError: Lost faces were not brought back yet.
        """
        with self._store.changing():
            self._keep_lost()
        for lost in lost_faces(self._folder, self._store.encoder.dimensions):
            raise GalleryError(
                f"{lost.file}: holds faces that the gallery lost, of whoever: bring them back first with "
                "`facepipe gallery repair`, or delete the file; nothing was changed"
            )

    def _keep_lost(self) -> bool:
        """Keep what a file that is ahead of the truth knows of lost faces, and delete the file.

        Inside a changing transaction: no process brings such a file about meanwhile.

        Returns:
            Whether what is there now is of another gallery.
        """
        state = claimed_state(self._file)
        if state is None or self._store.is_encrypted or self._store.went_through(state):
            return False
        try:
            index = VectorIndex.load(self._file, self._store.encoder.dimensions)
        except (DamagedIndexError, FileNotFoundError):
            keep_unreadable(self._file, state, self._folder)
        else:
            ids, is_ours = missing_from(self._store, index)
            if not len(ids) or not is_ours:
                return not is_ours
            keep_lost(index, ids, self._folder)
            delete_index(self._file)
        self._expected_generation = 0
        return False

    def _keep_before_overwriting(self) -> None:
        """Inside a changing transaction. A file of another gallery is put beside the gallery's folder."""
        if self._keep_lost():
            aside = make_folder_aside(self._folder, "damaged")
            move_index(self._file, aside / self._file.name)
            logger.warning("%s: the index belonged to another gallery; it is kept in %s", self._file, aside)

    def _tell_of_unknown_state(self) -> None:
        """Where nothing can be kept because nothing may be written."""
        with suppress(DamagedIndexError, FileNotFoundError), self._store.reading():
            index = VectorIndex.load(self._file, self._store.encoder.dimensions)
            ids, is_ours = missing_from(self._store, index)
            if len(ids) and is_ours:
                logger.warning("%s", LostFaces(self._file, ids, index.vectors_of(ids)))

    def erase_removed(self, wait_s: float | None = None) -> None:
        """Overwrite in the file what was removed; where that can't be done, the file is deleted.

        In a transaction of its own: files are saved under the same lock, so none brings vectors back.
        `wait_s` is how long to wait for other writers, as in `Home.writing`.
        """
        with self._store.changing(wait_s):
            self._keep_before_overwriting()
            remove_dead_temporaries(self._file.parent)
            saved = saved_record(self._file)
            try:
                if saved is None or not self._store.went_through(saved.state):
                    raise DamagedIndexError("is not of this gallery")
                removed = self._store.removed_after(saved.state.generation)
                erase_rows(self._file, removed, self._store.vector_state())
            except (DamagedIndexError, OSError):
                delete_index(self._file)
                self._expected_generation = 0

    def _load(self) -> VectorIndex:
        """Return the saved index if it can be trusted, else an empty one, with a warning."""
        dimensions = self._store.encoder.dimensions
        try:
            index = VectorIndex.load(self._file, dimensions)
        except FileNotFoundError:
            if self._expected_generation:
                self._say("is missing; it is made again")
            return VectorIndex(dimensions)
        except OldIndexError:
            return VectorIndex(dimensions)
        except DamagedIndexError as error:
            self._file_is_damaged = True
            self._say(f"is damaged ({error}); it is made again")
            return VectorIndex(dimensions)
        if not self._store.went_through(index.state):
            self._say("is of another state of the gallery; it is made again")
            return VectorIndex(dimensions)
        if self._expected_generation and self._file_was_behind:
            self._say("is out of date; it is brought up to date")
        return index

    def _catch_up(self, index: VectorIndex, state: VectorState) -> None:
        """Read what was added and removed since: an id means the same vector for ever, and new ones rise."""
        index.remove(self._store.removed_after(index.state.generation))
        for ids, vectors in self._store.vectors_after(index.last_id):
            index.add(ids, vectors)
        index.state = state

    def _say(self, what: str) -> None:
        logger.warning("%s: the index %s from the database", self._file, what)
