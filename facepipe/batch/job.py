"""The job: which photos there are, what is done, what was seen. Killed processes lose seconds of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from facepipe.batch.job_file import open_job_file
from facepipe.batch.job_schema import REPORT, WIPE_DUE, look_again_at_panoramas, note
from facepipe.batch.models import Counts, Outcome, Product, Record, ReportOptions, Stranger, Task
from facepipe.batch.planning import NO_FILE, Planner, Taken
from facepipe.batch.products import names_of, names_to_text
from facepipe.batch.rows import (
    FACE_BYTES,
    face_bytes,
    faces_of,
    known_count,
    matches_of,
    matches_to_text,
    reasons_of,
    reasons_to_text,
    strangers_of,
    vectors_of,
)
from facepipe.batch.seal import Seal
from facepipe.core.errors import UsageError
from facepipe.core.faces import Faces, Match
from facepipe.detector import DetectorOptions
from facepipe.pipeline import PhotoResult
from facepipe.quality import Reason

_NOTHING_SEEN = """UPDATE photos SET state = 'waiting', sha256 = NULL, width = NULL, height = NULL,
    numbers = NULL, vectors = NULL, enrollable = NULL, reasons = NULL, matches = NULL, named_by = NULL,
    known = NULL WHERE id = ?"""
_DELETE_MADE_OF_PHOTO = (
    "DELETE FROM pictures WHERE photo_id = ?",
    "DELETE FROM products WHERE photo_id = ?",
)


class Job:
    """A folder's job file, held by one process at a time. Every change is one transaction.

    Args:
        folder: Holds the file.
        create: Whether a missing one is made, in a private folder: it holds vectors of faces.
        secret: The key of an encrypted job; None: that of the environment (`FACEPIPE_GALLERY_KEY`).
        again: Begin a new one where it is damaged: all photos will be looked at again.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        self._file.close()

    def require_encryption(self) -> bool:
        """Encrypt paths, names, vectors and pictures, unless they are; no plain byte is left in the file.

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
        """Bind the job to what looking at a photo depends on.

        Args:
            settings: By name; values that JSON holds.
            again: Look at all photos again, with these settings.

        Raises:
            UsageError: The job was begun with other settings; the message names them.
        """
        wanted = {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}
        with self._changing() as database:
            held = dict(database.execute("SELECT key, value FROM settings"))
            different = sorted(key for key in wanted if held.get(key) != wanted[key])
            if held.keys() & wanted.keys() and different and not again:
                told = ", ".join(f"{key} {held.get(key)} (now {wanted[key]})" for key in different)
                raise UsageError(
                    f"{self.folder}: this job was begun with {told}; use the same, or --again to look at "
                    "all photos again, or another --out"
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
            look_again_at_panoramas(database)
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

    def waiting(self) -> list[Task]:
        """The photos to be looked at, in the order of the command."""
        rows = self._database.execute(
            "SELECT id, path FROM photos WHERE place IS NOT NULL AND state = 'waiting' ORDER BY place"
        )
        return [Task(id, self._seal.open_path(path)) for id, path in rows]

    # What was seen

    def save(self, outcomes: Sequence[tuple[Outcome, Sequence[Match]]], named_by: str) -> None:
        """Remember how tasks ended, each with what the gallery said of its faces, in one transaction."""
        with self._changing() as database:
            for outcome, matches in outcomes:
                self._save(database, outcome, matches, named_by)

    def note_failures_told(self) -> None:
        """Remember that the failures of the command were told, with what was wrong."""
        with self._changing() as database:
            database.execute("UPDATE photos SET told = 1 WHERE place IS NOT NULL AND state = 'failed'")

    def name_again(
        self,
        name: Callable[[Faces, Sequence[Reason | None]], Sequence[Match]],
        named_by: str,
        dimensions: int,
    ) -> int:
        """Ask the gallery again about photos that other settings or another state of it named.

        Nothing is read but the job file. In transactions of some hundred photos: what a killed process has
        named stays named.

        Returns:
            How many photos were named again.
        """
        rows = self._database.execute(
            "SELECT id FROM photos WHERE place IS NOT NULL AND state = 'done' AND named_by != ?", (named_by,)
        ).fetchall()
        for at in range(0, len(rows), 512):
            with self._changing() as database:
                for (id,) in rows[at : at + 512]:
                    columns = "numbers, vectors, reasons"
                    row = database.execute(f"SELECT {columns} FROM photos WHERE id = ?", (id,)).fetchone()
                    reasons = reasons_of(row[2])
                    vectors = vectors_of(self._seal.open("vectors", row[1]), reasons, dimensions)
                    matches = name(faces_of(row[0]).with_embeddings(vectors), reasons)
                    text = self._seal.seal("matches", matches_to_text(matches))
                    database.execute(
                        "UPDATE photos SET matches = ?, named_by = ?, known = ? WHERE id = ?",
                        (text, named_by, known_count(matches), id),
                    )
        return len(rows)

    def records(self) -> Iterator[Record]:
        """The photos of the command that have been dealt with, in its order."""
        options = self._detector_options()
        rows = self._database.execute(
            """SELECT id, path, state, error, width, height, numbers, matches FROM photos
            WHERE place IS NOT NULL AND state != 'waiting' ORDER BY place"""
        )
        for id, path, state, error, width, height, numbers, matches in rows:
            photo = self._seal.open_path(path)
            if state == "failed":
                yield Record(id, PhotoResult(photo, error=self._seal.open("error", error)), None)
                continue
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            scale = options.scale_of((width, height))
            yield Record(id, PhotoResult(photo, faces=faces, scale=scale), (width, height))

    def photos(self) -> list[Path]:
        """All photos of the command, in its order."""
        rows = self._database.execute("SELECT path FROM photos WHERE place IS NOT NULL ORDER BY place")
        return [self._seal.open_path(path) for (path,) in rows]

    def pictures(self, photo_id: int) -> dict[int, bytes]:
        """The WebP files of a photo; see `PhotoAnalysis.pictures`."""
        rows = self._database.execute("SELECT face, webp FROM pictures WHERE photo_id = ?", (photo_id,))
        return {face: self._seal.open("webp", webp) for face, webp in rows}

    def sha256(self, photo_id: int) -> str | None:
        """Of the file that was looked at; None where that failed."""
        row = self._database.execute("SELECT sha256 FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return None if row is None else self._seal.open("sha256", row[0])

    def strangers(self) -> list[Stranger]:
        """The faces near nobody that enrolment would take, with their vectors."""
        rows = self._database.execute(
            """SELECT id, sha256, vectors, enrollable, reasons, matches FROM photos
            WHERE place IS NOT NULL AND state = 'done' AND length(vectors) > 0 ORDER BY place"""
        )
        opened = self._seal.open
        strangers = []
        for id, sha256, vectors, enrollable, reasons, matches in rows:
            columns = opened("vectors", vectors), enrollable, reasons, opened("matches", matches)
            photo_sha256 = opened("sha256", sha256)
            strangers += [Stranger(id, photo_sha256, row, vector) for row, vector in strangers_of(*columns)]
        return strangers

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

    # Files made of results

    def product(self, kind: str, photo_id: int) -> Product | None:
        """The photo's files of this kind; None: never made."""
        found = self._database.execute(
            "SELECT made_of, files FROM products WHERE kind = ? AND photo_id = ?", (kind, photo_id)
        ).fetchone()
        return None if found is None else Product(found[0], names_of(self._seal.open("files", found[1])))

    def products(self, kind: str) -> dict[int, Product]:
        """The files of this kind by photo, of all photos that the job remembers."""
        rows = self._database.execute("SELECT photo_id, made_of, files FROM products WHERE kind = ?", (kind,))
        opened = self._seal.open
        return {id: Product(made_of, names_of(opened("files", files))) for id, made_of, files in rows}

    def note_products(self, kind: str, products: Mapping[int, Product]) -> None:
        """Remember files by photo."""
        rows = [
            (kind, id, product.made_of, self._seal.seal("files", names_to_text(product.names)))
            for id, product in products.items()
        ]
        with self._changing() as database:
            database.executemany(
                "INSERT OR REPLACE INTO products (kind, photo_id, made_of, files) VALUES (?, ?, ?, ?)", rows
            )

    def products_of(self, photo_id: int) -> dict[str, Product]:
        """The photo's files by kind."""
        rows = self._database.execute(
            "SELECT kind, made_of, files FROM products WHERE photo_id = ?", (photo_id,)
        ).fetchall()
        opened = self._seal.open
        return {kind: Product(made_of, names_of(opened("files", files))) for kind, made_of, files in rows}

    def forget_product(self, kind: str, photo_id: int) -> None:
        """Forget the photo's files of a kind, which are gone."""
        with self._changing() as database:
            database.execute("DELETE FROM products WHERE kind = ? AND photo_id = ?", (kind, photo_id))

    def note_report(self, options: ReportOptions) -> None:
        """Remember how the report is written."""
        row = REPORT, json.dumps(asdict(options))
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", row)

    def report_options(self) -> ReportOptions | None:
        """How the report was last written; None: not known."""
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (REPORT,)).fetchone()
        return None if row is None else ReportOptions(**json.loads(row[0]))

    # What is to be forgotten

    def remembered(self, *, left_out: bool = False) -> list[Task]:
        """All photos that the job knows, or those that are not among the command's."""
        where = " WHERE place IS NULL" if left_out else ""
        rows = self._database.execute(f"SELECT id, path FROM photos{where}").fetchall()
        return [Task(id, self._seal.open_path(path)) for id, path in rows]

    def looks(self) -> Iterator[Record]:
        """All photos in which something was seen, whether they are among the command's and wait or not."""
        rows = self._database.execute(
            "SELECT id, path, width, height, numbers, matches FROM photos WHERE numbers IS NOT NULL"
        ).fetchall()
        for id, path, width, height, numbers, matches in rows:
            faces = faces_of(numbers).with_matches(matches_of(self._seal.open("matches", matches)))
            yield Record(id, PhotoResult(self._seal.open_path(path), faces=faces), (width, height))

    def erase(self, ids: Iterable[int], *, forget_photos: bool, names: Collection[str] = ()) -> None:
        """Erase what was seen in photos, and what their files were made of; no byte of it is left.

        Args:
            ids: Of the photos.
            forget_photos: The photos themselves too; else they wait to be looked at again.
            names: That nobody next to a face is to have either; such faces are named again by the next run.
        """
        photo = "DELETE FROM photos WHERE id = ?" if forget_photos else _NOTHING_SEEN
        with self._changing() as database:
            for id in ids:
                for statement in (photo, *_DELETE_MADE_OF_PHOTO):
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
        """The old and the new path of a photo whose move has begun and not ended."""
        row = self._database.execute("SELECT paths FROM moves").fetchone()
        if row is None:
            return None
        source, target = json.loads(self._seal.open("paths", row[0]))
        return Path(source), Path(target)

    # Inside

    def _detector_options(self) -> DetectorOptions:
        """Those that decide how large photos are analysed."""
        key = "detector options"
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return DetectorOptions(max_side=json.loads(row[0])["max_side"]) if row else DetectorOptions()

    def _save(
        self, database: sqlite3.Connection, outcome: Outcome, matches: Sequence[Match], named_by: str
    ) -> None:
        id, look, seal = outcome.task.id, outcome.look, self._seal.seal
        database.execute("DELETE FROM pictures WHERE photo_id = ?", (id,))
        if look is None:
            error = seal("error", outcome.error)
            database.execute(_NOTHING_SEEN, (id,))
            database.execute(
                """UPDATE photos SET state = 'failed', told = coalesce(told, 0) AND error IS ?, error = ?
                WHERE id = ?""",
                (error, error, id),
            )
            if outcome.passing:
                database.execute(
                    "UPDATE photos SET size_bytes = ?, mtime_ns = ? WHERE id = ?", (*NO_FILE, id)
                )
            return
        numbers, vectors, enrollable = face_bytes(look.faces, look.reasons)
        named = seal("matches", matches_to_text(matches)), named_by, known_count(matches)
        seen = numbers, seal("vectors", vectors), enrollable, reasons_to_text(look.reasons)
        database.execute(
            """UPDATE photos SET state = 'done', error = NULL, sha256 = ?, width = ?, height = ?, numbers = ?,
            vectors = ?, enrollable = ?, reasons = ?, matches = ?, named_by = ?, known = ? WHERE id = ?""",
            (seal("sha256", look.sha256), *look.size_wh, *seen, *named, id),
        )
        pictures = ((id, face, seal("webp", webp)) for face, webp in look.pictures.items())
        database.executemany("INSERT INTO pictures (photo_id, face, webp) VALUES (?, ?, ?)", pictures)


def _without_runner_up(match: Match, names: Collection[str]) -> Match:
    if match.runner_up_name not in names:
        return match
    return replace(match, runner_up_name=None, runner_up_distance_l2=None)
