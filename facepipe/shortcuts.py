"""The common jobs in one call each: `verify`, `represent`, `find`, `stream`.

They share one pipeline without a gallery, which is loaded at the first call; pass `pipeline` to use another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from facepipe.core.errors import PhotoError, UsageError
from facepipe.core.faces import Face, Faces, FloatArray, UInt8Array
from facepipe.gallery.address import PostgresAddress
from facepipe.gallery.models import EncoderIdentity, require_threshold
from facepipe.images.finding import find_photos
from facepipe.images.photo_input import Photo, as_rgb
from facepipe.images.reading import read_image
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.quality_rules import NamingRules
from facepipe.tracking import Frame

_log = logging.getLogger("facepipe")


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether two photos show one person.

    Attributes:
        same_person: Whether the distance is within the threshold.
        distance_l2: Euclidean distance of the two nearest faces' embeddings, 0..2.
        threshold_l2: Largest distance that counts as one person's.
        strangers_share: Share of pairs of photos of strangers, with as many faces, whose nearest faces are at
            least as near, 0..1; None where the encoder's card has no measurements of strangers.
        first: The face of the first photo that was compared.
        second: The face of the second photo that was compared.
        comparisons: Pairs of faces that were compared: the faces of the one times those of the other photo.
    """

    same_person: bool
    distance_l2: float
    threshold_l2: float
    strangers_share: float | None
    first: Face
    second: Face
    comparisons: int


@dataclass(frozen=True, slots=True)
class Found:
    """A face in a folder that is near enough to the one looked for.

    Attributes:
        path: The photo.
        face: The face in it, with its embedding.
        distance_l2: Euclidean distance of the two embeddings, 0..2.
        threshold_l2: Largest distance that counts as one person's among so many faces.
    """

    path: Path
    face: Face
    distance_l2: float
    threshold_l2: float


def verify(
    first: Photo, second: Photo, *, threshold_l2: float | None = None, pipeline: FacePipeline | None = None
) -> Verification:
    """Decide whether two photos show one person.

    Where there are several faces, each of the one photo is compared with each of the other, and the nearest
    two count. The default threshold allows for the number of comparisons.

    Args:
        first: RGB uint8 (h, w, 3); or a Pillow image, a path, or the bytes of a file.
        second: Likewise.
        threshold_l2: Largest distance that counts as one person's, 0..2; None: from the encoder's card.
        pipeline: Detector and encoder; None: the default ones.

    Raises:
        PhotoError: A file can't be read, or a photo has no face that is good enough to be compared.
        UsageError: No photo, a threshold outside 0..2, or neither one nor a default.
    """
    pipeline = pipeline or _default_pipeline(os.getpid())
    faces, others = (comparable_faces(pipeline, as_rgb(photo), _name(photo)) for photo in (first, second))
    return compare(pipeline, faces, others, threshold_l2)


def compare(
    pipeline: FacePipeline, faces: Faces, others: Faces, threshold_l2: float | None = None
) -> Verification:
    """Compare the faces of two photos; see `verify`.

    Args:
        pipeline: Whose encoder made their embeddings.
        faces: Of the first photo, at least one; see `comparable_faces`.
        others: Of the second photo, at least one.
        threshold_l2: Largest distance that counts as one person's, 0..2; None: from the encoder's card.

    Raises:
        UsageError: A threshold outside 0..2, or neither one nor a default.
    """
    distances = _distances(faces, others)
    row, column = np.unravel_index(distances.argmin(), distances.shape)
    distance_l2, identity = float(distances[row, column]), card_identity(pipeline.encoder.card)
    threshold_l2 = _threshold(identity, threshold_l2, distances.size)
    strangers = identity.impostors
    return Verification(
        same_person=distance_l2 <= threshold_l2,
        distance_l2=distance_l2,
        threshold_l2=threshold_l2,
        strangers_share=None if strangers is None else strangers.fpir(distance_l2, distances.size),
        first=faces[row],
        second=others[column],
        comparisons=distances.size,
    )


def represent(photo: Photo, *, pipeline: FacePipeline | None = None) -> Faces:
    """Find the faces of a photo and encode them.

    Args:
        photo: RGB uint8 (h, w, 3); or a Pillow image, a path, or the bytes of a file.
        pipeline: Detector and encoder; None: the default ones.

    Returns:
        The faces, most confident first, with `embeddings` float32 (n, 128) of unit length; a row of NaN where
        the landmarks determine no alignment.

    Raises:
        PhotoError: The file can't be read.
        UsageError: No photo.
    """
    return (pipeline or _default_pipeline(os.getpid())).embed(photo)


