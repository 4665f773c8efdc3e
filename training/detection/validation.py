"""Average precision of a network in training, as the product's detector runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from facepipe.core.errors import DataError, PhotoError
from facepipe.detector import DetectorOptions, FaceDetector
from facepipe.evaluation.arrays import Float64Array
from facepipe.evaluation.detector import NMS_IOU, SCORE_THRESHOLD, scored_boxes
from facepipe.evaluation.labels import LabelledPhoto, read_labels
from facepipe.evaluation.metrics.detection import PrecisionRecall, labelled_ap
from facepipe.evaluation.metrics.wider import WiderGroundTruth, wider_ap, wider_key
from facepipe.images.reading import read_image
from facepipe.retinaface.network import RetinaFace
from facepipe.training.detection.config import Architecture, ValidationConfig
from facepipe.training.detection.focus import focus_of
from facepipe.training.engine.serving import InMemoryNetwork
from facepipe.training.engine.stream import naming
from facepipe.weights.cards import AnchorSpec, InputSpec, WeightCard, WeightFile


class Validator:
    """Measures a network on labelled photos; its "score" chooses the best checkpoint.

    With WIDER FACE's ground truth the figures are "easy", "medium" and "hard", and the score is their mean;
    else there is one, "ap". All are 0..1.

    Args:
        config: See `ValidationConfig`.
        architecture: Of the networks to measure.
        input_spec: Their preprocessing.
        anchors: Their anchors.
        held_out: Photos to measure on where `config` names none; those that can't be read are passed over.

    Attributes:
        photos: That it measures on.
        curves: The latest precision-recall curves, by their names; empty before the first measurement.

    Raises:
        DataError: Labels or ground truth are missing or damaged, or no photo that is held out can be read.
    """

    def __init__(
        self,
        config: ValidationConfig,
        architecture: Architecture,
        input_spec: InputSpec,
        anchors: AnchorSpec,
        held_out: Sequence[LabelledPhoto] = (),
    ) -> None:
        self._config = config
        photos = read_labels(config.photos, config.labels) if config.photos else held_out
        self.photos = evenly(photos, config.limit)
        if config.photos is None:
            self.photos = _readable(self.photos)
        self.curves: Mapping[str, PrecisionRecall] = {}
        self._truth = WiderGroundTruth.load(config.ground_truth) if config.ground_truth else None
        self._spec = (architecture, input_spec, anchors)

    def __call__(self, network: RetinaFace) -> dict[str, float]:
        """Measure a network, which must be in evaluation mode."""
        options = DetectorOptions(SCORE_THRESHOLD, NMS_IOU["original"], self._config.max_side)
        detector = network_detector(network, *self._spec, options)
        return self.measured([self._found(detector, photo.path) for photo in self.photos])

    def measured(self, found: Sequence[Float64Array]) -> dict[str, float]:
        """Return the figures of detections, (n, 5) for each of the photos."""
        if self._truth is None:
            self.curves = labelled_ap(self.photos, found, self._config.min_face_px).curves
            ap = self.curves["labelled"].ap
            return {} if ap is None else {"ap": ap, "score": ap}
        keys = [wider_key(photo.path) for photo in self.photos]
        self.curves = wider_ap(self._truth, dict(zip(keys, found, strict=True))).curves
        known = {name: curve.ap for name, curve in self.curves.items() if curve.ap is not None}
        return {**known, "score": sum(known.values()) / max(1, len(known))}

    @staticmethod
    def _found(detector: FaceDetector, photo: Path) -> Float64Array:
        with naming(str(photo)):
            return scored_boxes(detector.detect(read_image(photo)))


def network_detector(
    network: RetinaFace,
    architecture: Architecture,
    input_spec: InputSpec,
    anchors: AnchorSpec,
    options: DetectorOptions,
) -> FaceDetector:
    """Return a detector that runs a network in memory."""
    card = WeightCard(
        "training",
        "detector",
        architecture,
        input_spec,
        WeightFile("none", None),
        anchors=anchors,
        focus=focus_of(network),
    )
    return FaceDetector(InMemoryNetwork(network), card, options)


def _readable(photos: Sequence[LabelledPhoto]) -> list[LabelledPhoto]:
    """Leave out photos that can't be read: the trainer passes over them too."""
    readable, error = [], None
    for photo in photos:
        try:
            read_image(photo.path)
            readable.append(photo)
        except PhotoError as reason:
            error = reason
    if not readable:
        raise DataError(f"no photo that is held out to validate on can be read, such as {error}")
    return readable


def evenly(photos: Sequence[LabelledPhoto], limit: int | None) -> list[LabelledPhoto]:
    """Select at most `limit` of the photos, evenly spread."""
    if limit is None or limit >= len(photos):
        return list(photos)
    return [photos[i * len(photos) // limit] for i in range(limit)]
