"""FaceNet: embeddings of aligned crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from facepipe.align import TEMPLATES, Alignment, align_faces, warp_faces
from facepipe.core.errors import WeightsError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.images.photo_input import Photo
from facepipe.runtime.engines import (
    Network,
    RuntimeChoice,
    choose_runtime,
    open_network,
    require_shapes,
    to_planes,
)
from facepipe.weights.cards import EmbeddingSpec, WeightCard
from facepipe.weights.registry import DEFAULT_ENCODER, load_card

_BATCH = 32
_BATCH_IN_CACHE = 4
"""Crops a call of ONNX Runtime or OpenVINO, whose maps then stay in the processor's cache: a face takes
0.86 of the time that it takes among 16 (docs/research/speed.md). torch is faster with more."""


class FaceEncoder:
    """Encodes faces. Load once, use for many photos; threads may share it, forked processes may not.

    Args:
        network: A loaded FaceNet.
        card: Its card: preprocessing, input size, alignment, dimension.
        batch: Crops a call of the network, at most.

    Attributes:
        crop: Landmark template and side in pixels of the crops that it wants.
    """

    def __init__(self, network: Network, card: WeightCard, batch: int = _BATCH) -> None:
        if card.kind != "encoder" or card.embedding is None or card.input.size_px is None:
            raise WeightsError(f"{card.name} is not an encoder with a fixed input size")
        if card.embedding.alignment not in TEMPLATES:
            raise WeightsError(
                f"{card.name}: its card names an alignment that is not known, {card.embedding.alignment!r}; "
                f"known are {', '.join(TEMPLATES)}"
            )
        self._network, self.card, self._batch = network, card, batch
        self.embedding: EmbeddingSpec = card.embedding
        self.input_size_px: int = card.input.size_px
        self.crop = self.embedding.alignment, self.input_size_px

    @classmethod
    def load(cls, weights: str = DEFAULT_ENCODER, runtime: RuntimeChoice | None = None) -> Self:
        """Open a weight by name or card path.

        Raises:
            WeightsError: Unknown, damaged, or not an encoder.
        """
        weight = load_card(weights)
        if weight.card.kind != "encoder":
            raise WeightsError(f"{weight.card.name} is a {weight.card.kind}, not an encoder")
        runtime = runtime or choose_runtime()
        batch = _BATCH if runtime.runtime == "torch" else _BATCH_IN_CACHE
        return cls(open_network(weight, runtime), weight.card, batch)

    def align(self, photo: Photo, faces: Faces) -> UInt8Array:
        """Warp the faces of a photo as this encoder wants them: RGB uint8 (n, size, size, 3)."""
        return align_faces(photo, faces.landmarks, *self.crop)

    def warp(self, photo: UInt8Array, alignments: Sequence[Alignment]) -> UInt8Array:
        """As `align`, of faces in an RGB uint8 photo (H, W, 3) whose alignments are known."""
        return warp_faces(photo, alignments, *self.crop)

    def encode(self, crops: UInt8Array) -> FloatArray:
        """Encode aligned RGB crops uint8 (n, size, size, 3): float32 (n, dimensions) of unit length."""
        size = self.input_size_px
        if crops.shape[1:] != (size, size, 3) or crops.dtype != np.uint8:
            raise ValueError(f"expected uint8 crops (n, {size}, {size}, 3), got {crops.dtype} {crops.shape}")
        embeddings = [self._encode(crops[at : at + self._batch]) for at in range(0, len(crops), self._batch)]
        empty = np.zeros((0, self.embedding.dimensions), np.float32)
        return np.concatenate([empty, *embeddings])

    def embed(self, photo: Photo, faces: Faces) -> Faces:
        """Add the embeddings of the faces of a photo."""
        return faces.with_embeddings(self.encode(self.align(photo, faces)))

    def _encode(self, crops: UInt8Array) -> FloatArray:
        size = self.input_size_px
        batch = np.empty((len(crops), 3, size, size), np.float32)
        for crop, planes in zip(crops, batch, strict=True):
            to_planes(crop, self.card.input, planes)
        embeddings = self._run(batch)
        if self.embedding.flip_average:
            embeddings = self._unit(embeddings + self._run(np.ascontiguousarray(batch[..., ::-1])))
        return embeddings

    def _run(self, batch: FloatArray) -> FloatArray:
        outputs = self._network.run(batch)
        require_shapes(self.card, outputs, [(len(batch), self.embedding.dimensions)])
        return self._unit(outputs[0])

    def _unit(self, embeddings: FloatArray) -> FloatArray:
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise WeightsError(f"{self.card.name}: the network gives embeddings that are zero or not finite")
        unit: FloatArray = embeddings / lengths
        return unit
