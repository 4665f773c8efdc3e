"""Teachers in ONNX files: the values of any of their inner maps, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facepipe.core.environment import onnx_session
from facepipe.core.errors import WeightsError, one_line
from facepipe.core.faces import FloatArray
from facepipe.weights.onnx_file import require_self_contained

Run = Callable[[FloatArray], Sequence[FloatArray]]
"""Maps a batch of images to the named values."""


def open_onnx(path: Path, values: Sequence[str]) -> Run:
    """Open a network that maps a batch of any size to named values, on as many threads as torch uses.

    Args:
        path: An ONNX file.
        values: Names of inner maps or outputs.

    Raises:
        WeightsError: The file can't be read, or computes no such value.
    """
    model = _with_outputs(path, values)
    session = onnx_session(model.SerializeToString(), torch.get_num_threads(), unfold_weights=True)
    outputs, name = [output.name for output in model.graph.output], session.get_inputs()[0].name
    return lambda images: session.run(outputs, {name: images})


def require_any_size(path: Path) -> None:
    """Check that a network takes images of any height and width.

    Raises:
        WeightsError: Its input has a fixed size, or the file can't be read.
    """
    sides = [dim.dim_value for dim in read_onnx(path).graph.input[0].type.tensor_type.shape.dim][2:]
    if any(sides):
        size = " x ".join(str(side or "any") for side in sides)
        raise WeightsError(
            f"{path}: takes images of {size} px only, and a teacher has to take crops of any size; take a "
            "file whose height and width are left open: facepipe weights fetch yunet_any_size"
        )


def output_names(path: Path) -> list[str]:
    """Names of the network's outputs.

    Raises:
        WeightsError: The file can't be read.
    """
    return [output.name for output in read_onnx(path).graph.output]


def read_onnx(path: Path) -> Any:
    """Read a model.

    Raises:
        WeightsError: The file can't be read, or keeps a part of the network elsewhere.
    """
    import onnx

    try:
        model = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: can't read this file: {error}") from error
    require_self_contained(model, path)
    try:
        return onnx.load_from_string(model)
    except Exception as error:  # protobuf's own, by version
        raise WeightsError(f"{path}: not a readable ONNX file: {one_line(error)}") from error


def _with_outputs(path: Path, wanted: Sequence[str]) -> Any:
    """Return the network for any batch, with these values as outputs."""
    import onnx

    model = read_onnx(path)
    graph = model.graph
    known = {name for node in graph.node for name in node.output}
    if missing := [name for name in wanted if name not in known]:
        raise WeightsError(f"{path}: computes no {', '.join(missing)}")
    del graph.output[:]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    del graph.value_info[:]  # they may state the batch that the file was made with
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return _with_fast_prelus(_needed_part(model))


def _needed_part(model: Any) -> Any:
    """Remove nodes that no output needs: some may work for a batch of one only."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):  # ONNX keeps nodes in order: users follow makers
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return model


def _with_fast_prelus(model: Any) -> Any:
    """Replace each PRelu by max(x, 0) (1 - a) + a x, which ONNX Runtime computes in a third of the time.

    Its PRelu leaves the blocked layout of the convolutions around it; depthwise 1x1 convolutions keep it. A
    PRelu that has no slope for each channel of an image stays as it is.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    nodes = []
    for node in graph.node:
        slopes = constants.get(node.input[1]) if node.op_type == "PRelu" else None
        if slopes is None or list(slopes.dims[1:]) != [1, 1] or slopes.dims[0] == 1:
            nodes.append(node)
            continue
        (images, _), (output,) = node.input, node.output
        a = numpy_helper.to_array(slopes)[:, None]
        names = [f"{output}/{part}" for part in ("positive", "linear", "relu", "of_relu", "of_all")]
        positive, linear, relu, of_relu, of_all = names
        graph.initializer.append(numpy_helper.from_array((1 - a).astype(np.float32), positive))
        graph.initializer.append(numpy_helper.from_array(a.astype(np.float32), linear))
        nodes += [
            helper.make_node("Relu", [images], [relu]),
            helper.make_node("Conv", [relu, positive], [of_relu], group=len(a), kernel_shape=[1, 1]),
            helper.make_node("Conv", [images, linear], [of_all], group=len(a), kernel_shape=[1, 1]),
            helper.make_node("Add", [of_relu, of_all], [output]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model
