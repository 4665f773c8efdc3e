"""A teacher that is an ONNX file: its vectors, and its inner maps by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facepipe.errors import UsageError, WeightsError
from weights.card import InputSpec


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """A trained encoder to learn from.

    Attributes:
        onnx: The file; its first input takes faces, and nothing else.
        vector: Name of the value that holds its vectors; empty: the first output.
        taps: Names of inner maps, one for each of the student's, fine to coarse; none: no hints.
        input: How it wants its pixels; None: as the student does.
        threads: Of ONNX Runtime; 0: as many as torch uses.
    """

    onnx: Path
    vector: str = ""
    taps: tuple[str, ...] = ()
    input: InputSpec | None = None
    threads: int = 0


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch of faces."""

    vectors: Tensor
    """float32 (batch, dimensions), of unit length."""
    taps: list[Tensor]
    """float32 (batch, channels, h, w) each."""


class Teacher:
    """Runs on ONNX Runtime.

    Raises:
        WeightsError: The file can't be read, or lacks a value that `config` names.
    """

    def __init__(self, config: TeacherConfig) -> None:
        import onnxruntime

        model = _with_outputs(config)
        self._outputs = [output.name for output in model.graph.output]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.threads or torch.get_num_threads()
        # Threads that wait by spinning would take the cores from torch, whose turn it is next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> TeacherOutput:
        """Preprocessed faces (batch, 3, side, side) to unit vectors and maps, on the images' device."""
        pixels = images.detach().cpu().contiguous().numpy()
        vectors, *taps = (
            torch.from_numpy(np.asarray(value)).to(images.device)
            for value in self._session.run(self._outputs, {self._input: pixels})
        )
        return TeacherOutput(functional.normalize(vectors.flatten(1)), taps)


def _with_outputs(config: TeacherConfig) -> Any:
    """The teacher for any batch, with its vector and maps as outputs."""
    import onnx

    try:
        model = onnx.load(config.onnx)
    except Exception as error:  # protobuf's own, by version
        raise WeightsError(f"{config.onnx}: not a readable ONNX file: {error}") from error
    graph = model.graph
    known = {name for node in graph.node for name in node.output}
    wanted = [config.vector or graph.output[0].name, *config.taps]
    if missing := [name for name in wanted if name not in known]:
        raise WeightsError(f"{config.onnx}: computes no {', '.join(missing)}")
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


def check_taps(config: TeacherConfig, student_taps: Sequence[Tensor], teacher_taps: Sequence[Tensor]) -> None:
    """Refuse maps that can't be compared place by place.

    Raises:
        UsageError: Another number of maps, or other heights and widths.
    """
    ours = [tuple(tap.shape[2:]) for tap in student_taps]
    theirs = [tuple(tap.shape[2:]) for tap in teacher_taps]
    if ours != theirs:
        raise UsageError(
            f"{config.onnx}: its maps are of sizes {theirs}, the student's {ours}; see teacher.taps"
        )
