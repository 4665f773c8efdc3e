"""The faces of a job's analyzed photos: written, read, and named again."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from facepipe.batch.decision_table import DecisionTable, StoredDecision
from facepipe.batch.face_ids import face_ids_from_text, face_ids_to_text
from facepipe.batch.job_file import JobFile
from facepipe.batch.models import AnalyzedPhoto, KnownFace, PhotoAnalysis, StoredFaces, UnknownFaceRow
from facepipe.batch.rows import (
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
from facepipe.batch.stored_faces import NameFaces, name_stored, stored_faces, with_drawn
from facepipe.core.faces import FloatArray
from facepipe.quality import accepted_rows

NAMING_DUE = "decisions"
"""Named by: decisions, which are to be applied by the next `name_again`."""


_SAME_PLACE_PX, _SAME_VECTOR = 1.0, 0.01
"""How far boxes and components of embeddings are apart of two files with the same pixels, at most."""


class JobFaces:
    """The faces of the photos of a job.

    Args:
        file: Of the job.
        decisions: What people decided about faces.
    """

    def __init__(self, file: JobFile, decisions: DecisionTable) -> None:
        self._file, self._decisions = file, decisions
        self._database, self._changing = file.database, file.changing

    @property
    def _seal(self) -> Seal:
        return self._file.seal

    def save(self, database: sqlite3.Connection, analysis: PhotoAnalysis, naming_key: str) -> None:
        """Write the faces and pictures of an analyzed photo. Inside a transaction."""
        id, seal = analysis.task.id, self._seal.seal
        known, drawn = self._faces_before(id, analysis), self._drawn_pictures(id)
        found = StoredFaces(analysis.faces, analysis.reasons, ())
        photo = stored_faces(found, analysis.sha256, known, self._decisions)
        matches = photo.faces.matches or ()
        numbers, vectors, enrollable = face_bytes(photo.faces, photo.reasons)
        named_by = naming_key if not len(self._decisions) else NAMING_DUE
        named = seal("matches", matches_to_text(matches)), named_by, known_count(matches)
        columns = numbers, seal("vectors", vectors), enrollable, reasons_to_text(photo.reasons)
        ids = seal("face_ids", face_ids_to_text(photo.ids))
        database.execute(
            """UPDATE photos SET state = 'done', error = NULL, sha256 = ?, width = ?, height = ?, numbers = ?,
            vectors = ?, enrollable = ?, reasons = ?, matches = ?, named_by = ?, known = ?, face_ids = ?,
            taken_at = ? WHERE id = ?""",
            (
                seal("sha256", analysis.sha256),
                *analysis.size_wh,
                *columns,
                *named,
                ids,
                analysis.taken_at,
                id,
            ),
        )
        pictures = analysis.pictures | {
            row: drawn[face_id]
            for row, face_id in enumerate(photo.ids)
            if face_id in drawn and row not in analysis.pictures
        }
        database.execute("DELETE FROM pictures WHERE photo_id = ?", (id,))
        rows = ((id, row, seal("webp", picture)) for row, picture in pictures.items())
        database.executemany("INSERT INTO pictures (photo_id, face, webp) VALUES (?, ?, ?)", rows)

    def _drawn_pictures(self, photo_id: int) -> dict[str, bytes]:
        """Pictures of the faces that were drawn by hand, by face id: no analysis makes them."""
        if not len(self._decisions):
            return {}
        query = "SELECT face_ids FROM photos WHERE id = ?"
        (ids,) = self._database.execute(query, (photo_id,)).fetchone()
        found = {}
        for row, face_id in enumerate(face_ids_from_text(self._seal.open("face_ids", ids))):
            decision = self._decisions.decision(face_id)
            picture = self.picture(photo_id, row) if decision is not None and decision.is_drawn else None
            if picture is not None:
                found[face_id] = picture
        return found

    def note_written(self, photo_ids: Iterable[int], before: str, now: str) -> None:
        """Give photos into which names were written their new content hash. Inside a transaction."""
        for id in photo_ids:
            sealed = self._seal.seal("sha256", now), id, self._seal.seal("sha256", before)
            self._database.execute("UPDATE photos SET sha256 = ? WHERE id = ? AND sha256 = ?", sealed)
        if not self._photos_with({before}):
            self._carry_decisions(before, now)

    def _carry_decisions(self, before: str, now: str) -> None:
        """Keep what was decided about a photo whose metadata was edited."""
        for stored in self._decisions.of_photo(before):
            moved = replace(stored.decision, photo_sha256=now)
            self._decisions.put(replace(stored, decision=moved))

    def _shows_the_same(self, photo_id: int, analysis: PhotoAnalysis) -> bool:
        """Return whether the faces that the detector finds are at the places and look as they did before."""
        now = analysis.faces.embeddings
        assert now is not None
        before = self.of_photo(photo_id, now.shape[1])
        drawn = [d is not None and d.is_drawn for d in map(self._decisions.decision, before.ids)]
        faces = before.faces.select([row for row, is_drawn in enumerate(drawn) if not is_drawn])
        if len(faces) != len(now):
            return False
        assert faces.embeddings is not None
        moved_px = np.abs(faces.boxes_xyxy - analysis.faces.boxes_xyxy)
        return bool((moved_px < _SAME_PLACE_PX).all()) and np.allclose(
            faces.embeddings, now, atol=_SAME_VECTOR, equal_nan=True
        )

    def _faces_before(self, photo_id: int, analysis: PhotoAnalysis) -> list[KnownFace]:
        """Those that the photo had when it was last analyzed, where its pixels are still the same."""
        columns = "sha256, width, height, numbers, face_ids"
        query = f"SELECT {columns} FROM photos WHERE id = ?"
        sealed, *size_wh, numbers, ids = self._database.execute(query, (photo_id,)).fetchone()
        if numbers is None:
            return []
        before = self._seal.open("sha256", sealed)
        if before != analysis.sha256:
            if tuple(size_wh) != analysis.size_wh or not self._shows_the_same(photo_id, analysis):
                return []
            if len(self._photos_with({before})) == 1:  # no other photo has that content
                self._carry_decisions(before, analysis.sha256)
        boxes = faces_of(numbers).boxes_xyxy.tolist()
        known = face_ids_from_text(self._seal.open("face_ids", ids))
        return [KnownFace(id, tuple(box)) for id, box in zip(known, boxes, strict=True)]

    def name_again(
        self,
        name: NameFaces,
        naming_key: str,
        dimensions: int,
        photo_ids: Collection[int] | None = None,
        negatives: Mapping[str, FloatArray] | None = None,
    ) -> int:
        """Match the faces again of photos that other settings or another state of the gallery named.

        Nothing is read but the job file. In transactions of some hundred photos: what a killed process has
        named stays named.

        Args:
            name: By the gallery.
            naming_key: Identifies what the faces are named by.
            dimensions: Length of an embedding.
            photo_ids: These photos, whatever named them; None: all that something else named.
            negatives: See `with_decisions`; None: those of the job.

        Returns:
            How many photos were named again.
        """
        ids = self.named_otherwise(naming_key) if photo_ids is None else sorted(photo_ids)
        if ids and negatives is None:
            negatives = self.negatives(dimensions)
        for at in range(0, len(ids), 512):
            with self._changing() as database:
                chunk = ids[at : at + 512]
                photos = [self.of_photo(id, dimensions) for id in chunk]
                named = name_stored(photos, name, self._decisions, negatives or {})
                for id, matches in zip(chunk, named, strict=True):
                    text = self._seal.seal("matches", matches_to_text(matches))
                    database.execute(
                        "UPDATE photos SET matches = ?, named_by = ?, known = ? WHERE id = ?",
                        (text, naming_key, known_count(matches), id),
                    )
        return len(ids)

    def of_photo(self, photo_id: int, dimensions: int) -> StoredFaces:
        """Return the faces of an analyzed photo, with embeddings and the matches of before."""
        columns = "numbers, vectors, enrollable, reasons, matches, face_ids"
        row = self._database.execute(f"SELECT {columns} FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return self._stored_faces(row, dimensions)

    def photos(self, dimensions: int) -> Iterator[AnalyzedPhoto]:
        """Yield the photos of the command that have been dealt with, in its order."""
        return self._photos("place IS NOT NULL AND state != 'waiting' ORDER BY place", (), dimensions)

    def photo(self, photo_id: int, dimensions: int) -> AnalyzedPhoto:
        """Return a photo that has been dealt with."""
        return next(self._photos("id = ?", (photo_id,), dimensions))

    def _photos(self, where: str, values: tuple[int, ...], dimensions: int) -> Iterator[AnalyzedPhoto]:
        opened = self._seal.open
        rows = self._database.execute(
            f"""SELECT id, path, state, sha256, width, height, taken_at, error,
            numbers, vectors, enrollable, reasons, matches, face_ids FROM photos WHERE {where}""",
            values,
        )
        for id, path, state, sha256, width, height, taken_at, error, *faces in rows:
            photo, is_done = self._seal.open_path(path), state == "done"
            yield AnalyzedPhoto(
                id,
                photo,
                opened("sha256", sha256) if is_done else None,
                (width, height) if is_done else None,
                taken_at,
                None if is_done else opened("error", error),
                self._stored_faces(faces, dimensions) if is_done else None,
            )

    def leave_for_naming(self, photo_ids: Iterable[int]) -> None:
        """Have photos named again by the next `name_again`, also of another process. Inside a transaction."""
        rows = [(NAMING_DUE, id) for id in photo_ids]
        self._database.executemany("UPDATE photos SET named_by = ? WHERE id = ?", rows)

    def due_for_naming(self) -> list[int]:
        """Return the photos of the command that wait for `name_again`."""
        query = "SELECT id FROM photos WHERE place IS NOT NULL AND state = 'done' AND named_by = ?"
        return [id for (id,) in self._database.execute(query, (NAMING_DUE,))]

    def named_otherwise(self, naming_key: str) -> list[int]:
        """Return the photos of the command that other settings or another state of the gallery named."""
        query = "SELECT id FROM photos WHERE place IS NOT NULL AND state = 'done' AND named_by != ?"
        return [id for (id,) in self._database.execute(query, (naming_key,))]

    def add_drawn(
        self, photo_id: int, stored: StoredDecision, picture: bytes | None, dimensions: int
    ) -> None:
        """Add a face drawn by hand to a photo. Inside a transaction."""
        photo = with_drawn(self.of_photo(photo_id, dimensions), stored)
        self._write_faces(photo_id, photo)
        if picture is not None:
            row = photo_id, len(photo.ids) - 1, self._seal.seal("webp", picture)
            self._database.execute("INSERT INTO pictures (photo_id, face, webp) VALUES (?, ?, ?)", row)

    def remove_drawn(self, photo_id: int, face_id: str, dimensions: int) -> None:
        """Take a face that was drawn by hand out of a photo. Inside a transaction."""
        photo = self.of_photo(photo_id, dimensions)
        gone = photo.ids.index(face_id)
        rows = [row for row in range(len(photo.ids)) if row != gone]
        kept = StoredFaces(
            photo.faces.select(rows),
            tuple(photo.reasons[row] for row in rows),
            tuple(photo.ids[row] for row in rows),
        )
        self._write_faces(photo_id, kept)
        own = "photo_id = ? AND face"
        self._database.execute(f"DELETE FROM pictures WHERE {own} = ?", (photo_id, gone))
        self._database.execute(f"UPDATE pictures SET face = face - 1 WHERE {own} > ?", (photo_id, gone))

    def _write_faces(self, photo_id: int, photo: StoredFaces) -> None:
        seal, matches = self._seal.seal, photo.faces.matches or ()
        numbers, vectors, enrollable = face_bytes(photo.faces, photo.reasons)
        self._database.execute(
            """UPDATE photos SET numbers = ?, vectors = ?, enrollable = ?, reasons = ?, matches = ?,
            named_by = ?, known = ?, face_ids = ? WHERE id = ?""",
            (
                numbers,
                seal("vectors", vectors),
                enrollable,
                reasons_to_text(photo.reasons),
                seal("matches", matches_to_text(matches)),
                NAMING_DUE,
                known_count(matches),
                seal("face_ids", face_ids_to_text(photo.ids)),
                photo_id,
            ),
        )

    def _stored_faces(self, row: Sequence[Any], dimensions: int) -> StoredFaces:
        numbers, vectors, enrollable, reasons, matches, ids = row
        opened, found = self._seal.open, reasons_of(reasons)
        embeddings = embeddings_of(opened("vectors", vectors), dimensions)
        faces = faces_of(numbers).with_embeddings(embeddings, accepted_rows(found))
        faces = faces.with_matches(matches_of(opened("matches", matches)))
        if enrollable is not None:
            faces = faces.with_enrollable(np.frombuffer(enrollable, np.bool_))
        return StoredFaces(faces, tuple(found), tuple(face_ids_from_text(opened("face_ids", ids))))

    def negatives(self, dimensions: int) -> dict[str, FloatArray]:
        """Return by name the embeddings float32 (k, d) of faces that people said are not this person."""
        wanted = {
            stored.decision.face_id: stored.decision
            for stored in self._decisions
            if stored.decision.not_names
        }
        found: dict[str, list[FloatArray]] = {}
        for id in self._photos_with({decision.photo_sha256 for decision in wanted.values()}):
            photo = self.of_photo(id, dimensions)
            for face, face_id in zip(photo.faces, photo.ids, strict=True):
                if face_id in wanted and face.embedding is not None:
                    for name in wanted[face_id].not_names:
                        found.setdefault(name, []).append(face.embedding)
        return {name: np.stack(embeddings) for name, embeddings in found.items()}

    def _photos_with(self, contents: Collection[str]) -> list[int]:
        """Ids of the analyzed photos with one of these content hashes."""
        if not contents:
            return []
        sealed = {self._seal.seal("sha256", sha256) for sha256 in contents}
        rows = self._database.execute("SELECT id, sha256 FROM photos WHERE numbers IS NOT NULL")
        return [id for id, sha256 in rows if sha256 in sealed]

    def has_photo(self, photo_sha256: str) -> bool:
        """Return whether an analyzed photo has this content."""
        return bool(self._photos_with({photo_sha256}))

    def pictures(self, photo_id: int) -> dict[int, bytes]:
        """Return `PhotoAnalysis.pictures` of a photo; in jobs of earlier versions they are WebP."""
        rows = self._database.execute("SELECT face, webp FROM pictures WHERE photo_id = ?", (photo_id,))
        return {face: self._seal.open("webp", picture) for face, picture in rows}

    def picture(self, photo_id: int, row: int) -> bytes | None:
        """Return one of the pictures of a photo; None: there is none of this row."""
        query = "SELECT webp FROM pictures WHERE photo_id = ? AND face = ?"
        found = self._database.execute(query, (photo_id, row)).fetchone()
        return None if found is None else self._seal.open("webp", found[0])

    def sha256(self, photo_id: int) -> str | None:
        """Of the file that was analyzed; None where that failed."""
        row = self._database.execute("SELECT sha256 FROM photos WHERE id = ?", (photo_id,)).fetchone()
        return None if row is None else self._seal.open("sha256", row[0])

    def unknown_faces(self) -> list[UnknownFaceRow]:
        """Return the faces near nobody that enrollment would take, with their embeddings."""
        rows = self._database.execute(
            """SELECT id, sha256, face_ids, vectors, enrollable, reasons, matches FROM photos
            WHERE place IS NOT NULL AND state = 'done' AND length(vectors) > 0 ORDER BY place"""
        )
        opened = self._seal.open
        faces = []
        for id, sha256, face_ids, vectors, enrollable, reasons, matches in rows:
            columns = opened("vectors", vectors), enrollable, reasons, opened("matches", matches)
            photo_sha256, ids = opened("sha256", sha256), face_ids_from_text(opened("face_ids", face_ids))
            faces += [
                UnknownFaceRow(ids[row], id, photo_sha256, row, own) for row, own in unknown_rows_of(*columns)
            ]
        return faces
