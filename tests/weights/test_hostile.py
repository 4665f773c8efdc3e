"""Cards and networks that do not do what they promise: one line, the documented exit code, no traceback."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from json_helpers import places, replaced

from facepipe import cli
from facepipe.core.errors import FacepipeError, WeightsError
from facepipe.core.faces import UInt8Array
from facepipe.detector import FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.pipeline import card_identity
from facepipe.runtime.engines import RuntimeChoice
from facepipe.weights.cards import WeightCard, WeightFile
from facepipe.weights.files import write_weight
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, load_card, read_card

ONNX = b"\x08\x08\x3a\x00"
CPU = RuntimeChoice("onnx", "cpu", 1)
PHOTO = np.zeros((64, 96, 3), np.uint8)
CROPS = np.zeros((2, 112, 112, 3), np.uint8)

# Networks


def network(*nodes: Any, outputs: int = 1, inputs: int = 1, kind: int = 1, **constants: Any) -> bytes:
    """A model of these nodes, from "x" (and "x1" ...) to "y" (and "y1" ...)."""
    pytest.importorskip("onnx", reason="making ONNX files needs the [train] extra")
    from onnx import helper, numpy_helper

    def values(letter: str, count: int, form: Any, kind: int) -> list[Any]:
        names = [letter, *(f"{letter}{i}" for i in range(1, count))][:count]
        return [helper.make_tensor_value_info(name, kind, form) for name in names]

    graph = helper.make_graph(
        list(nodes),
        "g",
        values("x", inputs, ["n", 3, "h", "w"], 1),
        values("y", outputs, None, kind),
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    helper = pytest.importorskip("onnx.helper", reason="making ONNX files needs the [train] extra")
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def _expanded(count: int) -> bytes:
    return network(
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Expand", "sum shape", "many"),
        node("Identity", "many"),
        shape=np.array([count]),
    )


MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "scalar": (lambda: network(node("ReduceSum", "x", keepdims=0)), r"but it gives \(\)"),
    "another rank": (lambda: network(node("Identity", "x")), r"but it gives \("),
    "two outputs": (
        lambda: network(node("Identity", "x"), node("Identity", "x", "y1"), outputs=2),
        r"but it gives \(.*\), \(",
    ),
    "whole numbers": (
        lambda: network(node("Flatten", "x", "f"), node("Cast", "f", to=7), kind=7),
        "but it gives",
    ),
    "two inputs": (lambda: network(node("Add", "x x1"), inputs=2), "expected a network of one input, got 2"),
    "no input": (
        lambda: network(node("Identity", "c"), inputs=0, c=np.ones((2, 128), np.float32)),
        "expected a network of one input, got 0",
    ),
    "more memory than there is": (lambda: _expanded(1 << 45), "ONNX Runtime can't run it"),
    "more values than numbers": (lambda: _expanded(1 << 62), "ONNX Runtime can't run it"),
    "a form that does not fit": (
        lambda: network(node("Reshape", "x s"), s=np.array([7, 11])),
        "ONNX Runtime can't run it",
    ),
    "an unknown operator": (lambda: b"", "readable"),
}


def installed(folder: Path, model: bytes, like: str, **changes: Any) -> str:
    """A weight of the card `like` over this ONNX file; returns the path of its card."""
    card = replace(load_card(like).card, name="other", **changes)
    write_weight(folder, card, {"x": np.zeros(3, np.float32)}, model)
    return str(folder / "other.json")


@pytest.mark.parametrize(("make", "told"), MODELS.values(), ids=MODELS)
def test_an_encoder_that_is_none_is_one_line(make: Callable[[], bytes], told: str, tmp_path: Path) -> None:
    path = installed(tmp_path, make(), DEFAULT_ENCODER)
    with pytest.raises(WeightsError, match=told) as caught:
        FaceEncoder.load(path, CPU).encode(CROPS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "told"), MODELS.values(), ids=MODELS)
def test_a_detector_that_is_none_is_one_line(make: Callable[[], bytes], told: str, tmp_path: Path) -> None:
    path = installed(tmp_path, make(), DEFAULT_DETECTOR)
    with pytest.raises(WeightsError, match=told) as caught:
        FaceDetector.load(path, runtime=CPU).detect(PHOTO)
    assert "\n" not in str(caught.value)


def test_what_keeps_its_promise_runs(tmp_path: Path) -> None:
    model = network(node("Identity", "c"), c=np.ones((2, 128), np.float32))
    assert FaceEncoder.load(installed(tmp_path, model, DEFAULT_ENCODER), CPU).encode(CROPS).shape == (2, 128)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = network(
        node("ReduceSum", "x axes", "sum", keepdims=0),
        node("Mul", "sum zeros", "z"),
        node("Div", "z z"),
        axes=np.array([2, 3]),
        zeros=np.zeros(3, np.float32),
    )
    embedding = replace(load_card(DEFAULT_ENCODER).card.embedding, dimensions=3)  # type: ignore[type-var]
    path = installed(tmp_path, model, DEFAULT_ENCODER, embedding=embedding)
    with pytest.raises(WeightsError, match="not finite"):
        FaceEncoder.load(path, CPU).encode(CROPS)


def test_the_command_tells_it_in_one_line(tmp_path: Path, astronaut: UInt8Array, capfd: Any) -> None:
    from PIL import Image

    Image.fromarray(astronaut).save(tmp_path / "a.png")
    path = installed(tmp_path / "w", _expanded(1 << 45), DEFAULT_ENCODER)
    words = ["embed", str(tmp_path / "a.png"), "--out", str(tmp_path / "x.npz"), "--encoder-weights", path]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == WeightsError.exit_code
    assert isinstance(done.exception, SystemExit)
    assert len([line for line in done.stderr.splitlines() if "other.onnx" in line]) == 1
    assert "Traceback" not in done.stderr
    assert capfd.readouterr().err == ""  # What a runtime writes by itself.


# Cards


CARDS = [json.loads(load_card(name).card.to_json()) for name in (DEFAULT_ENCODER, DEFAULT_DETECTOR)]
for _card in CARDS:
    del _card["sha256"]  # Any change would be refused for it alone.
SPECIAL: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1e308, 10**400, float("nan"), float("-inf"), "", "\ud800", "\n", [], {}, [[]] * 3]
)
ANY_JSON = st.recursive(
    SPECIAL | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    raw = data.draw(st.sampled_from(CARDS))
    for place in data.draw(st.lists(st.sampled_from(places(raw)[1:]), min_size=1, max_size=2)):
        try:
            raw = replaced(raw, place, data.draw(ANY_JSON))
        except (KeyError, IndexError, TypeError):  # The place went with an earlier change.
            continue
    try:
        card = WeightCard.from_json(json.dumps(raw), "x.json")
        assert WeightCard.from_json(card.to_json()).fingerprint == card.fingerprint
        card.to_json().encode()
        if card.kind == "encoder":
            card_identity(card)
            FaceEncoder(Silent(), card)
        else:
            FaceDetector(Silent(), card)
    except FacepipeError as error:
        assert "\n" not in str(error)  # noqa: PT017


class Silent:
    """A network that gives nothing."""

    def run(self, batch: Any, outputs: int | None = None) -> list[Any]:
        return []


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), st.sampled_from(places(CARDS[1]["anchors"])[1:]), ANY_JSON)
def test_any_anchors_are_refused_or_need_little(side: int, place: tuple[Any, ...], value: Any) -> None:
    raw = CARDS[1] | {"anchors": replaced(CARDS[1]["anchors"], place, value)}
    with pytest.raises(WeightsError):
        FaceDetector(Silent(), WeightCard.from_json(json.dumps(raw))).detect(np.zeros((side, 9, 3), np.uint8))


# Parameters


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind: str, *shape: int, end: int = 0) -> Any:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [0, end]}


SAFETENSORS = {
    "no header": b"",
    "a header without end": struct.pack("<Q", 1 << 60) + b"{}",
    "nested": struct.pack("<Q", 20_000) + b"[" * 20_000,
    "numbers as metadata": safetensors_file({"__metadata__": {"a": 1}}),
    "bfloat16": safetensors_file({"a": entry("BF16", 2, end=4)}, bytes(4)),
    "eight bits": safetensors_file({"a": entry("F8_E4M3", 4, end=4)}, bytes(4)),
    "four bits": safetensors_file({"a": entry("F4", 8, end=4)}, bytes(4)),
    "complex": safetensors_file({"a": entry("C64", 1, end=8)}, bytes(8)),
    "huge and empty": safetensors_file({"a": entry("F32", 0, 1 << 62)}),
    "too huge and empty": safetensors_file({"a": entry("F32", 1 << 62, 1 << 62, 0)}),
    "a hundred axes": safetensors_file({"a": entry("F32", *[1] * 100, end=4)}, bytes(4)),
    "huge trunk": safetensors_file({"trunk.stem.1.0.weight": entry("F32", 1 << 30, 0)}),
    "empty trunk": safetensors_file({"trunk.stem.1.0.weight": entry("F32", 0)}),
    "scalar trunk": safetensors_file({"trunk.stem.1.0.weight": entry("F32", end=4)}, bytes(4)),
    "scalar head": safetensors_file({"head.spatial.0.weight": entry("F32", end=4)}, bytes(4)),
    "huge head": safetensors_file({"head.spatial.0.weight": entry("F32", 0, 1 << 30)}),
    "another line": safetensors_file({"a\nb": entry("F32", 1, end=4)}, bytes(4)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
@pytest.mark.parametrize("architecture", ["facenet_mobilenet", "facenet_mobilefacenet"])
def test_parameters_of_no_such_network_are_one_line(
    content: bytes, architecture: str, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs the [train] extra")
    path = Path(installed(tmp_path, ONNX, DEFAULT_ENCODER, architecture=architecture))
    weight = read_card(path)
    assert weight.parameters_path is not None
    weight.parameters_path.write_bytes(content)
    changed = WeightFile(weight.parameters_path.name, hashlib.sha256(content).hexdigest())
    path.write_text(replace(weight.card, parameters=changed).to_json())
    with pytest.raises(WeightsError, match="safetensors") as caught:
        FaceEncoder.load(str(path), RuntimeChoice("torch", "cpu", 1))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_what_can_not_be_imported_is_one_line(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the [train] extra")
    pytest.importorskip("onnx", reason="needs the [train] extra")
    from facepipe.runtime.onnx_export import import_checkpoint

    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors: ") as caught:
        import_checkpoint(tmp_path / "x.safetensors", name="x", folder=tmp_path / "w")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


# Checkpoints of the trainers

PARTS: list[Any] = [
    None,
    1,
    "x",
    [],
    {},
    {"a": None},
    {1: 2},
    float("nan"),
    {"architecture": "facenet_mobilenet"},
]


@pytest.mark.parametrize("part", ["step", "module", "average", "record", "network", "input"])
@pytest.mark.parametrize("architecture", ["facenet_mobilenet", "retinaface_mobilenet025"])
def test_no_checkpoint_is_one_line(part: str, architecture: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the [train] extra")
    pytest.importorskip("onnx", reason="needs the [train] extra")
    from facepipe.training.export import export_checkpoint

    for value in [*PARTS, {"a": torch.zeros(1).expand(1 << 40)}]:
        network: Any = {"architecture": architecture} | ({"input": value} if part == "input" else {})
        record: Any = {"network": value if part == "network" else network}
        state: Any = {"step": 1, "module": {}, "average": {"a": torch.ones(1)}, "record": record}
        torch.save(state | ({part: value} if part in state else {}), tmp_path / "x.pt")
        with pytest.raises(FacepipeError) as caught:
            export_checkpoint([tmp_path / "x.pt"], "x", tmp_path / "w")
        assert "\n" not in str(caught.value)
