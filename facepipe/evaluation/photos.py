"""Accuracy of the whole pipeline, from raw photos to names: people against a gallery."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from facepipe.core.errors import DataError
from facepipe.core.faces import FloatArray
from facepipe.core.files import temporary_folder
from facepipe.enrollment import Outcome, enroll, photos_in_folders
from facepipe.gallery import Gallery
from facepipe.images.reading import read_image
from facepipe.pipeline import FacePipeline, NamingOptions, card_identity


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
        at_thresholds: Rising.
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


def people_result(pipeline: FacePipeline, folder: Path, thresholds_l2: Sequence[float]) -> PeopleResult:
    """Enroll `folder/enroll/<person>/`, then identify `folder/probe/{known,strangers}/<person>/`.

    Args:
        pipeline: Without a gallery of its own.
        folder: See above.
        thresholds_l2: Where to count, beside the gallery's default.

    Raises:
        DataError: A known person is not among the enrolled folders.
    """
    enrolled = photos_in_folders(folder / "enroll")
    with temporary_folder(Path(tempfile.gettempdir())) as temporary:
        path = temporary / "gallery"
        with Gallery.open(path, card_identity(pipeline.encoder.card), create=True) as gallery:
            reports = list(enroll(FacePipeline(pipeline.detector, pipeline.encoder, gallery), enrolled))
            taken = sum(report.outcome is Outcome.ENROLLED for report in reports)
            known = _probes(pipeline, folder / "probe" / "known")
            strangers = _probes(pipeline, folder / "probe" / "strangers")
            if absent := {name for name, _ in known} - {photo.name for photo in enrolled}:
                raise DataError(f"{folder}: {min(absent)} is among the known probes and was not enrolled")
            limits = {*thresholds_l2}
            if gallery.default_threshold_l2 is not None:
                limits.add(gallery.default_threshold_l2)
            counts = tuple(_count(gallery, known, strangers, limit) for limit in sorted(limits))
    without = sum(not len(vectors) for _, vectors in [*known, *strangers])
    return PeopleResult(taken, len(enrolled) - taken, len(known), len(strangers), without, counts)


_Probe = tuple[str, FloatArray]


def _probes(pipeline: FacePipeline, folder: Path) -> list[_Probe]:
    return [(photo.name, _vectors(pipeline, photo.path)) for photo in photos_in_folders(folder)]


def _vectors(pipeline: FacePipeline, photo: Path) -> FloatArray:
    faces = pipeline.embed_comparable(read_image(photo))
    assert faces.embeddings is not None
    return faces.embeddings


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
    margin = NamingOptions().min_margin_l2
    matches = gallery.match(vectors, threshold_l2=threshold_l2, min_margin_l2=margin)
    return {match.name for match in matches if match.name}
