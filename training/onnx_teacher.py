"""Trained networks in ONNX files to learn from: any of their inner maps, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from facepipe.environment import onnx_session, openvino_core
from facepipe.errors import MissingExtraError, WeightsError
from facepipe.faces import FloatArray

Runtime = Literal["onnx", "openvino"]
Run = Callable[[FloatArray], Sequence[FloatArray]]
"""From a batch of images to the values asked for."""


def open_onnx(path: Path, values: Sequence[str], runtime: Runtime = "onnx", threads: int = 0) -> Run:
    """A network's first input, for any batch, to the values of these names.

    Args:
        path: An ONNX file.
        values: Names of inner maps or outputs.
        runtime: "onnx" (ONNX Runtime), or "openvino" with bfloat16 where the processor has it.
        threads: 0: as many as torch uses.

    Raises:
        WeightsError: The file can't be read, or computes no such value.
        MissingExtraError: OpenVINO is asked for and not installed.
    """
    open_model = _open_openvino if runtime == "openvino" else _open_onnx_runtime
    return open_model(_with_outputs(path, values), threads or torch.get_num_threads())


def output_names(path: Path) -> list[str]:
    """Of the network's own outputs.

    Raises:
        WeightsError: The file can't be read.
    """
    return [output.name for output in read_onnx(path).graph.output]


def read_onnx(path: Path) -> Any:
    """The model.

    Raises:
        WeightsError: The file can't be read.
    """
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own, by version
        raise WeightsError(f"{path}: not a readable ONNX file: {error}") from error


def _open_onnx_runtime(model: Any, threads: int) -> Run:
    # Threads that wait by spinning would take the processors from torch, whose turn it is next.
    session = onnx_session(model.SerializeToString(), threads, spinning=False)
    outputs, name = [output.name for output in model.graph.output], session.get_inputs()[0].name
    return lambda images: session.run(outputs, {name: images})


def _open_openvino(model: Any, threads: int) -> Run:
    try:
        core = openvino_core()
    except ImportError as error:
        raise MissingExtraError("teacher.runtime = openvino", "openvino") from error
    halves = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if halves else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    # The next batch overwrites the outputs.
    return lambda images: [np.array(value) for value in compiled(images).to_tuple()]


def _with_outputs(path: Path, wanted: Sequence[str]) -> Any:
    """The network for any batch, with these values as outputs."""
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
    return _needed_part(model)


def _needed_part(model: Any) -> Any:
    """Without the nodes that no output needs: among them may be ones made for a batch of one."""
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
