"""A batch's photos and faces, with what people decided about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from facepipe.batch.decision_table import StoredDecision
from facepipe.batch.decisions import Box, Decision, Verdict
from facepipe.batch.job import Job
from facepipe.batch.naming import Naming, options_of
from facepipe.batch.output_files import EMBEDDED_KIND, SIDECAR_KIND, TAGGED_SIDECAR_KIND
from facepipe.batch.photo_writing import finish_photo_writes, write_into_photos
from facepipe.batch.results import ResultOptions, write_results
from facepipe.batch.rows import face_bytes
from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.face_ids import face_id
from facepipe.core.faces import Faces
from facepipe.gallery import Gallery
from facepipe.gallery.address import PostgresAddress, parse_address
from facepipe.gallery.names import clean_name
from facepipe.library.analyzing import AnalyzingMixin
from facepipe.library.drawing import DrawnFace
from facepipe.library.models import LibraryPhoto, Step
from facepipe.library.storage import now
from facepipe.pipeline import NamingOptions, known_identity
from facepipe.quality_rules import Reason

FindFace = Callable[[LibraryPhoto, Box], DrawnFace | None]
"""Looks for a face in a box that was drawn by hand; see `facepipe.library.drawing.find_face`."""


class Library(AnalyzingMixin):
    """A batch's photos and faces, with what people decided about them. Open it with `Library.open`.

    What people decide is never changed by what the gallery finds. Every change is one transaction, on disk
    when the method returns, and quick: the names of other faces that follow are found by `name_again`.
    """

    @classmethod
    def open(
        cls,
        folder: Path,
        gallery: str | Path | PostgresAddress | None = None,
        *,
        secret: bytes | None = None,
        reading: bool = False,
    ) -> Self:
        """Open the folder of a batch (its --out), and the gallery that names its faces.

        Args:
            folder: Of the batch.
            gallery: Its folder, or a PostgreSQL URL; None: the one that the batch was last run with. A URL's
                password is not kept by the batch: libpq finds it in `$PGPASSWORD` or a password file.
            secret: The key of both, where they are encrypted; None: that of the environment.
            reading: Where another process works with the batch, open it as it is now; see `is_read_only`.

        Raises:
            UsageError: No batch was run with this folder, or of an earlier version, without a gallery given.
            JobBusyError: Another process works with it.
            OutputError: It can't be opened, or is damaged.
            GalleryError: There is no such gallery, or its embeddings are of another encoder.
        """
        job = Job(folder, secret=secret, reading=reading)
        try:
            known = job.naming()
            if gallery is None and known is None:
                raise UsageError(
                    f"{folder}: an earlier facepipe made this batch: name its gallery with --gallery"
                )
            opened = open_gallery(gallery or (known or (Path(),))[0], job, secret)
        except BaseException:
            job.close()
            raise
        try:
            if not job.is_read_only:
                finish_photo_writes(job, opened)
            options = options_of(known[1]) if known is not None else NamingOptions()
            library = cls(job, opened, Naming(opened, options))
            if not job.is_read_only:
                library.finish_after_kill()
        except BaseException:
            job.close()
            opened.close()
            raise
        return library

    def reopen_gallery(self, secret: bytes | None = None) -> None:
        """Use the gallery that is in its folder now: another one, as after a repair, or one that is back.

        A database on another machine is connected to again by itself.

        Raises:
            GalleryError: There is none, or its embeddings are of another encoder.
        """
        if isinstance(self.gallery.path, PostgresAddress):
            return
        opened = open_gallery(self.gallery.path, self._job, secret)
        self.gallery.close()
        self.gallery, self._naming = opened, Naming(opened, self._naming.options)

    def write_results(self, *, sidecars: bool = False) -> int:
        """Write records and report anew, and the names where the batch has written them: sidecars or photos.

        A photo is opened only where its names are in it and have changed.

        Args:
            sidecars: Write XMP sidecars beside the photos also where there were none.

        Returns:
            How many files could not be written; why is logged.

        Raises:
            ReadOnlyJobError: Another process works with the batch.
        """
        self._job.require_writable()
        outputs = self._job.outputs
        report = outputs.report_options()
        options = ResultOptions(
            xmp=sidecars or bool(outputs.of_kind(SIDECAR_KIND)),
            xmp_tags=bool(outputs.of_kind(TAGGED_SIDECAR_KIND)),
            paths=report is None or report.paths,
        )
        unwritten = write_results(self._job, self._naming.group_within_l2, options)
        return unwritten + (self._write_into_photos() if outputs.of_kind(EMBEDDED_KIND) else 0)

    def _write_into_photos(self) -> int:
        unwritten = write_into_photos(self._job)
        with self._changing_gallery():
            finish_photo_writes(self._job, self.gallery)
        self._take_contents()
        return unwritten

    def draw_face(
        self, photo_id: int, box_xyxy: Box, name: str | None = None, find_face: FindFace | None = None
    ) -> tuple[Step, str]:
        """Add a face that no detector found.

        Args:
            photo_id: Where it is.
            box_xyxy: In pixels of the upright photo.
            name: Whose it is; None: not said.
            find_face: Looks for landmarks, to encode the face; None, or where it finds none: the face is a
                mark without an embedding.

        Returns:
            The step, and the id of the face.

        Raises:
            UsageError: There is no such photo, or the box is not within it.
            GalleryError: The name can't be used.
        """
        photo = self.photos.get(photo_id)
        if photo is None or photo.sha256 is None:
            raise UsageError(f"{self.folder}: there is no photo {photo_id} with faces to be drawn in")
        box_xyxy, name = _inside(photo, box_xyxy), None if name is None else clean_name(name)
        drawn = None if find_face is None else find_face(photo, box_xyxy)
        id = face_id(photo.sha256, box_xyxy, photo.face_ids)
        nothing = StoredDecision(Decision(id, photo.sha256, box_xyxy), _numbers(box_xyxy, drawn))
        verdict = None if name is None else Verdict.IS
        decision = Decision(id, photo.sha256, box_xyxy, verdict, name, is_drawn=True, decided_at=now())
        stored = StoredDecision(decision, nothing.numbers, None if drawn is None else drawn.embedding)
        picture = None if drawn is None else drawn.picture

        def add() -> None:
            self._job.faces.add_drawn(photo_id, stored, picture, self._dimensions)

        label = f"a face drawn{f' of {name}' if name else ''}"
        step = self._step(label, [nothing], [stored], {"drawn": True}, also=add)
        self._reload_photo(photo_id)
        return step, id


def open_gallery(place: str | Path | PostgresAddress, job: Job, secret: bytes | None) -> Gallery:
    """Open a gallery for the embeddings of a job.

    Raises:
        GalleryError: There is no such gallery, or its embeddings are of another encoder than the job's.
    """
    address = parse_address(place)
    with Gallery.open(address, secret=secret) as gallery:
        identity = known_identity(gallery.encoder)
    encoder = f"{identity.name} {identity.fingerprint[:12]}"
    used = job.setting("encoder")
    if used not in (None, encoder):
        raise GalleryError(
            f"{address}: holds embeddings of {identity.name}, but {job.folder} those of {used}: run the "
            "batch with --again, or with a gallery of its encoder"
        )
    return Gallery.open(address, identity, secret=secret)


def _inside(photo: LibraryPhoto, box_xyxy: Box) -> Box:
    """The part of a box that is in the photo."""
    assert photo.size_wh is not None
    width, height = photo.size_wh
    left, top, right, bottom = box_xyxy
    clipped = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if not (clipped[2] - clipped[0] >= 1 and clipped[3] - clipped[1] >= 1):
        raise UsageError(f"{photo.path}: expected a box within {width} x {height} pixels, got {box_xyxy}")
    return clipped


def _numbers(box_xyxy: Box, drawn: DrawnFace | None) -> bytes:
    box = np.array([box_xyxy], np.float32)
    middle = np.tile((box[:, :2] + box[:, 2:]) / 2, (5, 1))[None]
    landmarks = (middle if drawn is None else drawn.landmarks[None]).astype(np.float32)
    faces = Faces(box, np.ones(1, np.float32), landmarks)
    unknown = faces.with_embeddings(np.full((1, 1), np.nan, np.float32)).with_enrollable(
        np.zeros(1, np.bool_)
    )
    return face_bytes(unknown, [Reason.DRAWN])[0]
