"""Import of face encoders of others from ONNX files. Needs no extra."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facepipe.align import TEMPLATES
from facepipe.core.environment import onnx_session
from facepipe.core.errors import UsageError, WeightsError, one_line
from facepipe.core.faces import UInt8Array
from facepipe.detector import FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.runtime.engines import InputForm, choose_runtime, open_network
from facepipe.weights.cards import Channels, EmbeddingSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.files import write_weight
from facepipe.weights.onnx_file import operators_on, require_self_contained
from facepipe.weights.registry import Weight, check_new_name, user_folder

_PREPROCESSING = frozenset({"Sub", "Mul", "Div", "Add"})
"""Operators that, first on the input, show that the network expects pixels of 0..255 as they are."""
_Triple = tuple[float, float, float]


def import_onnx_encoder(
    file: Path,
    *,
    name: str,
    channels: Channels = "rgb",
    mean: _Triple | None = None,
    std: _Triple | None = None,
    alignment: str = "arcface_112",
    size_px: int | None = None,
    licence: str = "",
    folder: Path | None = None,
) -> Weight:
    """Import a face encoder from an ONNX file as a weight, after a test on the sample photo.

    Layout, side and length of the embedding are read from the file. Channel order, range and template are
    not in it, and wrong ones give worse embeddings without an error: the defaults are those of most
    published encoders.

    Args:
        file: One input of images, (n, 3, side, side) or (n, side, side, 3), any n or 1; one output (n, d),
            the embeddings.
        name: Of the new weight.
        channels: Order of the input's channels.
        mean: Subtracted from the pixels, 0..255. None: 127.5, or 0 where the network normalises itself.
        std: Divides the difference. None: 127.5, or 1 in that case.
        alignment: Template of the faces, a name in `facepipe.align.TEMPLATES`.
        size_px: Side of the input, where the file leaves it open. None: that of the template.
        licence: For the card.
        folder: Where to; None: the user's own weights.

    Raises:
        WeightsError: Unreadable, no such network, other pictures are as near to the sample photo's face as
            altered copies of it, or the name is taken.
        UsageError: The file's side is another one than `size_px`, or the template is unknown.
    """
    check_new_name(name)
    if alignment not in TEMPLATES:
        raise UsageError(f"unknown alignment {alignment!r}: expected one of {', '.join(TEMPLATES)}")
    model = _read(file)
    form, begins_with = _input_of(model, file)
    takes_pixels = bool(begins_with & _PREPROCESSING)
    default_mean, default_std = (0.0, 1.0) if takes_pixels else (127.5, 127.5)
    card = WeightCard(
        name=name,
        kind="encoder",
        architecture="onnx",
        input=InputSpec(
            channels,
            mean or (default_mean,) * 3,
            std or (default_std,) * 3,
            _side_px(file, form, size_px, alignment),
        ),
        parameters=None,
        onnx=WeightFile(f"{name}.onnx", None),
        embedding=EmbeddingSpec(1, alignment),
        licence=licence or "that of the imported file",
        training={"imported_from": file.name, "imported_sha256": hashlib.sha256(model).hexdigest()},
        limits="imported: ask its authors",
    )
    return write_weight(folder or user_folder(), _tried(card, model, file), None, model)


def _read(file: Path) -> bytes:
    try:
        model = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{file}: can't read this file: {error}") from error
    require_self_contained(model, file)
    return model


def _input_of(model: bytes, file: Path) -> tuple[InputForm, set[str]]:
    """Return the form of the network's input, and the operators that take it."""
    try:
        inputs = onnx_session(model, 1).get_inputs()
    except Exception as error:  # each failure has a class of its own, without a common root
        raise WeightsError(f"{file}: ONNX Runtime can't load it: {one_line(error)}") from error
    if len(inputs) != 1:
        raise WeightsError(f"{file}: expected a network of one input, got {len(inputs)}")
    return InputForm.of_shape(inputs[0].shape, file), operators_on(model, inputs[0].name)


def _side_px(file: Path, form: InputForm, wanted: int | None, alignment: str) -> int:
    if form.side_px is not None and wanted not in (None, form.side_px):
        raise UsageError(f"{file}: takes faces of {form.side_px} px, not of {wanted}")
    return form.side_px or wanted or TEMPLATES[alignment].size_px


def _tried(card: WeightCard, model: bytes, file: Path) -> WeightCard:
    """Complete the card with the length of the embedding, and test the network on the sample photo.

    Raises:
        WeightsError: Other pictures are as near to the sample's face as altered copies of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = open_network(write_weight(Path(folder), card, None, model), choose_runtime())
        side = card.input.size_px or 0
        try:
            outputs = network.run(np.zeros((1, 3, side, side), np.float32))
        except WeightsError as error:
            raise WeightsError(f"{file}: can't be run on faces of {side} px: {error}") from error
        shapes = [np.shape(output) for output in outputs]
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise WeightsError(f"{file}: expected one output, a vector an image, got {one_line(shapes)}")
        card = replace(card, embedding=EmbeddingSpec(shapes[0][1], card.embedding.alignment))  # type: ignore[union-attr]
        encoder = FaceEncoder(network, card)
        farthest, nearest = _sample_distances(encoder)
        if farthest >= nearest:
            raise WeightsError(
                f"{file}: finds other pictures ({nearest:.2f}) as near to the sample's face as its copies "
                f"({farthest:.2f}): no face encoder, or --channels, --mean, --std or --alignment are wrong"
            )
    return card


def _sample_distances(encoder: FaceEncoder) -> tuple[float, float]:
    """Measure from the sample's face to the farthest of its altered copies and the nearest other picture."""
    face = _sample_face(encoder)
    copies = list(_altered(face))
    embeddings = encoder.encode(np.stack([face, *copies, *_no_faces(encoder.input_size_px)]))
    distances = np.linalg.norm(embeddings[1:] - embeddings[0], axis=1)
    return float(distances[: len(copies)].max()), float(distances[len(copies) :].min())


def _sample_face(encoder: FaceEncoder) -> UInt8Array:
    photo = np.ascontiguousarray(_samples().astronaut(), np.uint8)
    face: UInt8Array = encoder.align(photo, FaceDetector.load().detect(photo))[0]
    return face


def _altered(face: UInt8Array) -> Iterator[UInt8Array]:
    yield face[:, ::-1]
    yield face // 2
    yield np.asarray(cv2.GaussianBlur(face, (0, 0), len(face) / 112), np.uint8)


def _no_faces(side: int) -> Iterator[UInt8Array]:
    for photo in (_samples().coffee(), _samples().chelsea(), _samples().rocket()):
        yield np.asarray(cv2.resize(photo[:300, :300], (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    yield np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def _samples() -> Any:
    import skimage.data

    return skimage.data  # untyped
