"""Accuracy of an encoder: pairs, strangers, identification, sizes and damage, on faces found once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from facepipe.core.errors import DataError, OutputError
from facepipe.core.faces import FloatArray
from facepipe.core.files import SHARED_FILE_MODE, atomic_write_bytes
from facepipe.evaluation.arrays import Float64Array
from facepipe.evaluation.groups import GroupResult, by_group
from facepipe.evaluation.impostors import GalleryCheck, LabelledVectors, check_galleries
from facepipe.evaluation.main_faces import MainFaces, Watch, find_main_faces, read_crops
from facepipe.evaluation.metrics.distances import roc
from facepipe.evaluation.metrics.identification import IdentificationResult, identification
from facepipe.evaluation.metrics.verification import (
    PairDistances,
    PhotoPair,
    TarAtFar,
    VerificationResult,
    pair_distances,
    true_accepts,
    verification,
)
from facepipe.evaluation.pair_lists import PairList
from facepipe.evaluation.robustness import RobustnessRow, robustness
from facepipe.gallery.impostors import DEFAULT_FPIR, FARTHEST_L2, MIN_PEOPLE, FacePairs, ImpostorModel
from facepipe.images.finding import find_photos
from facepipe.pipeline import FacePipeline
from facepipe.weights.registry import Weight

EYE_BINS_PX = (0, 16, 24, 32, 48, 64, 96, 1_000_000)
"""Edges of the bins of `EncoderEvaluation.by_size`: distance between the eyes in the photo."""

HISTOGRAM_STEP_L2 = 0.05
_ROC_FARS = np.logspace(-6, 0, 61)
_FALLBACK_TEMPLATES = 100


@dataclass(frozen=True, slots=True)
class SizeBin:
    """FacePairs whose smaller face has low_px <= distance between the eyes < high_px.

    Attributes:
        low_px: See above.
        high_px: See above.
        genuines: FacePairs of one person.
        impostors: FacePairs of two.
        true_accept_rate: Share of the former within the threshold that is best on all pairs; None: no pair.
        false_accept_rate: Share of the latter likewise.
    """

    low_px: int
    high_px: int
    genuines: int
    impostors: int
    true_accept_rate: float | None
    false_accept_rate: float | None


@dataclass(frozen=True, slots=True)
class AllPairsFigures:
    """All pairs of the listed photos, many more than the listed pairs, to measure rare errors on.

    Attributes:
        genuines: FacePairs of photos of one person.
        impostors: FacePairs of photos of two.
        tar_at_far: True accepts over all pairs.
        roc_far: False-accept rates, rising.
        roc_tar: True-accept rates there.
        histogram_l2: Left edges of steps of `HISTOGRAM_STEP_L2`.
        genuine_share: Share of the genuine pairs in each step.
        impostor_share: Share of the others.
    """

    genuines: int
    impostors: int
    tar_at_far: tuple[TarAtFar, ...]
    roc_far: tuple[float, ...]
    roc_tar: tuple[float, ...]
    histogram_l2: tuple[float, ...]
    genuine_share: tuple[float, ...]
    impostor_share: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncoderEvaluation:
    """Accuracy of one encoder.

    Attributes:
        encoder: Name of the weight.
        list_name: The list of pairs.
        setting: Where the faces come from, in words.
        pairs: The protocol of the pairs.
        groups: The groups of the list; empty: none.
        all_pairs: Of the same photos; None: no two are of one person, or none of two, or the list names no
            people.
        by_size: The pairs by the size of the smaller face; empty for crops.
        impostors: The model that thresholds are made of; None: too few people, or not named.
        galleries: Rates of strangers named at its thresholds; empty: too few people, or not named.
        enrolled_per_person: Photos enrolled in `identification`; people with no more are strangers there.
        identification: Open set, among the photos of the pairs; None: nobody has more photos, or not named.
        people: Open set, among the photos of `--people`; None: not asked for.
        robustness: The pairs after damage; empty: not asked for.
    """

    encoder: str
    list_name: str
    setting: str
    pairs: VerificationResult
    groups: tuple[GroupResult, ...]
    all_pairs: AllPairsFigures | None
    by_size: tuple[SizeBin, ...]
    impostors: ImpostorModel | None
    galleries: tuple[GalleryCheck, ...]
    enrolled_per_person: int
    identification: IdentificationResult | None
    people: IdentificationResult | None
    robustness: tuple[RobustnessRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; "impostors" as cards hold it."""
        return {**asdict(self), "impostors": self.impostors and self.impostors.to_dict()}


