"""Accuracy on bad photos: the same pairs, measured again after known damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from facepipe.core.faces import UInt8Array
from facepipe.evaluation.main_faces import MainFaces, Watch, find_main_faces
from facepipe.evaluation.metrics.verification import PhotoPair, TarAtFar, pair_distances, verification
from facepipe.images.corruption import CorruptionConfig, corrupt
from facepipe.pipeline import FacePipeline

BLUR = 2 / 112
"""Standard deviation of the blur, as a share of the crop's side: two pixels of the usual crop."""
TURN_DEG = 15.0


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """The pairs, both photos of each damaged alike.

    Attributes:
        corruption: In words.
        failed_photos: In which no face was found any more.
        accuracy: As `VerificationResult`; thresholds are chosen on the damaged pairs.
        accuracy_error: Likewise.
        accuracy_at_clean: At the fixed threshold that is best for the undamaged pairs.
        tar_at_far: As `VerificationResult`.
    """

    corruption: str
    failed_photos: int
    accuracy: float
    accuracy_error: float | None
    accuracy_at_clean: float
    tar_at_far: tuple[TarAtFar, ...]


def robustness(
    pipeline: FacePipeline,
    pairs: tuple[PhotoPair, ...],
    clean: MainFaces,
    clean_threshold_l2: float,
    photos: Mapping[str, Path] | None,
    watch: Watch[str] = iter,
) -> Iterator[RobustnessRow]:
    """Measure the pairs once per kind of damage.

    Args:
        pipeline: With the encoder to measure.
        pairs: Of photos by key.
        clean: Their faces, found in the undamaged photos: what is shrunk, compressed or blurred is the
            aligned crop, so these rows say nothing of the detector.
        clean_threshold_l2: Best for the undamaged pairs.
        photos: Files by key, to be turned before faces are looked for; None: crops, which are not turned.
        watch: Over the photos that are turned.
    """

    def measured(
        name: str, faces: MainFaces, harm: Callable[[UInt8Array], UInt8Array] | None
    ) -> RobustnessRow:
        distances = pair_distances(pairs, faces.vectors(pipeline.encoder, harm))
        result = verification(distances)
        right = (distances.distances_l2 <= clean_threshold_l2) == distances.same_person
        return RobustnessRow(
            name,
            result.failed_photos,
            result.accuracy,
            result.accuracy_error,
            float(right.mean()),
            result.tar_at_far,
        )

    for name, harm in damages().items():
        yield measured(name, clean, harm)
    if photos is not None:
        turned = find_main_faces(pipeline, photos, watch, TURN_DEG)
        yield measured(f"turned by {TURN_DEG:g} degrees", turned, None)


def damages() -> dict[str, Callable[[UInt8Array], UInt8Array]]:
    """Return the kinds of damage to aligned crops by name; all but the blur are the trainer's."""
    return {
        **{f"{px} px": _only(low_resolution_share=1.0, low_resolution_px=(px, px)) for px in (64, 32, 24)},
        "JPEG quality 20": _only(jpeg_share=1.0, jpeg_quality=(20, 20)),
        "blur of 2 px in 112": _blurred,
        "grayscale": _only(gray_share=1.0),
    }


def _only(**chosen: float | tuple[int, int]) -> Callable[[UInt8Array], UInt8Array]:
    nothing = {name: 0.0 for name in CorruptionConfig.__dataclass_fields__ if name.endswith("_share")}
    config = CorruptionConfig(**{**nothing, **chosen})  # type: ignore[arg-type]
    return lambda crop: corrupt(crop, config, np.random.default_rng(0))


def _blurred(crop: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), BLUR * crop.shape[0]), np.uint8)
