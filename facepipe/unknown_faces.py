"""Unknown faces: kept when asked, gathered into groups, and given a name together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from facepipe.core.errors import GalleryError, UsageError
from facepipe.core.faces import Faces
from facepipe.core.json_lines import record_to_json
from facepipe.encoder import FaceEncoder
from facepipe.gallery import Gallery, NewTemplate, UnknownFace
from facepipe.gallery.clustering import LINK_SHARE, group_faces
from facepipe.gallery.matching import Doubt
from facepipe.gallery.models import require_threshold
from facepipe.images.face_crops import box_of, encode_crop
from facepipe.images.reading import photo_sha256
from facepipe.pipeline import FacePipeline, PhotoResult


@dataclass(frozen=True, slots=True)
class UnknownGroup:
    """Unknown faces that are likely one person's.

    Attributes:
        id: Of the group's oldest face: it stays while that face does, whatever becomes of other groups.
        faces: The most typical first.
    """

    id: int
    faces: tuple[UnknownFace, ...]

    def to_json(self) -> str:
        """One line: `{"id", "faces": [{"id", "source", "box_xyxy", "photo_sha256", "added_at"}]}`."""
        fields = ("id", "source", "box_xyxy", "photo_sha256", "added_at")
        faces = [{name: getattr(face, name) for name in fields} for face in self.faces]
        return record_to_json({"id": self.id, "faces": faces})


def remembering_unknown(
    pipeline: FacePipeline, results: Iterable[PhotoResult], *, keep_crops: bool = False
) -> Iterator[PhotoResult]:
    """Yield the results as they come, each after its unknown faces were kept; see `remember_unknown`.

    Args:
        pipeline: With the gallery that the faces are kept in.
        results: Of `pipeline.identify_files`.
        keep_crops: Store the pictures of the faces too.
    """
    if pipeline.gallery is None:
        raise UsageError("remembering unknown faces needs a gallery")
    for result in results:
        remember_unknown(pipeline.gallery, result, pipeline.encoder, keep_crops=keep_crops)
        yield result


def remember_unknown(
    gallery: Gallery, result: PhotoResult, encoder: FaceEncoder, *, keep_crops: bool = False
) -> int:
    """Keep the faces of an identified photo that are nobody's; answers how many were new.

    Of those that were compared, the ones that enrollment would take: only they may become a person.

    Args:
        gallery: Where to.
        result: Of `FacePipeline.identify_files`, with its photo.
        encoder: That made the embeddings.
        keep_crops: Store the pictures of the faces too.

    Raises:
        GalleryError: The gallery can't be written.
        PhotoError: The photo is gone.
    """
    if result.faces is None or result.photo is None:
        return 0
    faces = result.faces.select(_nobodys_rows(result.faces))
    if not len(faces):
        return 0
    assert faces.embeddings is not None
    digest, source = photo_sha256(result.path), str(result.path.resolve())
    crops = list(encoder.align(result.photo, faces)) if keep_crops else [None] * len(faces)
    found = [
        NewTemplate(
            embedding=embedding,
            source=source,
            box_xyxy=box_of(faces, row),
            photo_sha256=digest,
            crop=None if crop is None else encode_crop(crop),
        )
        for row, (embedding, crop) in enumerate(zip(faces.embeddings, crops, strict=True))
    ]
    return len(gallery.remember_unknown(found))


def unknown_groups(gallery: Gallery, max_distance_l2: float | None = None) -> list[UnknownGroup]:
    """Two and more unknown faces each, the largest group first.

    Args:
        gallery: With unknown faces; nothing in it is changed.
        max_distance_l2: See `group_faces`; None: `LINK_SHARE` of the encoder's threshold.

    Raises:
        UsageError: The distance is not within 0..2, or the encoder has no threshold to take it from.
    """
    if max_distance_l2 is None and not gallery.encoder.threshold_l2:
        raise UsageError(f"{gallery.encoder} has no measured threshold: give a distance (--distance)")
    limit_l2 = LINK_SHARE * gallery.encoder.threshold_l2 if max_distance_l2 is None else max_distance_l2
    require_threshold(limit_l2, "distance")
    faces = gallery.unknown_faces()
    if not faces:
        return []
    embeddings = np.stack([face.embedding for face in faces])
    labels = group_faces(embeddings, [face.photo_sha256 for face in faces], limit_l2)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    groups = [_group([faces[row] for row in rows]) for rows in members if len(rows) > 1]
    return sorted(groups, key=lambda group: (-len(group.faces), group.id))


def enroll_group(
    gallery: Gallery, group_id: int, name: str, max_distance_l2: float | None = None
) -> list[int]:
    """Make a group a person, who need not be known yet; answers the ids of the new templates.

    Args:
        gallery: As for `unknown_groups`.
        group_id: Of a group that `unknown_groups` gives with the same distance.
        name: Of the person.
        max_distance_l2: As there.

    Raises:
        GalleryError: There is no such group now.
    """
    for group in unknown_groups(gallery, max_distance_l2):
        if group.id == group_id:
            return gallery.enroll_unknown([face.id for face in group.faces], name)
    raise GalleryError(
        f"{gallery.path}: there is no group {group_id} of unknown faces: see `facepipe cluster`"
    )


def _nobodys_rows(faces: Faces) -> list[int]:
    """Rows of the faces that enrollment would take, and that are neither named nor unsure."""
    if faces.matches is None or faces.enrollable is None:
        return []
    return [
        row
        for row, (match, enrollable) in enumerate(zip(faces.matches, faces.enrollable, strict=True))
        if enrollable and match.reason in (Doubt.NOBODY_NEAR.value, Doubt.TAKEN.value)
    ]


def _group(faces: Sequence[UnknownFace]) -> UnknownGroup:
    embeddings = np.stack([face.embedding for face in faces])
    typical = np.argsort(-(embeddings @ embeddings.sum(axis=0)), kind="stable")
    return UnknownGroup(min(face.id for face in faces), tuple(faces[row] for row in typical))
