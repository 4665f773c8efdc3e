"""Networks to files: ONNX export, pairs of safetensors and ONNX that agree, import of published checkpoints.

Needs the [train] extra.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from facepipe.core.environment import onnx_session
from facepipe.core.errors import MissingExtraError, UsageError, WeightsError, one_line
from facepipe.core.processors import compute_threads
from facepipe.facenet import published as facenet_names
from facepipe.retinaface import published as retinaface_names
from facepipe.retinaface.layer_matching import backbone_parameters, renamed_by_layers
from facepipe.runtime.architectures import (
    COUNTER_SUFFIX,
    build_network,
    layout_difference,
    network_of_card,
    serving_module,
)
from facepipe.weights.cards import AnchorSpec, Channels, EmbeddingSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.files import write_weight
from facepipe.weights.legacy import read_legacy_checkpoint, require_plain
from facepipe.weights.published import PUBLISHED, PublishedWeight
from facepipe.weights.registry import Weight, check_new_name, user_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from facepipe.retinaface.network import RetinaFace

_TOLERANCE = 1e-3  # of an output's largest magnitude, at least of 1; float32 rounding stays near 1e-6
_OPSET = 17


@dataclass(frozen=True, slots=True)
class _Layout:
    """One way in which published checkpoints name their parameters.

    Those of a RetinaFace may have other names: see `renamed_by_layers`.

    Attributes:
        architecture: As on a card.
        example: A published weight of this layout: preprocessing, anchors and template are taken from it.
        our_name: The name here of one of its parameters.
        training_only: Prefix of the classifier that served its training and that no face needs.
    """

    architecture: str
    example: PublishedWeight
    our_name: Callable[[str], str]
    training_only: str | None = None


_LAYOUTS = (
    *(
        _Layout(architecture, PUBLISHED["published_retinaface_resnet50"], retinaface_names.our_name)
        for architecture in (
            "retinaface_mobilenet025",
            "retinaface_mobilenet025_relu",
            "retinaface_mobilenet050",
            "retinaface_mobilenet100",
            "retinaface_resnet18",
            "retinaface_resnet34",
            "retinaface_resnet50",
        )
    ),
    _Layout(
        "facenet_mobilenet",
        PUBLISHED["published_facenet_mobilenet_128"],
        facenet_names.our_name,
        training_only="classifier.",
    ),
    _Layout(
        "facenet_inception_resnet_v1",
        PUBLISHED["published_facenet_inception_resnet_128"],
        facenet_names.our_name,
        training_only="classifier.",
    ),
    _Layout(
        "facenet_inception_resnet_v1",
        PUBLISHED["published_facenet_vggface2_512"],
        facenet_names.our_facenet_pytorch_name,
        training_only="logits.",
    ),
)


def import_checkpoint(
    file: Path,
    *,
    name: str,
    architecture: str | None = None,
    channels: Channels | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    anchors: AnchorSpec | None = None,
    folder: Path | None = None,
) -> Weight:
    """Turn a published checkpoint, `.pth`, `.pt` or `.safetensors`, into a weight with a card.

    Names and shapes must be those of a known layout, all of them and no others; of a RetinaFace the shapes
    in their order suffice. What is not given is taken
    from the published weights of that layout; it can't be read from the file, and a wrong channel order or
    wrong anchors give a weight that finds nothing or that is subtly worse.

    Args:
        file: The checkpoint; nothing in it is run.
        name: Of the new weight.
        architecture: As on a card; None: recognised by names and shapes.
        channels: Order of the input's channels.
        mean: In pixel units (0..255), in the order of `channels`.
        std: Likewise.
        anchors: Detectors only.
        folder: Where to; None: the user's own weights.

    Raises:
        WeightsError: Unreadable, of no known layout, with values that are not finite; or the name is taken.
        UsageError: Anchors for an encoder, or not the two a cell at three strides that RetinaFace has.
        MissingExtraError: torch or onnx is not installed.
    """
    _require_train_extra()
    check_new_name(name)
    layout, parameters = _recognise(file, _read_checkpoint(file), architecture)
    embedding = _embedding(layout, parameters)
    card = WeightCard(
        name=name,
        kind=layout.example.kind,
        architecture=layout.architecture,
        input=_input(layout.example.input, channels, mean, std),
        parameters=WeightFile(f"{name}.safetensors", None),
        anchors=_anchors(layout, anchors),
        embedding=embedding,
        **_provenance(file),
    )
    return write_pair(network_of_card(card, parameters, str(file)), card, folder or user_folder())


def write_pair(
    network: nn.Module,
    card: WeightCard,
    folder: Path,
    *,
    half_storage: bool = False,
) -> Weight:
    """Write a network as a weight: parameters, ONNX file and card, after checking that the two agree.

    Args:
        network: Of the card's architecture; it is not changed.
        card: Its file names and hashes are filled in.
        folder: Where to.
        half_storage: Store the weights of convolutions and linear layers as float16, in both files alike, at
            half the size. They are rounded first; the calculation stays float32 and as fast as before.

    Raises:
        WeightsError: The name is taken, another architecture than the card's, values that are not finite,
            ONNX and torch disagree, or the files can't be written.
        MissingExtraError: torch or onnx is not installed.
    """
    _require_train_extra()
    parameters = _stored(network, half_storage)
    _require_finite(parameters, card.name)
    serving = serving_module(network_of_card(card, parameters, card.name))
    onnx = export_onnx(serving, card, half_storage=half_storage)
    _require_agreement(serving, onnx, card)
    arrays = {name: tensor.numpy() for name, tensor in parameters.items()}
    return write_weight(folder, card, arrays, onnx)


def export_onnx(serving: nn.Module, card: WeightCard, *, half_storage: bool = False) -> bytes:
    """Return a serving module as one self-contained ONNX file.

    Input "images", (batch, 3, h, w), preprocessed. A detector takes any batch and any multiples of 32, and
    gives "boxes", "probabilities", "landmarks", and "focus" if its card says so; an encoder takes any batch
    and gives "embeddings".

    Raises:
        MissingExtraError: torch or onnx is not installed.
    """
    _require_train_extra()
    import torch
    from torch.onnx import TrainingMode

    detector = card.kind == "detector"
    axes: dict[str, dict[int, str]]
    if detector:
        axes = {name: {0: "batch", 1: "anchors"} for name in ("boxes", "probabilities", "landmarks")}
        axes |= {"focus": {0: "batch", 1: "rows", 2: "columns"}} if card.focus else {}
    else:
        axes = {"embeddings": {0: "batch"}}
    image_axes = {0: "batch", 2: "height", 3: "width"} if detector else {0: "batch"}
    stream: Any = io.BytesIO()  # taken at run time, though the signature names paths only
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, but takes a twentieth of the time of its successor (a second
        # for Inception-ResNet-v1) and can leave BatchNorm apart, as half storage needs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            serving,
            (torch.zeros(_sample_shapes(card)[0]),),
            stream,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=list(axes),
            dynamic_axes={"images": image_axes, **axes},
            training=TrainingMode.PRESERVE if half_storage else TrainingMode.EVAL,
        )
    return _with_half_storage(stream.getvalue()) if half_storage else stream.getvalue()


def _with_half_storage(exported: bytes) -> bytes:
    """Weights as float16, each cast back to float32: ONNX Runtime does that once, when it loads the file.

    They were rounded before. What the serving form computes of them (1 - a of a `SplitPReLU`) was not, and
    stays float32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(exported)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        rounded = values.astype(np.float16)
        if np.array_equal(rounded.astype(np.float32), values):
            full, half = tensor.name, f"{tensor.name}.half"
            tensor.CopyFrom(numpy_helper.from_array(rounded, half))
            casts.append(helper.make_node("Cast", [half], [full], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _sample_shapes(card: WeightCard) -> list[tuple[int, int, int, int]]:
    """Different batches, and for detectors different sizes: what was taken for a constant shows up."""
    if card.kind == "detector":
        return [(2, 3, 64, 96), (1, 3, 32, 32), (1, 3, 320, 224)]
    if card.input.size_px is None:
        raise WeightsError(f"card of {card.name}: an encoder needs 'input.size_px'")
    return [(batch, 3, card.input.size_px, card.input.size_px) for batch in (2, 1, 3)]


def _require_agreement(serving: nn.Module, onnx: bytes, card: WeightCard) -> None:
    import torch

    session = onnx_session(onnx, compute_threads())
    random = np.random.default_rng(0)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (card.input.mean, card.input.std))
    for shape in _sample_shapes(card):
        images = (random.uniform(0, 255, shape).astype(np.float32) - mean) / std
        with torch.inference_mode():
            outputs = serving(torch.from_numpy(images))
        expected = outputs if isinstance(outputs, tuple) else (outputs,)
        for ours, theirs in zip(expected, session.run(None, {"images": images}), strict=True):
            _require_near(ours.numpy(), theirs, card.name)


def _require_near(expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any], name: str) -> None:
    difference = np.abs(expected - actual).max() if expected.shape == actual.shape else np.inf
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # not ">": NaN must fail as well
        raise WeightsError(f"{name}: torch and ONNX disagree by {difference:.2g}; nothing was written")


