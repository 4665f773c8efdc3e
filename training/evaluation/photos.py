"""Accuracy of the whole way, from raw photos to names: pairs of photos, and people against a gallery."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.detector import FaceDetector
from facepipe.enrolment import Outcome, enrol, photos_in_folders
from facepipe.errors import DataError
from facepipe.faces import Faces, FloatArray
from facepipe.images import DEFAULT_MAX_PIXELS, find_photos, read_image
from facepipe.pipeline import FacePipeline, card_identity
from facepipe.quality import NamingRules, recognisable
from gallery import Gallery
from training.evaluation.arrays import Float64Array, IntArray
from training.evaluation.distances import threshold_for_far
from training.evaluation.verification import find_photos as find_pair_photos
from training.evaluation.verification import pair_distances, pair_photos, read_pairs, verification
from training.evaluation.wider import WiderGroundTruth, WiderResult, wider_ap, wider_key

_FALSE_ACCEPT_RATES = (1e-3, 1e-4, 1e-5)


@dataclass(frozen=True, slots=True)
class PeopleAtThreshold:
    """Counts of photos at one threshold; a photo counts as named wrong as soon as one face in it is.

    Attributes:
        threshold_l2: Largest distance at which a face is named.
        right: Known photos with their person named, and nobody else.
        wrong: Known photos with another name.
        strangers_named: Photos of strangers with any name.
    """

    threshold_l2: float
    right: int
    wrong: int
    strangers_named: int


@dataclass(frozen=True, slots=True)
class PeopleResult:
    """Identification of whole photos against a gallery enrolled from whole photos.

    Attributes:
        enrolled: Photos taken for the gallery.
        refused: Photos that the rules for enrolling refused, or that could not be read.
        known: Probe photos of enrolled people.
        strangers: Probe photos of others.
        without_face: Probe photos in which no face was found that is good enough to be compared.
        at_thresholds: In the order asked for.
    """

    enrolled: int
    refused: int
    known: int
    strangers: int
    without_face: int
    at_thresholds: tuple[PeopleAtThreshold, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def wider_result(
    detector: FaceDetector, images: Path, ground_truth: Path, max_pixels: int = DEFAULT_MAX_PIXELS
) -> WiderResult:
    """WIDER FACE's protocol on the photos in `images`, any part of the validation set as EVENT/NAME.

    Raises:
        DataError: The ground truth is missing, or a photo is not in it.
    """
    truth = WiderGroundTruth.load(ground_truth)
    detections = {}
    for path in find_photos([images]):
        faces = detector.detect(read_image(path, max_pixels=max_pixels))
        detections[wider_key(path)] = np.concatenate([faces.boxes_xyxy, faces.scores[:, None]], axis=1)
    return wider_ap(truth, detections)


def pairs_result(pipeline: FacePipeline, pairs: Path, images: Path) -> dict[str, Any]:
    """LFW's protocol from raw photos, and thresholds by false-accept rate over all couples of strangers.

    Raises:
        DataError: The list of pairs is malformed, or a photo is missing.
    """
    listed = read_pairs(pairs)
    vectors = embed_principal_faces(pipeline, find_pair_photos(images, pair_photos(listed)))
    result = verification(pair_distances(listed, vectors)).to_dict()
    distances, people = _strangers(vectors)
    result["strangers"] = [asdict(threshold_for_far(distances, far, people)) for far in _FALSE_ACCEPT_RATES]
    return result


def _strangers(vectors: Mapping[str, FloatArray]) -> tuple[Float64Array, IntArray]:
    """Distances (n,) of all couples of photos of different people, and those people (n, 2)."""
    people = np.unique([key.rsplit("/", 1)[0] for key in vectors], return_inverse=True)[1]
    matrix = np.stack(list(vectors.values())).astype(np.float64)
    first, second = np.nonzero(np.triu(people[:, None] != people))
    cosines = (matrix @ matrix.T)[first, second]
    return np.sqrt(np.clip(2 - 2 * cosines, 0, None)), np.stack([people[first], people[second]], axis=1)


def embed_principal_faces(pipeline: FacePipeline, photos: Mapping[str, Path]) -> dict[str, FloatArray]:
    """The vector of the main face of each photo; a photo without a face is left out."""
    vectors: dict[str, FloatArray] = {}
    for key, path in photos.items():
        photo = read_image(path)
        faces = principal_face(pipeline.detect(photo), photo.shape[1], photo.shape[0])
        if len(faces):
            embedded = pipeline.encoder.embed(photo, faces).embeddings
            assert embedded is not None
            vectors[key] = embedded[0]
    return vectors


def principal_face(faces: Faces, width_px: int, height_px: int) -> Faces:
    """The one face that the photo is of: large and near the centre (size less distance)."""
    if not len(faces):
        return faces
    centres = (faces.boxes_xyxy[:, :2] + faces.boxes_xyxy[:, 2:]) / 2
    distance = np.hypot(*(centres - (width_px / 2, height_px / 2)).T)
    return faces.select([int(np.argmax(faces.sizes_px - distance))])


def people_result(pipeline: FacePipeline, folder: Path, thresholds_l2: Sequence[float]) -> PeopleResult:
    """Enroll `folder/enroll/<person>/`, then identify `folder/probe/{known,strangers}/<person>/`.

    Args:
        pipeline: Without a gallery of its own.
        folder: See above.
        thresholds_l2: Where to count.

    Raises:
        DataError: A known person is not among the enrolled folders.
    """
    enrolled = photos_in_folders(folder / "enroll")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "gallery"
        with Gallery.open(path, card_identity(pipeline.encoder.card), create=True) as gallery:
            reports = list(enrol(FacePipeline(pipeline.detector, pipeline.encoder, gallery), enrolled))
            taken = sum(report.outcome is Outcome.ENROLLED for report in reports)
            known = _probes(pipeline, folder / "probe" / "known")
            strangers = _probes(pipeline, folder / "probe" / "strangers")
            if absent := {name for name, _ in known} - {photo.name for photo in enrolled}:
                raise DataError(f"{folder}: {min(absent)} is among the known probes and was not enrolled")
            counts = tuple(_count(gallery, known, strangers, limit) for limit in thresholds_l2)
    without = sum(not len(vectors) for _, vectors in [*known, *strangers])
    return PeopleResult(taken, len(enrolled) - taken, len(known), len(strangers), without, counts)


_Probe = tuple[str, FloatArray]


def _probes(pipeline: FacePipeline, folder: Path) -> list[_Probe]:
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    return [(person.name, _vectors(pipeline, photo)) for person in people for photo in find_photos([person])]


def _vectors(pipeline: FacePipeline, photo: Path) -> FloatArray:
    image = read_image(photo)
    faces = pipeline.embed(image)
    assert faces.embeddings is not None
    return faces.embeddings[recognisable(image, faces)]


def _count(
    gallery: Gallery, known: Iterable[_Probe], strangers: Iterable[_Probe], threshold_l2: float
) -> PeopleAtThreshold:
    right = wrong = named = 0
    for person, vectors in known:
        names = _names(gallery, vectors, threshold_l2)
        wrong += bool(names - {person})
        right += names == {person}
    for _, vectors in strangers:
        named += bool(_names(gallery, vectors, threshold_l2))
    return PeopleAtThreshold(threshold_l2, right, wrong, named)


def _names(gallery: Gallery, vectors: FloatArray, threshold_l2: float) -> set[str]:
    margin = NamingRules().min_margin_l2
    matches = gallery.match(vectors, threshold_l2=threshold_l2, min_margin_l2=margin)
    return {match.name for match in matches if match.name}
