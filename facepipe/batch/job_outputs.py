"""The files that were written for a job's results, as its job file remembers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from facepipe.batch.job_file import JobFile
from facepipe.batch.job_schema import REPORT
from facepipe.batch.models import OutputFiles, ReportOptions
from facepipe.batch.output_files import names_of, names_to_text


class JobOutputs:
    """Which files were written, by kind and photo, and for which results. Every change is one transaction."""

    def __init__(self, file: JobFile) -> None:
        self._file, self._database = file, file.database

    def get(self, kind: str, photo_id: int) -> OutputFiles | None:
        """Return the photo's files of this kind; None: never written."""
        return self.of_photo(photo_id).get(kind)

    def of_kind(self, kind: str) -> dict[int, OutputFiles]:
        """Return the files of this kind by photo, of all photos that the job remembers."""
        query = "SELECT photo_id, made_of, files FROM products WHERE kind = ?"
        rows = self._database.execute(query, (kind,))
        return {id: self._opened(source_hash, files) for id, source_hash, files in rows}

    def of_photo(self, photo_id: int) -> dict[str, OutputFiles]:
        """Return the photo's files by kind."""
        query = "SELECT kind, made_of, files FROM products WHERE photo_id = ?"
        rows = self._database.execute(query, (photo_id,)).fetchall()
        return {kind: self._opened(source_hash, files) for kind, source_hash, files in rows}

    def _opened(self, source_hash: str, files: str | bytes) -> OutputFiles:
        return OutputFiles(source_hash, names_of(self._file.seal.open("files", files)))

    def remember(self, kind: str, outputs: Mapping[int, OutputFiles]) -> None:
        """Remember files by photo."""
        rows = [
            (kind, id, files.source_hash, self._file.seal.seal("files", names_to_text(files.names)))
            for id, files in outputs.items()
        ]
        with self._file.changing() as database:
            database.executemany(
                "INSERT OR REPLACE INTO products (kind, photo_id, made_of, files) VALUES (?, ?, ?, ?)", rows
            )

    def forget(self, kind: str, photo_id: int) -> None:
        """Forget the photo's files of a kind, which are gone."""
        with self._file.changing() as database:
            database.execute("DELETE FROM products WHERE kind = ? AND photo_id = ?", (kind, photo_id))

    def remember_report(self, options: ReportOptions) -> None:
        """Remember how the report is written."""
        row = REPORT, json.dumps(asdict(options))
        with self._file.changing() as database:
            database.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", row)

    def report_options(self) -> ReportOptions | None:
        """Return how the report was last written; None: not known."""
        row = self._database.execute("SELECT value FROM settings WHERE key = ?", (REPORT,)).fetchone()
        return None if row is None else ReportOptions(**json.loads(row[0]))
