"""The job: photos, their states and results. Killed processes lose seconds of it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from facepipe.batch.damage import JobBusyError, ReadOnlyJobError
from facepipe.batch.decision_table import DecisionTable
from facepipe.batch.face_ids import face_ids_from_text
from facepipe.batch.job_copy import copy_job_file
from facepipe.batch.job_faces import JobFaces
from facepipe.batch.job_file import JobFile
from facepipe.batch.job_groups import JobGroups
from facepipe.batch.job_outputs import JobOutputs
from facepipe.batch.job_schema import SHARD, WIPE_DUE, analyse_panoramas_again, note, note_shard
from facepipe.batch.job_writes import JobWrites
from facepipe.batch.models import Counts, FailedPhoto, PhotoAnalysis, PhotoRecord, PhotoTask
from facepipe.batch.planning import (
    NO_FILE,
    REMEMBERED_COLUMNS,
    Planner,
    Remembered,
    Taken,
    remembered_photo,
)
from facepipe.batch.rescue import open_job_file
from facepipe.batch.rows import (
    FACE_BYTES,
    faces_of,
    matches_of,
    matches_to_text,
)
from facepipe.batch.seal import Seal
from facepipe.batch.shards import Shard, parse_shard
from facepipe.core.errors import OutputError, UsageError
from facepipe.core.faces import Match
from facepipe.core.files import temporary_folder
from facepipe.detector import DetectorOptions
from facepipe.gallery.address import GalleryAddress, PostgresAddress, parse_address
from facepipe.pipeline import PhotoResult

_FORGET_ANALYSIS = """UPDATE photos SET state = 'waiting', sha256 = NULL, width = NULL, height = NULL,
    numbers = NULL, vectors = NULL, enrollable = NULL, reasons = NULL, matches = NULL, named_by = NULL,
    known = NULL, face_ids = NULL, taken_at = NULL WHERE id = ?"""
_DELETE_OUTPUTS = (
    "DELETE FROM pictures WHERE photo_id = ?",
    "DELETE FROM products WHERE photo_id = ?",
)
_PASSWORD_IS_NOT_KEPT = (
    "%s: the password in the gallery's URL is not kept: for the next commands on this batch put it into "
    "$PGPASSWORD, a password file (~/.pgpass) or a service file"
)

logger = logging.getLogger("facepipe")


class Job:
    """A folder's job file, held by one process at a time. Every change is one transaction.

    Args:
        folder: Holds the file.
        create: Whether a missing one is made, in a private folder: it holds embeddings of faces.
        secret: The key of an encrypted job; None: that of the environment (`FACEPIPE_GALLERY_KEY`).
        again: Begin a new one where it is damaged: all photos will be analyzed again.
        reading: Where another process works with it, take a copy, as it is now; it can't be changed.

    Attributes:
        outputs: The files written for results.
        decisions: What people decided about faces.
        faces: The faces of analyzed photos.
        groups: Of unknown faces.
        writes: Photos that names are being written into.

    Raises:
        UsageError: There is none, and none is to be made.
        DamagedJobError: It is not as it was written.
        JobBusyError: Another process works with it.
        OutputError: It can't be opened.
        GalleryError: It is encrypted, and the secret is not its key.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        secret: bytes | None = None,
        again: bool = False,
        reading: bool = False,
    ) -> None:
        self.folder, self._copies = folder, ExitStack()
        try:
            self.file = self._file = open_job_file(folder, create=create, secret=secret, again=again)
        except JobBusyError:
            if not reading:
                raise
            self.file = self._file = self._copied_file(secret)
        self._database, self._changing = self._file.database, self._file.changing
        self.outputs = JobOutputs(self._file)
        self.decisions = DecisionTable(self._database, lambda: self._file.seal)
        self.faces = JobFaces(self._file, self.decisions)
        self.groups = JobGroups(self._file)
        self.writes = JobWrites(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        try:
            self._file.close()
        finally:
            self._copies.close()

    @property
    def is_read_only(self) -> bool:
        """Whether another process works with the job, of which this is a copy."""
        return self._file.read_only_for is not None

    def require_writable(self) -> None:
        """Check that this is no copy.

        Raises:
            ReadOnlyJobError: It is one.
        """
        if self.is_read_only:
            raise ReadOnlyJobError(self.folder)

    def _copied_file(self, secret: bytes | None) -> JobFile:
        try:
            copy = self._copies.enter_context(temporary_folder(self.folder))
            copy_job_file(self.folder, copy)
            file = JobFile(copy, create=False, secret=secret)
        except OSError as error:
            self._copies.close()
            raise OutputError(
                f"{self.folder}: the job can't be copied to be read ({error.strerror})"
            ) from error
        except BaseException:
            self._copies.close()
            raise
        file.read_only_for = self.folder
        return file

    def require_encryption(self) -> bool:
        """Encrypt paths, names, embeddings and pictures, unless they are; no plain byte is left in the file.

        Returns:
            Whether they were not.

        Raises:
            GalleryError: There is no secret.
        """
        if self._seal.is_encrypting:
            return False
        self._file.encrypt()
        return True

    @property
    def _seal(self) -> Seal:
        return self._file.seal

    # What is to be done

    def require_settings(self, settings: dict[str, Any], *, again: bool) -> None:
        """Bind the job to what the analysis of a photo depends on.

        Args:
            settings: By name; values that JSON holds.
            again: Analyze all photos again, with these settings.

        Raises:
            UsageError: The job was begun with other settings; the message names them.
        """
        wanted = {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}
        with self._changing() as database:
            held = dict(database.execute("SELECT key, value FROM settings"))
            different = sorted(key for key in wanted if held.get(key) != wanted[key])
            if held.keys() & wanted.keys() and different and not again:
                settings_held = ", ".join(f"{key} {held.get(key)} (now {wanted[key]})" for key in different)
                raise UsageError(
                    f"{self.folder}: this job was begun with {settings_held}; use the same, or --again to "
                    "analyze all photos again, or another --out"
                )
            database.executemany("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", wanted.items())
            if again:
                database.execute("UPDATE photos SET state = 'waiting'")

    def setting(self, key: str) -> Any:
        """Return a setting that the analysis depends on; None: the job has no such setting."""
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    @property
    def shard(self) -> Shard | None:
        """Which share of all photos those of the command are; None: all."""
        text = self.setting(SHARD)
        return None if text is None else parse_shard(text)

    def remember_naming(self, gallery: GalleryAddress, naming: dict[str, Any]) -> None:
        """Remember which gallery names the faces, without its password, and how: values that JSON holds."""
        place = os.path.abspath(gallery) if isinstance(gallery, Path) else str(gallery)
        row = self._seal.seal("gallery", os.fsencode(place)), json.dumps(naming)
        if self._database.execute("SELECT gallery, naming FROM library").fetchone() != row:
            if isinstance(gallery, PostgresAddress) and gallery.has_password:
                logger.warning(_PASSWORD_IS_NOT_KEPT, self.folder)
            with self._changing() as database:
                database.execute("INSERT OR REPLACE INTO library (id, gallery, naming) VALUES (1, ?, ?)", row)

    def naming(self) -> tuple[GalleryAddress, dict[str, Any]] | None:
        """Return the gallery that names the faces, and how it does; None: a job of before that was kept."""
        row = self._database.execute("SELECT gallery, naming FROM library").fetchone()
        if row is None:
            return None
        return parse_address(os.fsdecode(self._seal.open("gallery", row[0]))), json.loads(row[1])

    def plan(
        self,
        photos: Iterable[Path],
        *,
        places: Iterable[int] | None = None,
        shard: Shard | None = None,
        retry_failed: bool = False,
    ) -> Taken:
        """Take these photos, in this order, for those of the command. What is new or changed waits.

        A photo has changed where its size has, or where its time has and its content too. One that was moved
        or renamed is known by its content. Photos that were taken before and are not among these stay
        remembered, and are left out of everything.

        Args:
            photos: Of the command.
            places: Of the photos in its order; None: 0, 1, 2 and so on.
            shard: The share of all photos that these are; None: all.
            retry_failed: Have photos wait that failed.
        """
        with self._changing() as database:
            analyse_panoramas_again(database)
            note_shard(database, None if shard is None else str(shard))
            taken = Planner(database, self._seal, self.folder).take_only(photos, places)
            if retry_failed:
                database.execute(
                    "UPDATE photos SET state = 'waiting' WHERE state = 'failed' AND place IS NOT NULL"
                )
            return taken

    def plan_more(self, photos: Iterable[Path]) -> None:
        """As `plan`, in addition to the photos taken before."""
        with self._changing() as database:
            Planner(database, self._seal, self.folder).take_more(photos)

    def leave_out(self, photos: Iterable[Path]) -> None:
        """Take these photos out of those of the command; they stay remembered."""
        with self._changing() as database:
            keys = [(self._seal.seal_path(photo),) for photo in photos]
            database.executemany("UPDATE photos SET place = NULL WHERE path = ?", keys)

    def waiting(self) -> list[PhotoTask]:
        """Return the photos to be analyzed, in the order of the command."""
        rows = self._database.execute(
            "SELECT id, path FROM photos WHERE place IS NOT NULL AND state = 'waiting' ORDER BY place"
        )
        return [PhotoTask(id, self._seal.open_path(path)) for id, path in rows]

    # Results

    def save(self, outcomes: Iterable[PhotoAnalysis | FailedPhoto], naming_key: str) -> None:
        """Remember what became of photos, in one transaction.

        Args:
            outcomes: Analyzes with their matches, and failures.
            naming_key: Identifies what the faces were named by.
        """
        with self._changing() as database:
            for outcome in outcomes:
                if isinstance(outcome, FailedPhoto):
                    database.execute("DELETE FROM pictures WHERE photo_id = ?", (outcome.task.id,))
                    self._save_failure(database, outcome)
                else:
                    self.faces.save(database, outcome, naming_key)

    def note_failures_reported(self) -> None:
        """Remember that the failures of the command were reported, with what was wrong."""
        with self._changing() as database:
            database.execute("UPDATE photos SET told = 1 WHERE place IS NOT NULL AND state = 'failed'")

    def records(self) -> Iterator[PhotoRecord]:
        """Yield the photos of the command that have been dealt with, in its order."""
        options = self._detector_options()
        rows = self._database.execute(
            """SELECT id, path, state, error, width, height, numbers, matches, face_ids FROM photos
            WHERE place IS NOT NULL AND state != 'waiting' ORDER BY place"""
        )
        for id, path, state, error, width, height, numbers, matches, ids in rows:
            photo = self._seal.open_path(path)
            if state == "failed":
                yield PhotoRecord(id, PhotoResult(photo, error=self._seal.open("error", error)), None)
                continue
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            faces = faces.with_ids(face_ids_from_text(self._seal.open("face_ids", ids)))
            scale = options.scale_of((width, height))
            yield PhotoRecord(id, PhotoResult(photo, faces=faces, scale=scale), (width, height))

    def photos(self) -> list[Path]:
        """Return all photos of the command, in its order."""
        rows = self._database.execute("SELECT path FROM photos WHERE place IS NOT NULL ORDER BY place")
        return [self._seal.open_path(path) for (path,) in rows]

    def counts(self) -> Counts:
        """Photos and faces of the command."""
        rows = self._database.execute(
            """SELECT state, count(*), total(length(numbers)), total(known), total(coalesce(told, 0) = 0)
            FROM photos WHERE place IS NOT NULL GROUP BY state"""
        ).fetchall()
        photos = {state: count for state, count, *_ in rows}
        waiting, done, failed = (photos.get(state, 0) for state in ("waiting", "done", "failed"))
        faces, known = next(
            ((int(size) // FACE_BYTES, int(known)) for state, _, size, known, _ in rows if state == "done"),
            (0, 0),
        )
        newly_failed = sum(int(new) for state, *_, new in rows if state == "failed")
        return Counts(waiting, done, failed, newly_failed, faces, known)

    # What is to be forgotten

    def remembered(self, *, left_out: bool = False) -> list[PhotoTask]:
        """Return all photos of the job, or those that are not among the command's."""
        where = " WHERE place IS NULL" if left_out else ""
        rows = self._database.execute(f"SELECT id, path FROM photos{where}").fetchall()
        return [PhotoTask(id, self._seal.open_path(path)) for id, path in rows]

    def remembered_photo(self, photo_id: int) -> Remembered:
        """Return a photo and its file as they were when it was taken."""
        row = self._database.execute(
            f"SELECT {REMEMBERED_COLUMNS} FROM photos WHERE id = ?", (photo_id,)
        ).fetchone()
        return remembered_photo(row, self._seal)

    def analyzed(self) -> Iterator[PhotoRecord]:
        """Yield all photos that were analyzed, whether they are among the command's and wait or not."""
        rows = self._database.execute(
            "SELECT id, path, width, height, numbers, matches FROM photos WHERE numbers IS NOT NULL"
        ).fetchall()
        for id, path, width, height, numbers, matches in rows:
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            yield PhotoRecord(id, PhotoResult(self._seal.open_path(path), faces=faces), (width, height))

    def erase(self, ids: Iterable[int], *, forget_photos: bool, names: Collection[str] = ()) -> None:
        """Erase the results of photos, and which files were written for them; no byte of it is left.

        What was decided about the faces of photos that are forgotten goes too, and all steps: they hold what
        there was before.

        Args:
            ids: Of the photos.
            forget_photos: The photos themselves too; else they wait to be analyzed again.
            names: That nobody next to a face is to have either; such faces are named again by the next run.
                What was decided about these people goes.
        """
        ids = list(ids)
        photo = "DELETE FROM photos WHERE id = ?" if forget_photos else _FORGET_ANALYSIS
        try:
            with self._changing() as database:
                self._erase_decisions(database, ids if forget_photos else (), names)
                for id in ids:
                    for statement in (photo, *_DELETE_OUTPUTS):
                        database.execute(statement, (id,))
                self._forget_runners_up(database, names)
                database.execute("DELETE FROM moves")  # a new path has the person's name
                note(database, WIPE_DUE)
        except BaseException:
            self.decisions.read()  # as they are in the file
            raise
        self._file.wipe()

    def _erase_decisions(
        self, database: sqlite3.Connection, photo_ids: Collection[int], names: Collection[str]
    ) -> None:
        """Forget what was decided about people, and about the faces of photos that have no copy elsewhere."""
        others = {self.faces.sha256(task.id) for task in self.remembered() if task.id not in photo_ids}
        gone = {self.faces.sha256(id) for id in photo_ids} - others
        forgotten = [stored.decision for stored in self.decisions if stored.decision.photo_sha256 in gone]
        for decision in forgotten:
            self.decisions.remove(decision.face_id)
        if names:
            self.decisions.forget_people(names)
            for name in names:
                database.execute("DELETE FROM people WHERE name = ?", (self._seal.seal("name", name),))
        if names or photo_ids:
            for table in ("steps", "face_groups"):
                database.execute(f"DELETE FROM {table}")

    def _forget_runners_up(self, database: sqlite3.Connection, names: Collection[str]) -> None:
        rows = database.execute("SELECT id, matches FROM photos WHERE matches IS NOT NULL").fetchall()
        for id, sealed in rows if names else ():
            matches = matches_of(self._seal.open("matches", sealed))
            if any(match.runner_up_name in names for match in matches):
                text = matches_to_text([_without_runner_up(match, names) for match in matches])
                row = self._seal.seal("matches", text), id
                database.execute("UPDATE photos SET matches = ?, named_by = 'without' WHERE id = ?", row)

    # Photos that are moved

    def begin_move(self, source: Path, target: Path) -> None:
        """Remember that a photo is being moved, so that a killed process is known to have left it halfway."""
        paths = self._seal.seal("paths", json.dumps([str(source), str(target)]))
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO moves (id, paths) VALUES (1, ?)", (paths,))

    def end_move(self) -> None:
        """Forget it: it was moved, or is where it was."""
        with self._changing() as database:
            database.execute("DELETE FROM moves")

    def unfinished_move(self) -> tuple[Path, Path] | None:
        """Return the old and the new path of a photo whose move has begun and not ended."""
        row = self._database.execute("SELECT paths FROM moves").fetchone()
        if row is None:
            return None
        source, target = json.loads(self._seal.open("paths", row[0]))
        return Path(source), Path(target)

    # Inside

    def _detector_options(self) -> DetectorOptions:
        """Those that decide how large photos are analyzed."""
        options = self.setting("detector options")
        return DetectorOptions() if options is None else DetectorOptions(max_side=options["max_side"])

    def _save_failure(self, database: sqlite3.Connection, failed: FailedPhoto) -> None:
        id, error = failed.task.id, self._seal.seal("error", failed.error)
        database.execute(_FORGET_ANALYSIS, (id,))
        database.execute(
            """UPDATE photos SET state = 'failed', told = coalesce(told, 0) AND error IS ?, error = ?
            WHERE id = ?""",
            (error, error, id),
        )
        if failed.is_temporary:
            database.execute("UPDATE photos SET size_bytes = ?, mtime_ns = ? WHERE id = ?", (*NO_FILE, id))


def _without_runner_up(match: Match, names: Collection[str]) -> Match:
    if match.runner_up_name not in names:
        return match
    return replace(match, runner_up_name=None, runner_up_distance_l2=None)
