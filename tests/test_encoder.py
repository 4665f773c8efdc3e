"""Vectors of faces: unit length, the same alone and in company, and near for the same person only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from facepipe.core.errors import LandmarkError, WeightsError
from facepipe.core.faces import Faces, FloatArray, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.runtime.engines import choose_runtime, open_network
from facepipe.weights.cards import EmbeddingSpec
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, load_card


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    return FaceEncoder.load(runtime=choose_runtime(threads=1))


@pytest.fixture(scope="module")
def faces(astronaut: UInt8Array) -> Faces:
    return FaceDetector.load(runtime=choose_runtime(threads=1)).detect(astronaut).select([0])


@pytest.fixture(scope="module")
def crop(encoder: FaceEncoder, astronaut: UInt8Array, faces: Faces) -> UInt8Array:
    aligned: UInt8Array = encoder.align(astronaut, faces)
    assert aligned.shape == (1, 112, 112, 3)
    return aligned


def variant(encoder: FaceEncoder, **changes: Any) -> FaceEncoder:
    """The same network under a card that says something else."""
    return FaceEncoder(encoder._network, replace(encoder.card, **changes))


def distance(first: FloatArray, second: FloatArray) -> float:
    return float(np.linalg.norm(first - second))


def test_vectors_are_float32_of_unit_length(encoder: FaceEncoder, crop: UInt8Array) -> None:
    random = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), np.uint8)
    vectors = encoder.encode(np.concatenate([crop, random, np.zeros_like(crop)]))
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, encoder.embedding.dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_any_number_of_crops_gives_the_same_vectors(encoder: FaceEncoder) -> None:
    """10 crops are three calls of the network."""
    crops = np.random.default_rng(1).integers(0, 255, (10, 112, 112, 3), np.uint8)
    together = encoder.encode(crops)
    some = [0, 3, 4, 7, 8, 9]
    alone = np.concatenate([encoder.encode(crops[i : i + 1]) for i in some])
    np.testing.assert_allclose(together[some], alone, atol=1e-4)


def test_no_crops(encoder: FaceEncoder, astronaut: UInt8Array) -> None:
    assert encoder.encode(np.zeros((0, 112, 112, 3), np.uint8)).shape == (0, 128)
    nobody = encoder.embed(astronaut, Faces.empty())
    assert nobody.embeddings is not None
    assert nobody.embeddings.shape == (0, 128)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 160, 160, 3), np.uint8),
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((1, 112, 112), np.uint8),
        np.zeros((1, 3, 112, 112), np.uint8),
        np.zeros((1, 112, 112, 3), np.float32),
    ],
    ids=["size", "one crop", "gray", "planes first", "float"],
)
def test_other_crops_are_refused(encoder: FaceEncoder, crops: Any) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 crops \(n, 112, 112, 3\), got"):
        encoder.encode(crops)


def test_the_same_face_is_near_and_what_is_no_face_is_far(encoder: FaceEncoder, crop: UInt8Array) -> None:
    darker = (crop * 0.6).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, crop.shape, np.uint8)
    face, same, other = encoder.encode(np.concatenate([crop, darker, noise]))
    assert distance(face, same) < 0.5
    assert distance(face, other) > 1.0


def test_embed_is_align_and_encode(
    encoder: FaceEncoder, astronaut: UInt8Array, faces: Faces, crop: UInt8Array
) -> None:
    embedded = encoder.embed(astronaut, faces)
    assert embedded.embeddings is not None
    np.testing.assert_allclose(embedded.embeddings, encoder.encode(crop), atol=1e-6)
    np.testing.assert_array_equal(embedded.boxes_xyxy, faces.boxes_xyxy)


def test_broken_landmarks_are_an_error(encoder: FaceEncoder, astronaut: UInt8Array, faces: Faces) -> None:
    with pytest.raises(LandmarkError):
        encoder.embed(astronaut, replace(faces, landmarks=np.full_like(faces.landmarks, 5)))


# What the card says is done


@pytest.mark.parametrize("averaged", [True, False])
def test_mirror_images_count_as_the_card_says(encoder: FaceEncoder, crop: UInt8Array, averaged: bool) -> None:
    spec = replace(encoder.embedding, flip_average=averaged)
    chosen = variant(encoder, embedding=spec)
    face, mirrored = chosen.encode(np.concatenate([crop, crop[:, :, ::-1]]))
    assert (distance(face, mirrored) < 1e-3) == averaged


def test_the_average_is_the_normalised_sum(encoder: FaceEncoder, crop: UInt8Array) -> None:
    plain = variant(encoder, embedding=replace(encoder.embedding, flip_average=False))
    averaged = variant(encoder, embedding=replace(encoder.embedding, flip_average=True))
    total = plain.encode(np.concatenate([crop, crop[:, :, ::-1]])).sum(axis=0)
    np.testing.assert_allclose(averaged.encode(crop)[0], total / np.linalg.norm(total), atol=1e-5)


def test_the_wrong_channel_order_gives_other_vectors(encoder: FaceEncoder, crop: UInt8Array) -> None:
    swapped = variant(encoder, input=replace(encoder.card.input, channels="bgr"))
    assert distance(encoder.encode(crop)[0], swapped.encode(crop)[0]) > 0.1


def test_a_card_that_promises_other_dimensions_is_found_out(encoder: FaceEncoder, crop: UInt8Array) -> None:
    lying = variant(encoder, embedding=EmbeddingSpec(512, "arcface_112"))
    with pytest.raises(WeightsError, match=r"float32 of \(1, 512\), but it gives \(1, 128\)"):
        lying.encode(crop)


def test_only_encoders_encode(encoder: FaceEncoder) -> None:
    with pytest.raises(WeightsError, match=f"{DEFAULT_DETECTOR} is a detector, not an encoder"):
        FaceEncoder.load(DEFAULT_DETECTOR)
    detector = load_card(DEFAULT_DETECTOR)
    network = open_network(detector, choose_runtime(threads=1))
    with pytest.raises(WeightsError, match="is not an encoder with a fixed input size"):
        FaceEncoder(network, detector.card)
    with pytest.raises(WeightsError, match="is not an encoder with a fixed input size"):
        variant(encoder, input=replace(encoder.card.input, size_px=None))


def test_the_default_encoder_can_name_people() -> None:
    card = load_card(DEFAULT_ENCODER).card
    assert card.embedding is not None
    assert card.embedding.threshold_l2 is not None
    assert card.embedding.threshold_source
    assert card.licence
    assert card.limits
