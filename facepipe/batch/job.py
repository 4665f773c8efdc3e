"""The job: photos, their states and results. Killed processes lose seconds of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from facepipe.batch.job_file import open_job_file
from facepipe.batch.job_outputs import JobOutputs
from facepipe.batch.job_schema import WIPE_DUE, analyse_panoramas_again, note
from facepipe.batch.models import Counts, FailedPhoto, PhotoAnalysis, PhotoRecord, PhotoTask, UnknownFaceRow
from facepipe.batch.planning import NO_FILE, Planner, Taken
from facepipe.batch.rows import (
    FACE_BYTES,
    embeddings_of,
    face_bytes,
    faces_of,
    known_count,
    matches_of,
    matches_to_text,
    reasons_of,
    reasons_to_text,
    unknown_rows_of,
)
from facepipe.batch.seal import Seal
from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, Match
from facepipe.detector import DetectorOptions
from facepipe.pipeline import PhotoResult
from facepipe.quality import accepted_rows
from facepipe.quality_rules import Reason

_FORGET_ANALYSIS = """UPDATE photos SET state = 'waiting', sha256 = NULL, width = NULL, height = NULL,
    numbers = NULL, vectors = NULL, enrollable = NULL, reasons = NULL, matches = NULL, named_by = NULL,
    known = NULL WHERE id = ?"""
_DELETE_OUTPUTS = (
    "DELETE FROM pictures WHERE photo_id = ?",
    "DELETE FROM products WHERE photo_id = ?",
)


class Job:
    """A folder's job file, held by one process at a time. Every change is one transaction.

    Args:
        folder: Holds the file.
        create: Whether a missing one is made, in a private folder: it holds embeddings of faces.
        secret: The key of an encrypted job; None: that of the environment (`FACEPIPE_GALLERY_KEY`).
        again: Begin a new one where it is damaged: all photos will be analyzed again.

    Attributes:
        outputs: The files written for results.

    Raises:
        UsageError: There is none, and none is to be made.
        DamagedJobError: It is not as it was written.
        OutputError: It can't be opened, or another process works with it.
        GalleryError: It is encrypted, and the secret is not its key.
    """

    def __init__(
        self, folder: Path, *, create: bool = False, secret: bytes | None = None, again: bool = False
    ) -> None:
        self.folder = folder
        self._file = open_job_file(folder, create=create, secret=secret, again=again)
        self._database, self._changing = self._file.database, self._file.changing
        self.outputs = JobOutputs(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        self._file.close()

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

    def plan(self, photos: Iterable[Path], *, retry_failed: bool = False) -> Taken:
        """Take these photos, in this order, for those of the command. What is new or changed waits.

        A photo has changed where its size has, or where its time has and its content too. One that was moved
        or renamed is known by its content. Photos that were taken before and are not among these stay
        remembered, and are left out of everything.
        """
        with self._changing() as database:
            analyse_panoramas_again(database)
            taken = Planner(database, self._seal, self.folder).take_only(photos)
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
                database.execute("DELETE FROM pictures WHERE photo_id = ?", (outcome.task.id,))
                if isinstance(outcome, FailedPhoto):
                    self._save_failure(database, outcome)
                else:
                    self._save_analysis(database, outcome, naming_key)

    def note_failures_reported(self) -> None:
        """Remember that the failures of the command were reported, with what was wrong."""
        with self._changing() as database:
            database.execute("UPDATE photos SET told = 1 WHERE place IS NOT NULL AND state = 'failed'")

    def name_again(
        self,
        name: Callable[[Faces, Sequence[Reason | None]], Sequence[Match]],
        naming_key: str,
        dimensions: int,
    ) -> int:
        """Match the faces again of photos that other settings or another state of the gallery named.

        Nothing is read but the job file. In transactions of some hundred photos: what a killed process has
        named stays named.

        Returns:
            How many photos were named again.
        """
        rows = self._database.execute(
            "SELECT id FROM photos WHERE place IS NOT NULL AND state = 'done' AND named_by != ?",
            (naming_key,),
        ).fetchall()
        for at in range(0, len(rows), 512):
            with self._changing() as database:
                for (id,) in rows[at : at + 512]:
                    columns = "numbers, vectors, reasons"
                    row = database.execute(f"SELECT {columns} FROM photos WHERE id = ?", (id,)).fetchone()
                    reasons = reasons_of(row[2])
                    embeddings = embeddings_of(self._seal.open("vectors", row[1]), dimensions)
                    faces = faces_of(row[0]).with_embeddings(embeddings, accepted_rows(reasons))
                    matches = name(faces, reasons)
                    text = self._seal.seal("matches", matches_to_text(matches))
                    database.execute(
                        "UPDATE photos SET matches = ?, named_by = ?, known = ? WHERE id = ?",
                        (text, naming_key, known_count(matches), id),
                    )
        return len(rows)

    def records(self) -> Iterator[PhotoRecord]:
        """Yield the photos of the command that have been dealt with, in its order."""
        options = self._detector_options()
        rows = self._database.execute(
            """SELECT id, path, state, error, width, height, numbers, matches FROM photos
            WHERE place IS NOT NULL AND state != 'waiting' ORDER BY place"""
        )
        for id, path, state, error, width, height, numbers, matches in rows:
            photo = self._seal.open_path(path)
            if state == "failed":
                yield PhotoRecord(id, PhotoResult(photo, error=self._seal.open("error", error)), None)
                continue
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            scale = options.scale_of((width, height))
            yield PhotoRecord(id, PhotoResult(photo, faces=faces, scale=scale), (width, height))

    def photos(self) -> list[Path]:
        """Return all photos of the command, in its order."""
        rows = self._database.execute("SELECT path FROM photos WHERE place IS NOT NULL ORDER BY place")
        return [self._seal.open_path(path) for (path,) in rows]

    def pictures(self, photo_id: int) -> dict[int, bytes]:
        """Return the WebP files of a photo; see `PhotoAnalysis.pictures`."""
        rows = self._database.execute("SELECT face, webp FROM pictures WHERE photo_id = ?", (photo_id,))
        return {face: self._seal.open("webp", webp) for face, webp in rows}

    def sha256(self, photo_id: int) -> str | None:
        """Of the file that was analyzed; None where that failed."""
        row = self._database.execute("SELECT sha256 FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return None if row is None else self._seal.open("sha256", row[0])

    def unknown_faces(self) -> list[UnknownFaceRow]:
        """Return the faces near nobody that enrollment would take, with their embeddings."""
        rows = self._database.execute(
            """SELECT id, sha256, vectors, enrollable, reasons, matches FROM photos
            WHERE place IS NOT NULL AND state = 'done' AND length(vectors) > 0 ORDER BY place"""
        )
        opened = self._seal.open
        faces = []
        for id, sha256, vectors, enrollable, reasons, matches in rows:
            columns = opened("vectors", vectors), enrollable, reasons, opened("matches", matches)
            photo_sha256 = opened("sha256", sha256)
            faces += [UnknownFaceRow(id, photo_sha256, row, own) for row, own in unknown_rows_of(*columns)]
        return faces

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

        Args:
            ids: Of the photos.
            forget_photos: The photos themselves too; else they wait to be analyzed again.
            names: That nobody next to a face is to have either; such faces are named again by the next run.
        """
        photo = "DELETE FROM photos WHERE id = ?" if forget_photos else _FORGET_ANALYSIS
        with self._changing() as database:
            for id in ids:
                for statement in (photo, *_DELETE_OUTPUTS):
                    database.execute(statement, (id,))
            self._forget_runners_up(database, names)
            database.execute("DELETE FROM moves")  # a new path has the person's name
            note(database, WIPE_DUE)
        self._file.wipe()

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
        key = "detector options"
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return DetectorOptions(max_side=json.loads(row[0])["max_side"]) if row else DetectorOptions()

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

    def _save_analysis(self, database: sqlite3.Connection, analysis: PhotoAnalysis, naming_key: str) -> None:
        id, seal, matches = analysis.task.id, self._seal.seal, analysis.faces.matches or ()
        numbers, vectors, enrollable = face_bytes(analysis.faces, analysis.reasons)
        named = seal("matches", matches_to_text(matches)), naming_key, known_count(matches)
        found = numbers, seal("vectors", vectors), enrollable, reasons_to_text(analysis.reasons)
        database.execute(
            """UPDATE photos SET state = 'done', error = NULL, sha256 = ?, width = ?, height = ?, numbers = ?,
            vectors = ?, enrollable = ?, reasons = ?, matches = ?, named_by = ?, known = ? WHERE id = ?""",
            (seal("sha256", analysis.sha256), *analysis.size_wh, *found, *named, id),
        )
        pictures = ((id, face, seal("webp", webp)) for face, webp in analysis.pictures.items())
        database.executemany("INSERT INTO pictures (photo_id, face, webp) VALUES (?, ?, ?)", pictures)


def _without_runner_up(match: Match, names: Collection[str]) -> Match:
    if match.runner_up_name not in names:
        return match
    return replace(match, runner_up_name=None, runner_up_distance_l2=None)
