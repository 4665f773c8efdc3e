"""Which photos of a command are new, changed, moved, or as the job remembers them."""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from facepipe.batch.output_files import PICTURE_KINDS, names_of, remove_pictures
from facepipe.batch.seal import Seal
from facepipe.core.errors import PhotoError
from facepipe.images.reading import photo_sha256


class FileState(NamedTuple):
    """Size and time of a file: where both are the same, so is its content.

    Attributes:
        size_bytes: -1 where there is no such file, or where it is to be read again in any case.
        mtime_ns: Nanoseconds since 1970, wrapped into the signed 64 bits of an SQLite integer: those end in
            2262, file systems do not.
    """

    size_bytes: int
    mtime_ns: int


NO_FILE = FileState(-1, -1)
REMEMBERED_COLUMNS = "id, path, size_bytes, mtime_ns, state, sha256"


@dataclass(frozen=True, slots=True)
class Remembered:
    """A photo in the job file.

    Attributes:
        id: Its row.
        path: Where it was.
        file: The file as it was then.
        is_done: Whether it was analyzed.
        sha256: Of its content, where they are.
    """

    id: int
    path: Path
    file: FileState
    is_done: bool
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Taken:
    """How many photos a command has moved and left out.

    Attributes:
        moved: Photos whose content was analyzed under another path.
        left_out: Photos of the last command that are not among those of this one.
    """

    moved: int
    left_out: int


def file_state(path: Path) -> FileState:
    """Return the file as it is now; `NO_FILE` where it can't be found or asked about."""
    try:
        status = path.stat()
    except OSError:
        return NO_FILE
    return FileState(status.st_size, _wrapped(status.st_mtime_ns))


def is_unchanged(photo: Remembered, now: FileState) -> bool:
    """Whether a photo whose file is `now` has the content it had; read only where its time alone differs."""
    if photo.file == now:
        return True
    return photo.is_done and photo.file.size_bytes == now.size_bytes and _content(photo.path) == photo.sha256


def is_replaced(photo: Remembered) -> bool:
    """Whether there is another photo in the place of the one that was analyzed.

    It is read only where its size or time differs, or it waits to be analyzed again.

    Raises:
        PhotoError: It can't be read.
    """
    now = file_state(photo.path)
    if now == NO_FILE or (photo.is_done and now == photo.file):
        return False
    return photo_sha256(photo.path) != photo.sha256


def require_unchanged(photo: Remembered) -> None:
    """Check that a photo is the one that was analyzed, or gone; read only as in `is_replaced`.

    Raises:
        PhotoError: It is another one by now, or can't be read.
    """
    if is_replaced(photo):
        raise _changed(photo.path)


def require_content(path: Path, sha256: str | None) -> None:
    """Check that a photo has the content that was analyzed.

    Raises:
        PhotoError: It has another, or can't be read.
    """
    if photo_sha256(path) != sha256:
        raise _changed(path)


def _changed(path: Path) -> PhotoError:
    return PhotoError(f"{path}: it has changed since it was analyzed; run `facepipe batch` again")


def moved_photos(files: Mapping[Path, FileState], remembered: Iterable[Remembered]) -> dict[Path, Remembered]:
    """Files whose content was analyzed at another path that has it no more; one path at most for each photo.

    A file is read only where its size is that of such a photo.

    Args:
        files: New or changed files.
        remembered: Photos that are not known to be where they were.
    """
    gone = _gone({file.size_bytes for file in files.values()}, remembered)
    moved = {}
    for path, file in files.items():
        if file.size_bytes in gone:
            same = gone[file.size_bytes].get(_content(path))
            if same:
                moved[path] = same.pop(0)
    return moved


def remembered_photo(row: Sequence[Any], seal: Seal) -> Remembered:
    """Return the photo of a row of `REMEMBERED_COLUMNS`."""
    id, path, size, time_ns, state, sha256 = row
    file, is_done = FileState(size, time_ns), state == "done"
    return Remembered(id, seal.open_path(path), file, is_done, seal.open("sha256", sha256))