def _stored(network: nn.Module, half_storage: bool) -> dict[str, Tensor]:
    """What goes into the file: everything but BatchNorm's counters, as float32 or, rounded, as float16."""
    stored = {}
    for name, tensor in network.state_dict().items():
        if not name.endswith(COUNTER_SUFFIX):
            value = tensor.detach().cpu().float()
            stored[name] = (value.half() if half_storage and value.ndim >= 2 else value).contiguous()
    return stored


def _require_finite(parameters: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in parameters.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{source}: {one_line(name, 100)} has values that are not finite")


def _read_checkpoint(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return read_legacy_checkpoint(file)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = dict(load(file.read_bytes()))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{file}: can't read this safetensors file: {one_line(error)}") from error
    require_plain(file, tensors)
    return tensors


def _recognise(
    file: Path, checkpoint: Mapping[str, Tensor], architecture: str | None
) -> tuple[_Layout, dict[str, Tensor]]:
    """Return the layout that fits exactly, and the parameters under our names."""
    import torch

    known = list(dict.fromkeys(layout.architecture for layout in _LAYOUTS))
    if architecture is not None and architecture not in known:
        raise WeightsError(f"can't import {architecture!r}; known layouts are {', '.join(known)}")
    differences = []
    for layout in _LAYOUTS:
        if architecture in (None, layout.architecture):
            parameters = _renamed(layout, checkpoint)
            embedding = _embedding(layout, parameters)
            with torch.device("meta"):  # names and shapes only
                network = build_network(layout.architecture, embedding.dimensions if embedding else None)
            difference = layout_difference(network, parameters)
            if any(difference) and layout.example.kind == "detector":
                parameters = renamed_by_layers(checkpoint, network.state_dict(), str(file)) or parameters
                difference = layout_difference(network, parameters)
            if not any(difference):
                return layout, parameters
            differences.append((sum(map(len, difference)), layout.architecture, difference.describe()))
    if _is_backbone(checkpoint, str(file)):
        raise WeightsError(
            f"{file}: is a backbone without a detector; train one that begins with it: facepipe train "
            f"detector --recipe paper --set network.initial={file}"
        )
    _, nearest, description = min(differences)
    raise WeightsError(
        f"{file}: has no known layout ({', '.join(known)}); nearest is {nearest}, with {description}"
    )


def _is_backbone(checkpoint: Mapping[str, Tensor], source: str) -> bool:
    """Return whether a checkpoint is that of a detector's backbone, with or without a classifier."""
    import torch

    for architecture in (layout.architecture for layout in _LAYOUTS if layout.example.kind == "detector"):
        with torch.device("meta"):
            backbone = cast("RetinaFace", build_network(architecture)).backbone
        if backbone_parameters(backbone, checkpoint, source) is not None:
            return True
    return False


def _renamed(layout: _Layout, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        layout.our_name(name): tensor
        for name, tensor in checkpoint.items()
        if layout.training_only is None or not name.startswith(layout.training_only)
    }


def _embedding(layout: _Layout, parameters: Mapping[str, Tensor]) -> EmbeddingSpec | None:
    """The layout's, with the dimensions that the file has; its thresholds are for others to measure."""
    if layout.example.embedding is None:
        return None
    linear = parameters.get("head.linear.weight")
    if linear is None or linear.ndim != 2:
        return layout.example.embedding
    return replace(layout.example.embedding, dimensions=linear.shape[0])


def _input(
    default: InputSpec,
    channels: Channels | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> InputSpec:
    return replace(
        default, channels=channels or default.channels, mean=mean or default.mean, std=std or default.std
    )


def _anchors(layout: _Layout, anchors: AnchorSpec | None) -> AnchorSpec | None:
    default = layout.example.anchors
    if anchors is None:
        return default
    if default is None:
        raise UsageError(f"{layout.architecture} is an encoder: it has no anchors")
    if [len(sizes) for sizes in anchors.sizes_px] != [len(sizes) for sizes in default.sizes_px]:
        raise UsageError(f"expected two anchor sizes at each of three strides, got {anchors.sizes_px}")
    return anchors


def _provenance(file: Path) -> dict[str, Any]:
    """What the card says of where the weight is from; a file named as published is taken at its word."""
    training: dict[str, Any] = {
        "imported_from": file.name,
        "imported_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    published = next((weight for weight in PUBLISHED.values() if weight.file_name == file.name), None)
    if published is None:
        return {"training": training, "licence": "that of the imported file"}
    training |= {"published_at": published.url, "trained_on": published.trained_on}
    return {
        "training": training,
        "licence": published.licence,
        "measured": dict(published.measured),
        "limits": f"its authors' crops: {published.framing}" if published.framing else "",
    }


def _require_train_extra() -> None:
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("converting weights", "train") from error
