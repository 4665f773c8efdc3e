"""Checkpoints of both trainers to weights: safetensors, ONNX and card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facepipe.core.errors import UsageError, WeightsError
from facepipe.retinaface.network import RetinaFace
from facepipe.runtime.onnx_export import write_pair
from facepipe.training.detection.focus import focus_of
from facepipe.training.detection.initialize import detector_of_checkpoints
from facepipe.training.engine.checkpoints import Checkpoint, load_checkpoint
from facepipe.training.engine.runs import training_record, validation_record
from facepipe.training.recognition.initialize import encoder_of_checkpoints
from facepipe.weights.cards import WeightCard, WeightFile
from facepipe.weights.registry import Weight


def export_checkpoint(
    checkpoints: Sequence[Path],
    name: str,
    folder: Path,
    *,
    half_storage: bool = False,
    class_bias: float = 0.0,
    licence: str = "",
) -> Weight:
    """Turn the averaged weights of a detector's or an encoder's checkpoint into a weight.

    Args:
        checkpoints: One, or several of one run, whose mean is taken.
        name: Of the weight.
        folder: Where to.
        half_storage: See `facepipe.runtime.onnx_export.write_pair`.
        class_bias: Of a detector: added to the face logits of strides 16 and 32. Each stride trains against
            negatives of its own, and the ranking of large faces among small ones is left to chance; choose it
            like a threshold, on photos that did not train.
        licence: For the card.

    Raises:
        DataError, WeightsError: A checkpoint is damaged or of no trainer, or the name is taken.
        UsageError: No checkpoint, or a bias for an encoder or of no finite number.
    """
    if not checkpoints:
        raise UsageError("no checkpoint to export")
    states = [load_checkpoint(path) for path in checkpoints]
    state, source = states[-1], str(checkpoints[-1])
    network, kind = _trained(states, source)
    record = training_record(state, len(checkpoints))
    if class_bias:
        add_class_bias(network, class_bias)
        record["class_bias"] = class_bias
    as_measured = len(checkpoints) == 1 and not class_bias
    card = WeightCard(
        name=name,
        architecture=state["record"]["network"]["architecture"],
        parameters=WeightFile(f"{name}.safetensors", None),
        licence=licence,
        training=record,
        measured=validation_record(state) if as_measured else {},
        **kind,
    )
    return write_pair(network, card, folder, half_storage=half_storage)


def add_class_bias(network: nn.Module, logit: float) -> None:
    """Add to a detector's face logits at strides 16 and 32, so that one score ranks faces of all sizes.

    Raises:
        UsageError: The network is an encoder, or the number is not finite.
    """
    if not isinstance(network, RetinaFace):
        raise UsageError("class bias: an encoder has no strides to raise")
    if not math.isfinite(logit):
        raise UsageError(f"class bias: expected a finite number, got {logit}")
    with torch.no_grad():
        for head in network.class_heads[1:]:
            head.get_parameter("bias")[1::2] += logit


def _trained(states: Sequence[Checkpoint], source: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network, and fields of its card that depend on its kind."""
    architecture = str(states[-1]["record"].get("network", {}).get("architecture", ""))
    if architecture.startswith("retinaface_"):
        detector = detector_of_checkpoints(states, source)
        focus = focus_of(detector.network)
        fields = {"kind": "detector", "input": detector.input, "anchors": detector.anchors, "focus": focus}
        return detector.network, fields
    if architecture.startswith("facenet_"):
        encoder = encoder_of_checkpoints(states, source)
        return encoder.network, {"kind": "encoder", "input": encoder.input, "embedding": encoder.embedding}
    raise WeightsError(f"{source}: was not written by one of facepipe's trainers")
