"""Photos that names are written into, as the job file remembers them until all else has followed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from facepipe.batch.job_file import JobFile
from facepipe.batch.planning import FileState


@dataclass(frozen=True, slots=True)
class PhotoWrite:
    """A photo that is being replaced by a copy with other metadata, or was.

    Attributes:
        photo_ids: Rows of the job: one file may have several paths.
        sha256_before: Content hash of the photo that was analyzed.
        sha256: Of the copy.
        file: Size and time of the copy.
    """

    photo_ids: tuple[int, ...]
    sha256_before: str
    sha256: str
    file: FileState


class JobWrites:
    """Photos that are being replaced. Changes belong into a transaction."""

    def __init__(self, file: JobFile) -> None:
        self._file, self._database = file, file.database

    def begin(self, writes: Iterable[PhotoWrite]) -> None:
        """Remember that photos are about to be replaced."""
        seal = self._file.seal.seal
        rows = [
            (id, seal("sha256_before", write.sha256_before), seal("sha256", write.sha256), *write.file)
            for write in writes
            for id in write.photo_ids
        ]
        self._database.executemany(
            """INSERT INTO photo_writes (photo_id, sha256_before, sha256, size_bytes, mtime_ns, is_written)
            VALUES (?, ?, ?, ?, ?, 0)""",
            rows,
        )

    def end(self, write: PhotoWrite) -> None:
        """Remember that photos were replaced, which the gallery does not know yet."""
        for id in write.photo_ids:
            self._database.execute("UPDATE photo_writes SET is_written = 1 WHERE photo_id = ?", (id,))
            self._database.execute(
                "UPDATE photos SET size_bytes = ?, mtime_ns = ? WHERE id = ?", (*write.file, id)
            )

    def cancel(self, write: PhotoWrite) -> None:
        """Forget it: the photos are as they were."""
        for id in write.photo_ids:
            where = "photo_id = ? AND NOT is_written"
            self._database.execute(f"DELETE FROM photo_writes WHERE {where}", (id,))

    def unfinished(self) -> list[PhotoWrite]:
        """Return the photos that a killed process may have replaced or not."""
        return self._read("NOT is_written")

    def written(self) -> list[PhotoWrite]:
        """Return the photos that were replaced, and of which the gallery does not know yet, in order."""
        return self._read("is_written")

    def forget_written(self) -> None:
        """Forget them: the gallery knows."""
        self._database.execute("DELETE FROM photo_writes WHERE is_written")

    def _read(self, where: str) -> list[PhotoWrite]:
        opened = self._file.seal.open
        columns = "photo_id, sha256_before, sha256, size_bytes, mtime_ns"
        rows: sqlite3.Cursor = self._database.execute(
            f"SELECT {columns} FROM photo_writes WHERE {where} ORDER BY id"
        )
        return [
            PhotoWrite((id,), opened("sha256_before", before), opened("sha256", now), FileState(*file))
            for id, before, now, *file in rows
        ]
