"""What runs is what was hashed: ONNX files that read others, or that may never end, are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facepipe.core.errors import WeightsError
from facepipe.runtime.engines import Engine, RuntimeChoice, open_network
from facepipe.weights.files import read_onnx, verify, write_weight
from facepipe.weights.onnx_file import require_self_contained
from facepipe.weights.registry import DEFAULT_ENCODER, Weight, load_card, shipped_folder

onnx = pytest.importorskip("onnx", reason="making ONNX files needs the [train] extra")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

ENGINES = [
    "onnx",
    pytest.param(
        "openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs [openvino]")
    ),
]


def outside(name: str = "w", count: int = 128 * 3 * 112 * 112) -> Any:
    """A tensor whose values are in `values.bin`."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=[3 * 112 * 112, count // (3 * 112 * 112)]
    )
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="values.bin")
    return tensor


def sparse(values: Any, indices: Any) -> Any:
    return helper.make_sparse_tensor(values, indices, [10])


INSIDE = numpy_helper.from_array(np.ones(2, np.float32), "inside")
PLACES = numpy_helper.from_array(np.array([1, 3]), "places")


def graph(name: str = "g") -> Any:
    """An encoder: a photo's pixels times a matrix."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 112, 112])
    vectors = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 128])
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embeddings"]),
    ]
    weights = numpy_helper.from_array(np.full((3 * 112 * 112, 128), 1e-3, np.float32), "w")
    return helper.make_graph(nodes, name, [image], [vectors], [weights])


def model(change: Callable[[Any], None] = lambda model: None) -> Any:
    made = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    change(made)
    return made


def _initializer(model: Any) -> None:
    model.graph.initializer[0].CopyFrom(outside())


def _constant(model: Any) -> None:
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=outside()))


def _node(model: Any, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node("Any", [], ["o"], **attributes))


def _subgraph(model: Any, changed: Callable[[Any], None]) -> None:
    inner = graph("inner")
    changed(inner)
    _node(model, then_branch=inner)


def _function(model: Any) -> None:
    node = helper.make_node("Constant", [], ["w"], value=outside())
    model.functions.append(helper.make_function("own", "f", [], ["w"], [node], []))


def _default_of_function(model: Any) -> None:
    function = helper.make_function("own", "f", [], ["w"], [], [])
    function.attribute_proto.append(helper.make_attribute("value", outside()))
    model.functions.append(function)


def _only_named(model: Any) -> None:
    """No place is given, but a file is."""
    model.graph.initializer[0].external_data.add(key="location", value="values.bin")


OUTSIDE: dict[str, Callable[[Any], None]] = {
    "initializer": _initializer,
    "constant": _constant,
    "a file that is named only": _only_named,
    "in process memory": lambda m: m.graph.initializer.append(_in_memory()),
    "tensors of an attribute": lambda m: _node(m, many=[INSIDE, outside()]),
    "values of a sparse initializer": lambda m: m.graph.sparse_initializer.append(sparse(outside(), PLACES)),
    "indices of a sparse initializer": lambda m: m.graph.sparse_initializer.append(sparse(INSIDE, outside())),
    "sparse attribute": lambda m: _node(m, one=sparse(outside(), PLACES)),
    "sparse attributes": lambda m: _node(m, many=[sparse(INSIDE, PLACES), sparse(outside(), PLACES)]),
    "subgraph": lambda m: _subgraph(m, lambda inner: inner.initializer.append(outside("v"))),
    "function": _function,
    "default of a function": _default_of_function,
    "training": lambda m: m.training_info.add().algorithm.initializer.append(outside()),
}


def _in_memory() -> Any:
    tensor = outside("m")
    tensor.external_data[0].value = "*/_ORT_MEM_ADDR_/*"
    return tensor


def _nested(model: Any, operator: str) -> None:
    model.graph.node.append(helper.make_node(operator, ["a"], ["o"], body=graph("inner")))


UNBOUNDED: dict[str, Callable[[Any], None]] = {
    "loop": lambda m: _nested(m, "Loop"),
    "scan": lambda m: _nested(m, "Scan"),
    "branch": lambda m: _nested(m, "If"),
    "graphs": lambda m: _node(m, many=[graph("a"), graph("b")]),
    "function": lambda m: m.functions.append(
        helper.make_function("own", "f", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    ),
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_values_in_other_files_are_refused_wherever_they_are(change: Callable[[Any], None]) -> None:
    with pytest.raises(
        WeightsError, match=r"x\.onnx: can't be used: .*(another file|functions|training|graph)"
    ):
        require_self_contained(model(change).SerializeToString(), "x.onnx")


@pytest.mark.parametrize("change", UNBOUNDED.values(), ids=UNBOUNDED)
def test_what_may_never_end_is_refused(change: Callable[[Any], None]) -> None:
    with pytest.raises(WeightsError, match=r"never end|without bound"):
        require_self_contained(model(change).SerializeToString(), "x.onnx")


def test_what_is_whole_is_taken() -> None:
    require_self_contained(model().SerializeToString(), "x.onnx")
    require_self_contained(
        model(lambda m: _node(m, a=INSIDE, b=sparse(INSIDE, PLACES))).SerializeToString(), "x"
    )
    for path in shipped_folder().glob("*.onnx"):
        require_self_contained(path.read_bytes(), path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x00",
        b"\x08",
        b"\x3a\x05\x00",
        b"\xff" * 20,
        b"\x0b",
        b"\x08\x08",
        b"PK\x03\x04",
        bytes(99),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"x\.onnx: not a readable ONNX file"):
        require_self_contained(content, "x.onnx")


# Before a runtime opens it


def written(folder: Path, model: bytes) -> Weight:
    card = replace(load_card(DEFAULT_ENCODER).card, name="other")
    return write_weight(folder, card, {"x": np.zeros(3, np.float32)}, model)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", [_initializer, _constant], ids=["initializer", "constant"])
def test_no_runtime_opens_a_file_of_the_working_folder(
    change: Callable[[Any], None], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full((3 * 112 * 112, 128), 1e-3, np.float32)
    (tmp_path / "values.bin").write_bytes(values.tobytes())
    monkeypatch.chdir(tmp_path)
    weight = written(tmp_path / "w", model(change).SerializeToString())
    for use in (lambda: open_network(weight, RuntimeChoice(engine, "cpu", 1)), lambda: verify(weight)):
        with pytest.raises(WeightsError, match=r"other\.onnx: can't be used: .* values in another file"):
            use()


def test_onnx_runtime_would_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing."""
    import onnxruntime

    (tmp_path / "values.bin").write_bytes(np.full((3 * 112 * 112, 128), 1e-3, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession(model(_initializer).SerializeToString())
    (vectors,) = session.run(None, {"images": np.ones((1, 3, 112, 112), np.float32)})
    assert vectors[0, 0] > 30


def test_the_same_network_in_one_file_runs(tmp_path: Path) -> None:
    weight = written(tmp_path, model().SerializeToString())
    (vectors,) = open_network(weight, RuntimeChoice("onnx", "cpu", 1)).run(
        np.ones((1, 3, 112, 112), np.float32)
    )
    assert vectors.shape == (1, 128)


def test_onnx_runtimes_own_format_is_not_taken(tmp_path: Path) -> None:
    """A file can be both: a flat buffer to that runtime, and a message to whoever checks it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "x.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model().SerializeToString(), options)
    own = (tmp_path / "x.ort").read_bytes()
    onnxruntime.InferenceSession(own)
    with pytest.raises(WeightsError, match="not a readable ONNX file"):
        read_onnx(written(tmp_path / "w", own))
    from facepipe.core.environment import onnx_session

    with pytest.raises(Exception, match=r"(?i)protobuf"):
        onnx_session(own, 1)


def test_a_teacher_is_whole_too(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from facepipe.training.distillation.onnx_teacher import open_onnx

    (tmp_path / "values.bin").write_bytes(np.full((3 * 112 * 112, 128), 1e-3, np.float32).tobytes())
    path = tmp_path / "teacher.onnx"
    path.write_bytes(model(_initializer).SerializeToString())
    with pytest.raises(WeightsError, match="another file"):
        open_onnx(path, ["embeddings"])
    with pytest.raises(WeightsError, match=r"none\.onnx: can't read"):
        open_onnx(tmp_path / "none.onnx", ["embeddings"])


# Any bytes


def refusal(content: bytes) -> str | None:
    try:
        require_self_contained(content, "x.onnx")
    except WeightsError as error:
        return str(error)
    return None


def tensors_in(message: Any) -> Iterator[Any]:
    """Every tensor of a parsed message, by the descriptors that onnx itself brings."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if not hasattr(value, "ListFields") else [value]:
                yield from tensors_in(part)


def small(change: Callable[[Any], None]) -> bytes:
    made = model(change)
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
    return bytes(made.SerializeToString())


SMALL = [small(change) for change in (lambda model: None, *OUTSIDE.values())]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SMALL),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=6), st.integers(0, 3)), max_size=4),
)
@example(SMALL[0], [])
def test_what_is_taken_has_no_value_outside(content: bytes, changes: list[tuple[int, bytes, int]]) -> None:
    for place, new, dropped in changes:
        at = place % (len(content) + 1)
        content = content[:at] + new + content[at + dropped :]
    if refusal(content):
        return
    try:
        parsed = onnx.load_from_string(content)
    except Exception:  # a runtime can't read it either
        return
    assert not [t for t in tensors_in(parsed) if t.data_location or t.external_data]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_clear_error(content: bytes) -> None:
    error = refusal(content)
    assert error is None or (error.startswith("x.onnx: ") and "\n" not in error)