def evaluate_encoder(
    pipeline: FacePipeline,
    listed: PairList,
    *,
    people: Path | None = None,
    crops: bool = False,
    enroll: int = 1,
    damaged: bool = False,
    watch: Watch[str] = iter,
) -> EncoderEvaluation:
    """Measure an encoder. Faces are found once in every photo, and once more in the turned one if `damaged`.

    Args:
        pipeline: Detector and encoder.
        listed: Pairs of photos, see `facepipe.evaluation.pair_lists`.
        people: Photos as enroll/PERSON/, probe/known/PERSON/ and probe/strangers/PERSON/.
        crops: The photos are aligned crops already.
        enroll: Photos of a person of the pairs that are enrolled.
        damaged: Measure the pairs again after each kind of damage.
        watch: Over the photos.

    Raises:
        DataError: No photo has a face.
        PhotoError: A photo can't be read.
    """
    faces = _faces(pipeline, listed.photos, crops, watch)
    vectors = faces.vectors(pipeline.encoder)
    if not vectors:
        path = next(iter(listed.photos.values()))
        raise DataError(f"{listed.name}: expected photos with faces, found none, as in {path}")
    distances = pair_distances(listed.pairs, vectors)
    verified = verification(distances)
    best_l2 = verified.best_threshold_l2
    labelled = LabelledVectors.of(vectors, listed.people) if listed.people else None
    all_pairs = labelled.all_pairs() if labelled else None
    setting = _setting(pipeline, crops)
    source = f"{listed.name}: {setting}, {pipeline.encoder.card.name}"
    model = _impostors(all_pairs, best_l2, source) if all_pairs else None
    rows = robustness(pipeline, listed.pairs, faces, best_l2, None if crops else listed.photos, watch)
    return EncoderEvaluation(
        encoder=pipeline.encoder.card.name,
        list_name=listed.name,
        setting=setting,
        pairs=verified,
        groups=by_group(listed.pairs, vectors, best_l2),
        all_pairs=_all_pairs_figures(all_pairs) if all_pairs else None,
        by_size=() if crops else _by_size(listed.pairs, distances, faces, best_l2),
        impostors=model,
        galleries=check_galleries(labelled) if labelled else (),
        enrolled_per_person=enroll,
        identification=_open_set(listed.people, vectors, enroll, model) if listed.people else None,
        people=_enrolled_people(pipeline, people, crops, model, watch) if people else None,
        robustness=tuple(rows) if damaged else (),
    )


def write_card(weight: Weight, evaluations: Sequence[EncoderEvaluation]) -> Path:
    """Write strangers' distances, a threshold and the main figures on the encoder's card; return its path.

    The fingerprint stays: galleries of the encoder remain valid.

    Args:
        weight: The encoder's.
        evaluations: On one or more lists of pairs; the strangers are those of the first.

    Raises:
        DataError: There were too few people for a model, or the figures are another encoder's.
        OutputError: The card can't be written.
    """
    card, path = weight.card, weight.folder / f"{weight.card.name}.json"
    evaluation = evaluations[0]
    if evaluation.impostors is None or card.embedding is None or card.name != evaluation.encoder:
        raise DataError(
            f"{path}: these figures of {evaluation.encoder} can't be put on it: too few people, or the list "
            f"of pairs names none? ({evaluation.list_name}; of several lists the first has to)"
        )
    threshold_l2, source = _fallback_threshold(evaluation.impostors)
    embedding = replace(
        card.embedding,
        threshold_l2=threshold_l2,
        threshold_source=source,
        impostors=evaluation.impostors.to_dict(),
    )
    measured = {**card.measured, **card_figures(evaluations)}
    try:
        text = replace(card, embedding=embedding, measured=measured).to_json()
        atomic_write_bytes(path, text.encode(), SHARED_FILE_MODE)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror}); work on a copy") from error
    return path


