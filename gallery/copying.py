"""A gallery copied to another place, exactly: with the numbers, times and pictures of its faces.

Rows go over in transactions of some hundreds. What a killed copy has left is no gallery to others: its
settings say so (`Settings.copied_from`), and the next copy from the same place goes on after the last row.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from facepipe.core.counting import counted
from facepipe.core.errors import GalleryError, UsageError
from facepipe.gallery.address import GalleryAddress, PostgresAddress, parse_address
from facepipe.gallery.gallery import Gallery
from facepipe.gallery.opening import open_store
from facepipe.gallery.storage.encryption import secret_of_environment
from facepipe.gallery.storage.store import Store
from facepipe.gallery.storage.whole_rows import WHOLE_TABLES, WholeRow

_ROWS_AT_ONCE = 500
_RUN_BYTES = 8

logger = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class GalleryCopy:
    """What a copy holds.

    Attributes:
        people: Number of people.
        templates: Number of their faces.
        unknown_faces: Number of faces without a name.
    """

    people: int
    templates: int
    unknown_faces: int


def copy_gallery(
    source: str | Path | PostgresAddress,
    target: str | Path | PostgresAddress,
    *,
    secret: bytes | None = None,
    target_secret: bytes | None = None,
) -> GalleryCopy:
    """Copy everything to a place where there is no gallery, or an empty one.

    The source is read in one state, whoever changes it meanwhile. A copy that was killed is gone on with, or
    begun again where the source has changed since. Where the target holds the same already, nothing is done.

    Args:
        source: Folder or PostgreSQL URL of the gallery.
        target: Folder or URL of the copy.
        secret: The key of an encrypted source; None: that of the environment.
        target_secret: The copy is encrypted with it; None: with `secret`.

    Raises:
        GalleryError: The source can't be read or is damaged, or the target holds another gallery or can't be
            written.
        UsageError: Both are the same place.
    """
    source, target = parse_address(source), parse_address(target)
    secret = secret or secret_of_environment()
    _require_apart(source, target)
    with (
        _opened(open_store(source, None, False, secret)) as original,
        original.reading(),
        _opened(open_store(target, original.encoder, True, target_secret or secret, for_copy=True)) as copy,
    ):
        with copy.reading():
            if copy.state() == original.state():
                raise UsageError(f"{target}: this is the gallery itself: give the copy a place of its own")
        is_there = _is_copied(original, copy)
        if not is_there:
            _Copier(original, copy, target).run()
        done = GalleryCopy(*original.counts())
        is_encrypted = copy.is_encrypted
    if isinstance(target, Path) and not is_there and not is_encrypted:
        with Gallery.open(target) as gallery:
            gallery.rebuild_index()
    return done


@contextmanager
def _opened(store: Store) -> Iterator[Store]:
    try:
        yield store
    finally:
        store.close()


def _require_apart(source: GalleryAddress, target: GalleryAddress) -> None:
    if source == target:
        raise UsageError(f"{target}: this is the gallery itself: give the copy a place of its own")
    if (
        isinstance(source, Path)
        and isinstance(target, Path)
        and target.resolve().is_relative_to(source.resolve())
    ):
        raise UsageError(f"{target}: a copy can't be kept in the gallery's own folder")


def _is_copied(original: Store, copy: Store) -> bool:
    """Return whether a whole gallery in the place of the copy is the same; inside `original.reading()`."""
    with copy.reading():
        if copy.settings.copied_from() is not None or not any(copy.counts()):
            return False
        return (
            original.encoder == copy.encoder
            and original.counts() == copy.counts()
            and original.settings.threshold() == copy.settings.threshold()
            and all(
                one == other
                for table in WHOLE_TABLES
                for one, other in zip_longest(_rows_of(original, table), _rows_of(copy, table))
            )
        )


def _rows_of(store: Store, table: str, after: int = 0) -> Iterator[WholeRow]:
    while rows := store.whole.after(table, after, _ROWS_AT_ONCE):
        yield from rows
        after = rows[-1][0]


class _Copier:
    """One run of a copy, inside `original.reading()`.

    Args:
        original: The source.
        copy: The target.
        target: Where that is, for messages.
    """

    def __init__(self, original: Store, copy: Store, target: GalleryAddress) -> None:
        self._original, self._copy, self._target = original, copy, target
        self._state = original.state().encode()
        self._mark = self._state + b" " + secrets.token_hex(_RUN_BYTES).encode()

    def run(self) -> None:
        """Copy what the target does not have yet."""
        self._begin()
        for table in WHOLE_TABLES:
            with self._copy.reading():
                last = self._copy.whole.largest_id(table)
            while rows := self._original.whole.after(table, last, _ROWS_AT_ONCE):
                with self._copy.changing():
                    self._require_mine()
                    self._copy.whole.add(table, rows)
                last = rows[-1][0]
        self._finish()

    def _begin(self) -> None:
        people, templates, unknown = self._original.counts()
        with self._copy.changing():
            before = self._copy.settings.copied_from()
            if before is None and any(self._copy.counts()):
                raise GalleryError(
                    f"{self._target}: holds another gallery: give the copy a place of its own, or take both "
                    "together with `facepipe gallery merge-from`"
                )
            if before is None:
                is_new = not any(self._copy.whole.last_ids().values())
                if not is_new or self._copy.encoder != self._original.encoder:
                    self._forget_before()
            elif before.split(b" ")[0] == self._state:
                logger.info("%s: going on with the copy", self._target)
            else:
                logger.info("%s: the gallery has changed since: its copy begins again", self._target)
                self._copy.whole.delete_all()
                self._forget_before()
            self._copy.settings.set_copied_from(self._mark)
        logger.info(
            "%s: %s of %s and %s to be copied",
            self._target,
            counted(templates, "face"),
            counted(people, "person"),
            counted(unknown, "unknown face"),
        )

    def _forget_before(self) -> None:
        """Take the original's encoder; ids of before mean nothing any more, in indexes neither."""
        self._copy.encoder_rows.replace(self._original.encoder)
        self._copy.vector_state()  # known from now on

    def _require_mine(self) -> None:
        if self._copy.settings.copied_from() != self._mark:
            raise GalleryError(f"{self._target}: another process copies into this gallery; it goes on alone")

    def _finish(self) -> None:
        with self._copy.changing():
            self._require_mine()
            if self._copy.counts() != self._original.counts():
                raise GalleryError(
                    f"{self._target}: another process has changed the copy while it was made: remove it and "
                    "copy again"
                )
            self._copy.settings.set_threshold(self._original.settings.threshold())
            self._copy.whole.raise_last_ids(self._original.whole.last_ids())
            self._copy.settings.set_copied_from(None)