def find(
    photo: Photo,
    folder: str | os.PathLike[str],
    *,
    threshold_l2: float | None = None,
    pipeline: FacePipeline | None = None,
) -> list[Found]:
    """Find the photos of a folder that show someone of this photo; every call reads the whole folder.

    To search the same photos again and again, use `facepipe batch` or a gallery. Photos of the folder that
    can't be read are passed over with a warning.

    Args:
        photo: RGB uint8 (h, w, 3); or a Pillow image, a path, or the bytes of a file.
        folder: Searched at any depth.
        threshold_l2: Largest distance that counts as one person's, 0..2; None: from the encoder's card, and
            the smaller, the more faces there are in the folder.
        pipeline: Detector and encoder; None: the default ones.

    Returns:
        Faces within the threshold, the nearest first.

    Raises:
        PhotoError: The photo can't be read, or has no face that is good enough to be compared.
        UsageError: No photo, no photos in the folder, a threshold outside 0..2, or neither one nor a default.
    """
    pipeline = pipeline or _default_pipeline(os.getpid())
    wanted = comparable_faces(pipeline, as_rgb(photo), _name(photo))
    found: list[tuple[Path, Face, float]] = []
    for path in find_photos([folder]):
        try:
            faces = pipeline.embed_comparable(read_image(path))
        except PhotoError as error:
            _log.warning("%s", error)
            continue
        if len(faces):
            nearest = _distances(wanted, faces).min(axis=0)
            found += [(path, face, float(l2)) for face, l2 in zip(faces, nearest, strict=True)]
    comparisons = max(1, len(found) * len(wanted))
    limit_l2 = _threshold(card_identity(pipeline.encoder.card), threshold_l2, comparisons)
    near = [Found(path, face, l2, limit_l2) for path, face, l2 in found if l2 <= limit_l2]
    return sorted(near, key=lambda one: one.distance_l2)


def stream(
    gallery: str | Path | PostgresAddress,
    source: str | int = 0,
    *,
    every_s: float = 0.0,
    pipeline: FacePipeline | None = None,
) -> Iterator[tuple[Frame, Faces]]:
    """Name the faces of a webcam or a video, frame by frame, as the frames come.

    Args:
        gallery: Folder of the gallery, or a PostgreSQL URL; of no account where a pipeline is given.
        source: The number of a webcam, or a video file.
        every_s: At most one frame in so many seconds; 0: every frame.
        pipeline: With a gallery; None: the default networks and this gallery.

    Yields:
        A frame, and its faces with their matches.

    Raises:
        GalleryError: The gallery is missing or damaged.
        PhotoError: The video can't be read, or there is no such webcam.
    """
    from facepipe.video import read_frames

    if pipeline is not None:
        for frame in read_frames(source, every_s):
            yield frame, pipeline.identify(frame.rgb)
        return
    with FacePipeline.load(gallery) as loaded:
        yield from stream(gallery, source, every_s=every_s, pipeline=loaded)


@lru_cache(maxsize=1)
def _default_pipeline(process: int) -> FacePipeline:
    """Return the default networks; a forked process, which may not share them, loads its own."""
    return FacePipeline.load()


def comparable_faces(pipeline: FacePipeline, photo: UInt8Array, name: str) -> Faces:
    """The faces of a photo, RGB uint8 (h, w, 3), that are good enough to be compared, with their embeddings.

    Raises:
        PhotoError: There are none; names the photo.
    """
    faces = pipeline.embed_comparable(photo)
    if not len(faces):
        raise PhotoError(
            f"{name}: no face that is good enough to be compared; take a photo of a face of at least "
            f"{NamingRules().min_size_px:.0f} px that is sharp and not turned away"
        )
    return faces


def _name(photo: Photo) -> str:
    return os.fspath(photo) if isinstance(photo, str | os.PathLike) else "photo"


def _distances(faces: Faces, others: Faces) -> FloatArray:
    """Euclidean distances (n, m) of the embeddings of n and m faces."""
    assert faces.embeddings is not None
    assert others.embeddings is not None
    distances: FloatArray = np.linalg.norm(faces.embeddings[:, None] - others.embeddings[None], axis=-1)
    return distances


def _threshold(identity: EncoderIdentity, asked_l2: float | None, comparisons: int) -> float:
    threshold_l2 = identity.default_threshold_l2(comparisons, comparisons) if asked_l2 is None else asked_l2
    if asked_l2 is None and not threshold_l2:
        raise UsageError(f"{identity.name} has no measured threshold: give one")
    require_threshold(threshold_l2)
    return threshold_l2