def _fallback_threshold(model: ImpostorModel) -> tuple[float, str]:
    """Return the threshold for use without the model, and how it was measured."""
    exact_l2 = model.threshold_l2(DEFAULT_FPIR, _FALLBACK_TEMPLATES)
    low_l2, high_l2 = model.interval_l2(DEFAULT_FPIR, _FALLBACK_TEMPLATES)
    return round(exact_l2, 2), (
        f"{DEFAULT_FPIR:.0%} of strangers named by a gallery of {_FALLBACK_TEMPLATES} templates: "
        f"{exact_l2:.3f} (95%: {low_l2:.3f} to {high_l2:.3f}), from the distances of strangers in "
        "`impostors`, which give galleries a threshold by their size; this one is the fallback."
    )


def card_figures(evaluations: Sequence[EncoderEvaluation]) -> dict[str, Any]:
    """Return the figures for a card, each with its setting: pairs by list, all others of the first list."""
    evaluation = evaluations[0]
    record: dict[str, Any] = {
        "verification": {each.list_name: _verification_figures(each) for each in evaluations},
        "strangers_named_of_1_percent_wanted": {
            str(check.templates): round(check.measured, 4) for check in evaluation.galleries
        },
    }
    if evaluation.robustness:
        record["robustness"] = {
            row.corruption: {
                "accuracy": round(row.accuracy, 4),
                "at_the_clean_threshold": round(row.accuracy_at_clean, 4),
                "tar_at_far": _rates(row.tar_at_far),
            }
            for row in evaluation.robustness
        }
    return record


def _verification_figures(evaluation: EncoderEvaluation) -> dict[str, Any]:
    pairs = evaluation.pairs
    return {
        "setting": f"{pairs.pairs} pairs in {len(pairs.folds)} folds; {evaluation.setting}",
        "accuracy": round(pairs.accuracy, 4),
        "accuracy_error": pairs.accuracy_error and round(pairs.accuracy_error, 4),
        "tar_at_far": _rates(pairs.tar_at_far),
        "tar_at_far_all_pairs": evaluation.all_pairs and _rates(evaluation.all_pairs.tar_at_far),
    }


def _rates(rows: Sequence[TarAtFar]) -> dict[str, float]:
    return {f"{row.far:g}": round(row.tar, 4) for row in rows if row.resolved}


def _setting(pipeline: FacePipeline, crops: bool) -> str:
    return "aligned crops" if crops else f"whole photos, faces found by {pipeline.detector.card.name}"


def _faces(pipeline: FacePipeline, photos: Mapping[str, Path], crops: bool, watch: Watch[str]) -> MainFaces:
    if crops:
        return read_crops(pipeline.encoder, photos, watch)
    return find_main_faces(pipeline, photos, watch)


def _impostors(measured: FacePairs, best_threshold_l2: float, source: str) -> ImpostorModel | None:
    if len(np.unique(measured.impostor_people)) < MIN_PEOPLE:
        return None
    return ImpostorModel.measured(
        measured.impostor_l2,
        measured.impostor_people,
        max_threshold_l2=round(best_threshold_l2, 4),
        source=source,
    )


def _all_pairs_figures(measured: FacePairs) -> AllPairsFigures | None:
    genuine, impostors = measured.genuine_l2, measured.impostor_l2
    if not len(genuine) or not len(impostors):
        return None
    curve = roc(genuine, impostors)
    places = np.searchsorted(curve.false_accept_rate, _ROC_FARS, side="right") - 1
    fars, tars = _ROC_FARS[places >= 0], curve.true_accept_rate[places[places >= 0]]
    edges = np.arange(0, FARTHEST_L2 + HISTOGRAM_STEP_L2 / 2, HISTOGRAM_STEP_L2)
    return AllPairsFigures(
        genuines=len(genuine),
        impostors=len(impostors),
        tar_at_far=true_accepts(genuine, impostors),
        roc_far=tuple(fars.tolist()),
        roc_tar=tuple(tars.tolist()),
        histogram_l2=tuple(edges[:-1].round(6).tolist()),
        genuine_share=_histogram(genuine, edges),
        impostor_share=_histogram(impostors, edges),
    )


