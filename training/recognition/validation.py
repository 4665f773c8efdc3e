"""Same person or not, for the network in training, on the encoder that will serve it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from facepipe.align import MARGINS, cut
from facepipe.encoder import FaceEncoder
from facepipe.evaluation.metrics.verification import pair_distances, pair_photos, verification
from facepipe.evaluation.pair_lists import find_lfw_photos, read_lfw_pairs
from facepipe.facenet.network import FaceNet
from facepipe.training.engine.serving import InMemoryNetwork
from facepipe.training.recognition.config import Architecture, ValidationConfig
from facepipe.training.recognition.crops import DecodedCrops
from facepipe.training.recognition.sources import CropSource, PhotoSource
from facepipe.weights.cards import EmbeddingSpec, InputSpec, WeightCard, WeightFile

_ANY_SCORE = 0.0
"""Every photo of a pair shows somebody: the likeliest face is taken."""


class PairValidator:
    """Measures a network on pairs of photos; "score" is their accuracy.

    Args:
        config: See `ValidationConfig`.
        architecture: Of the networks that will come.
        input_spec: Their preprocessing.
        embedding: Their vectors.
        crop_px: Side of the crops that are made of whole photos.
        cache: Folder for crops.

    Raises:
        DataError: The list of pairs is malformed, or a photo is missing.
    """

    def __init__(
        self,
        config: ValidationConfig,
        architecture: Architecture,
        input_spec: InputSpec,
        embedding: EmbeddingSpec,
        *,
        crop_px: int,
        cache: Path,
    ) -> None:
        assert input_spec.size_px is not None
        self._pairs = read_lfw_pairs(config.pairs)
        photos = tuple(find_lfw_photos(config.images, pair_photos(self._pairs)).values())
        source = (
            CropSource(config.images, photos=photos)
            if config.aligned
            else PhotoSource(config.images, False, crop_px, _ANY_SCORE, photos)
        )
        crops = DecodedCrops(source, cache)
        self._keys = [_key(name) for name in crops.names]
        margin = MARGINS[embedding.alignment]
        self._faces = np.stack([cut(crops.pixels(i), input_spec.size_px, margin) for i in range(len(crops))])
        self._card = WeightCard(
            "training", "encoder", architecture, input_spec, WeightFile("none", None), embedding=embedding
        )

    def __call__(self, network: FaceNet) -> dict[str, float]:
        """The figures of a network, which must be in evaluation mode; all are 0..1."""
        vectors = FaceEncoder(InMemoryNetwork(network), self._card).encode(self._faces)
        measured = pair_distances(self._pairs, dict(zip(self._keys, vectors, strict=True)))
        result = verification(measured)
        tars = {f"tar_at_far_{item.far:g}": item.tar for item in result.tar_at_far if item.resolved}
        return {"pairs_accuracy": result.accuracy, "pairs_auc": result.auc, **tars, "score": result.accuracy}


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return f"{path.parent.name}/{path.stem}"