class Planner:
    """Gives photos their places in the tables of a job, inside of one transaction.

    Args:
        database: In a transaction.
        seal: Of the job.
        folder: Of the job.
    """

    def __init__(self, database: sqlite3.Connection, seal: Seal, folder: Path) -> None:
        self._database, self._seal, self._folder = database, seal, folder

    def take_only(self, photos: Iterable[Path], places: Iterable[int] | None = None) -> Taken:
        """Take these photos for those of the command, and no others.

        Args:
            photos: In the order of the command.
            places: Of each; None: 0, 1, 2 and so on.
        """
        before = self._placed()
        self._database.execute("UPDATE photos SET place = NULL")
        moved = self._take(photos, count() if places is None else places)
        return Taken(moved, len(before - self._placed()))

    def take_more(self, photos: Iterable[Path]) -> None:
        """Take photos in addition to those of the command."""
        (last,) = self._database.execute("SELECT coalesce(max(place), -1) FROM photos").fetchone()
        self._take(photos, count(last + 1))

    def _take(self, photos: Iterable[Path], places: Iterable[int]) -> int:
        """Answers how many were moved to where they are."""
        place_of: dict[Path, int] = {}
        for photo, place in zip(photos, places, strict=False):  # places may go on for ever
            place_of.setdefault(Path(os.path.abspath(photo)), place)
        files = {path: file_state(path) for path in place_of}
        remembered = {photo.path: photo for photo in self._remembered()}
        unchanged = {
            path for path in files.keys() & remembered.keys() if is_unchanged(remembered[path], files[path])
        }
        moved = moved_photos(
            {path: file for path, file in files.items() if path not in unchanged},
            [photo for path, photo in remembered.items() if path not in unchanged],
        )
        ids = self._move(moved, {path: photo.id for path, photo in remembered.items()})
        for path, file in files.items():
            if path not in ids:
                self._add(path, place_of[path], file)
            else:
                self._place(ids[path], place_of[path], file, is_known=path in unchanged or path in moved)
        return len(moved)

    def _remembered(self) -> Iterator[Remembered]:
        for row in self._database.execute(f"SELECT {REMEMBERED_COLUMNS} FROM photos"):
            yield remembered_photo(row, self._seal)

    def _placed(self) -> set[int]:
        return {id for (id,) in self._database.execute("SELECT id FROM photos WHERE place IS NOT NULL")}

    def _add(self, path: Path, place: int, file: FileState) -> None:
        self._database.execute(
            "INSERT INTO photos (path, place, size_bytes, mtime_ns, state) VALUES (?, ?, ?, ?, 'waiting')",
            (self._seal.seal_path(path), place, *file),
        )

    def _place(self, id: int, place: int, file: FileState, *, is_known: bool) -> None:
        """Where its content is not known, it waits, and an error of another content is a new one."""
        if not is_known:
            self._database.execute(
                """UPDATE photos SET state = 'waiting', told = CASE WHEN size_bytes < 0 THEN told ELSE 0 END
                WHERE id = ?""",
                (id,),
            )
        self._database.execute("UPDATE photos SET place = ? WHERE id = ?", (place, id))
        self._database.execute(
            """UPDATE photos SET size_bytes = ?, mtime_ns = ?
            WHERE id = ? AND (size_bytes, mtime_ns) != (?, ?)""",
            (*file, id, *file),
        )

    def _move(self, moved: Mapping[Path, Remembered], ids: Mapping[Path, int]) -> dict[Path, int]:
        """Give rows their new paths; answers the ids by path as they then are. Photos may change places."""
        moving = {photo.id for photo in moved.values()}
        overwritten = {ids[path] for path in moved.keys() & ids.keys()} - moving
        for id in moving | overwritten:
            self._forget_outputs(id)
        for id in overwritten:
            self._database.execute("DELETE FROM pictures WHERE photo_id = ?", (id,))
            self._database.execute("DELETE FROM photos WHERE id = ?", (id,))
        for id in moving:  # a path that no file has, so that none is taken twice on the way
            self._rename(id, b"\0%d" % id)
        for path, photo in moved.items():
            self._rename(photo.id, self._seal.seal_path(path))
        stayed = {path: id for path, id in ids.items() if id not in moving | overwritten}
        return stayed | {path: photo.id for path, photo in moved.items()}

    def _rename(self, id: int, stored_path: bytes) -> None:
        self._database.execute("UPDATE photos SET path = ? WHERE id = ?", (stored_path, id))

    def _forget_outputs(self, photo_id: int) -> None:
        """Pictures in the job's own folder go, and are made anew; a sidecar beside a photo stays."""
        rows = self._database.execute("SELECT kind, files FROM products WHERE photo_id = ?", (photo_id,))
        for kind, files in rows.fetchall():
            if kind in PICTURE_KINDS:
                remove_pictures(self._folder, kind, names_of(self._seal.open("files", files)))
        self._database.execute("DELETE FROM products WHERE photo_id = ?", (photo_id,))


def _gone(sizes: set[int], remembered: Iterable[Remembered]) -> dict[int, dict[str | None, list[Remembered]]]:
    """By size and content, the photos of these sizes that are no longer at their paths."""
    gone: dict[int, dict[str | None, list[Remembered]]] = {}
    for photo in remembered:
        if photo.is_done and photo.file.size_bytes in sizes and file_state(photo.path) != photo.file:
            gone.setdefault(photo.file.size_bytes, defaultdict(list))[photo.sha256].append(photo)
    return gone


def _content(path: Path) -> str | None:
    try:
        return photo_sha256(path)
    except PhotoError:
        return None


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