def _histogram(distances_l2: Float64Array, edges: Float64Array) -> tuple[float, ...]:
    return tuple((np.histogram(distances_l2, edges)[0] / len(distances_l2)).tolist())


def _by_size(
    pairs: Sequence[PhotoPair], measured: PairDistances, faces: MainFaces, threshold_l2: float
) -> tuple[SizeBin, ...]:
    eyes = dict(zip(faces.keys, faces.eye_distances_px.tolist(), strict=True))
    # A photo without a face has no size: its pairs are in no bin.
    smaller = np.array([min(eyes.get(p.first, -1), eyes.get(p.second, -1)) for p in pairs])
    accepted, bins = measured.distances_l2 <= threshold_l2, []
    for low, high in pairwise(EYE_BINS_PX):
        inside = (smaller >= low) & (smaller < high)
        genuine, impostor = (accepted[inside & (measured.same_person == same)] for same in (True, False))
        rates = (float(rows.mean()) if len(rows) else None for rows in (genuine, impostor))
        bins.append(SizeBin(low, high, len(genuine), len(impostor), *rates))
    return tuple(bins)


def _open_set(
    people: Mapping[str, str], vectors: Mapping[str, FloatArray], enroll: int, model: ImpostorModel | None
) -> IdentificationResult | None:
    """Enroll the first photos of each person, probe with the others; who has no others is a stranger."""
    by_person: dict[str, list[str]] = {}
    for key, person in people.items():
        by_person.setdefault(person, []).append(key)
    known = {person: keys for person, keys in by_person.items() if len(keys) > enroll}
    if not known:
        return None
    enrolled = [key for keys in known.values() for key in keys[:enroll]]
    probes = [key for person, keys in by_person.items() for key in keys[enroll if person in known else 0 :]]
    return _identified(vectors, people, enrolled, probes, model)


def _enrolled_people(
    pipeline: FacePipeline, folder: Path, crops: bool, model: ImpostorModel | None, watch: Watch[str]
) -> IdentificationResult:
    parts = {name: _photos_of(folder / name) for name in ("enroll", "probe/known", "probe/strangers")}
    photos = {key: path for part in parts.values() for key, path in part.items()}
    vectors = _faces(pipeline, photos, crops, watch).vectors(pipeline.encoder)
    people = {key: path.parent.name for key, path in photos.items()}
    probes = [*parts["probe/known"], *parts["probe/strangers"]]
    return _identified(vectors, people, list(parts["enroll"]), probes, model)


def _photos_of(folder: Path) -> dict[str, Path]:
    """Keys "<folder>/<person>/<file>"."""
    return {f"{path.parent.name}/{folder.name}-{path.name}": path for path in find_photos([folder])}


def _identified(
    vectors: Mapping[str, FloatArray],
    people: Mapping[str, str],
    enrolled: Sequence[str],
    probes: Sequence[str],
    model: ImpostorModel | None,
) -> IdentificationResult:
    """By keys of photos; counted at the model's threshold for the gallery's size."""
    templates = [key for key in enrolled if key in vectors]
    if not templates:
        raise DataError("expected photos with a face to enroll, found none")
    nobody = np.full_like(vectors[templates[0]], np.nan)
    known, names = {people[key] for key in enrolled}, [people[key] for key in probes]
    return identification(
        np.stack([vectors[key] for key in templates]),
        [people[key] for key in templates],
        np.stack([vectors.get(key, nobody) for key in probes]),
        [name if name in known else None for name in names],
        [model.threshold_l2(DEFAULT_FPIR, len(templates))] if model else [],
    )
