"""Face encoders of others in ONNX files become weights, and what is none is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import facepipe
from PIL import Image

from facepipe.core.errors import UsageError, WeightsError
from facepipe.core.faces import UInt8Array
from facepipe.encoder import FaceEncoder
from facepipe.onnx_import import import_onnx_encoder
from facepipe.runtime.engines import InputForm, RuntimeChoice
from facepipe.weights.files import read_parameters, verify
from facepipe.weights.registry import DEFAULT_ENCODER, Weight, load_card, shipped_folder

onnx = pytest.importorskip("onnx", reason="making ONNX files needs the [train] extra")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = RuntimeChoice("onnx", "cpu", 1)
OURS = shipped_folder() / f"{DEFAULT_ENCODER}.onnx"
"""Takes (x - 127.5) / 128 of RGB."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def changed(
    folder: Path, front: list[Any], shape: list[Any], back: Sequence[Any] = (), dimensions: int = 128
) -> Path:
    """The shipped encoder between other nodes, from "x" to "images" and from "embeddings" to "y"."""
    model = onnx.load(OURS)
    graph = model.graph
    graph.node.extend(back)
    for node in reversed(front):
        graph.node.insert(0, node)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    if back:
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, dimensions]))
    for name, value in {"half": 127.5, "scale": 128.0, "seven": 7.0}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    del graph.value_info[:]
    path = folder / "theirs.onnx"
    onnx.save(model, path)
    return path


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def plain(folder: Path, shape: list[Any] | None = None) -> Path:
    return changed(folder, [node("Identity", "x", "images")], shape or ["n", 3, 112, 112])


def vectors_of(weight: Weight, faces: UInt8Array) -> Any:
    return FaceEncoder.load(str(weight.folder / f"{weight.card.name}.json"), CPU).encode(faces)


@pytest.fixture
def faces(astronaut: UInt8Array) -> UInt8Array:
    return np.stack([astronaut[y : y + 112, x : x + 112] for y, x in ((60, 170), (80, 160), (300, 300))])


def test_the_default_input_is_recognised(tmp_path: Path, faces: UInt8Array) -> None:
    weight = import_onnx_encoder(plain(tmp_path), name="theirs", std=(128.0, 128.0, 128.0), licence="MIT")
    assert (weight.card.input, weight.card.licence) == (load_card(DEFAULT_ENCODER).card.input, "MIT")
    assert weight.card.embedding is not None
    assert (weight.card.embedding.dimensions, weight.card.embedding.threshold_l2) == (128, None)
    np.testing.assert_allclose(
        vectors_of(weight, faces), FaceEncoder.load(runtime=CPU).encode(faces), atol=1e-6
    )
    verify(weight)
    assert load_card("theirs") == weight
    near = import_onnx_encoder(plain(tmp_path), name="near")
    assert near.card.input.std == (127.5, 127.5, 127.5)
    assert near.card.fingerprint != weight.card.fingerprint


FORMS = {
    "channels last": (
        [node("Transpose", "x", "images", perm=[0, 3, 1, 2])],
        ["n", 112, 112, 3],
        (128.0,) * 3,
    ),
    "channels last, one by one": (
        [node("Transpose", "x", "images", perm=[0, 3, 1, 2])],
        [1, 112, 112, 3],
        (128.0,) * 3,
    ),
    "one by one": ([node("Identity", "x", "images")], [1, 3, 112, 112], (128.0,) * 3),
    "open sides": ([node("Identity", "x", "images")], ["n", 3, "h", "w"], (128.0,) * 3),
    "scales by itself": (
        [node("Sub", "x half", "less"), node("Div", "less scale", "images")],
        ["n", 3, 112, 112],
        None,
    ),
}


@pytest.mark.parametrize(("front", "shape", "std"), FORMS.values(), ids=FORMS)
def test_every_form_of_input_gives_the_same(
    front: list[Any], shape: list[Any], std: Any, tmp_path: Path, faces: UInt8Array
) -> None:
    weight = import_onnx_encoder(changed(tmp_path, front, shape), name="theirs", std=std)
    assert weight.card.input.size_px == 112
    np.testing.assert_allclose(
        vectors_of(weight, faces), FaceEncoder.load(runtime=CPU).encode(faces), atol=1e-5
    )


def test_vectors_of_any_length_are_made_unit_ones(tmp_path: Path, faces: UInt8Array) -> None:
    back = [node("Mul", "embeddings seven", "long"), helper.make_node("Concat", ["long"] * 4, ["y"], axis=1)]
    path = changed(tmp_path, [node("Identity", "x", "images")], ["n", 3, 112, 112], back, 512)
    weight = import_onnx_encoder(path, name="theirs", std=(128.0,) * 3)
    vectors = vectors_of(weight, faces)
    assert vectors.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_torch_has_nothing_to_run(tmp_path: Path) -> None:
    weight = import_onnx_encoder(plain(tmp_path), name="theirs")
    assert weight.parameters_path is None
    with pytest.raises(WeightsError, match=r"without parameters for torch: .* --runtime onnx"):
        read_parameters(weight)


def test_what_knows_no_face_is_refused(tmp_path: Path, home: Path) -> None:
    sums = [node("ReduceMean", "x", "means", axes=[2, 3], keepdims=0)]
    graph = helper.make_graph(
        [*sums, node("Identity", "means", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "x.onnx",
    )
    with pytest.raises(WeightsError, match=r"x\.onnx: finds other pictures .* as near"):
        import_onnx_encoder(tmp_path / "x.onnx", name="theirs")
    detector = shipped_folder() / "retinaface_mobilenet025.onnx"
    with pytest.raises(WeightsError, match="expected one output, a vector an image"):
        import_onnx_encoder(detector, name="theirs")
    with pytest.raises(WeightsError, match="can't be run on faces of 64 px"):
        import_onnx_encoder(plain(tmp_path, ["n", 3, "h", "w"]), name="theirs", size_px=64)
    with pytest.raises(UsageError, match="takes faces of 112 px, not of 96"):
        import_onnx_encoder(plain(tmp_path), name="theirs", size_px=96)
    with pytest.raises(UsageError, match="unknown alignment 'x'"):
        import_onnx_encoder(plain(tmp_path), name="theirs", alignment="x")
    with pytest.raises(WeightsError, match=r"none\.onnx: can't read"):
        import_onnx_encoder(tmp_path / "none.onnx", name="theirs")
    assert not home.exists()


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        (["n", 3, 112, 112], InputForm(False, False, 112)),
        ([None, None, None, None], InputForm(False, False, None)),
        ([1, 160, 160, 3], InputForm(True, True, 160)),
        (["n", None, None, 3], InputForm(True, False, None)),
        ([1, 3, 480, 640], InputForm(False, True, None)),
        ([1, 3, 3, 3], InputForm(False, True, 3)),
    ],
)
def test_forms_are_read_from_shapes(shape: list[Any], form: InputForm) -> None:
    assert InputForm.of_shape(shape, None) == form


@pytest.mark.parametrize(
    "shape", [[], [1], [1, 1, 112, 112], [8, 3, 112, 112], [1, 3, 112], [1, 3, 1, 112, 112]]
)
def test_other_shapes_are_refused(shape: list[Any]) -> None:
    with pytest.raises(WeightsError, match="expected an input of color images"):
        InputForm.of_shape(shape, None)


def test_the_commands_from_file_to_name(tmp_path: Path, astronaut: UInt8Array) -> None:
    done = facepipe("weights", "import", plain(tmp_path), "--name", "theirs", "--std", "128,128,128")
    assert done.code == 0
    assert "names nobody before it has a threshold" in done.err
    (tmp_path / "people" / "Eileen").mkdir(parents=True)
    Image.fromarray(astronaut).save(tmp_path / "people" / "Eileen" / "a.png")
    Image.fromarray(astronaut[:, ::-1].copy()).save(tmp_path / "b.png")
    chosen = ("--gallery", tmp_path / "g", "--encoder-weights", "theirs")
    assert facepipe("enroll", tmp_path / "people", *chosen).code == 0
    named = facepipe("identify", tmp_path / "b.png", *chosen, "--threshold", 1.0)
    assert "Eileen" in named.out
    other = facepipe("identify", tmp_path / "b.png", "--gallery", tmp_path / "g")
    assert other.code == 1
    assert "holds vectors of theirs" in other.err


@pytest.mark.parametrize(
    "words",
    [
        ("x.onnx", "--architecture", "facenet_mobilenet"),
        ("x.pth", "--size", "112"),
        ("x.pth", "--licence", "MIT"),
    ],
)
def test_options_of_the_other_kind_are_wrong_usage(words: tuple[str, ...]) -> None:
    done = facepipe("weights", "import", *words, "--name", "x")
    assert done.code == 2
    assert f"{words[1]} is not for {words[0]}" in done.err


@pytest.mark.parametrize(
    ("file", "mean", "std"),
    [
        ("teacher_sface_128.onnx", None, None),
        ("teacher_mobilefacenet_128.onnx", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ],
)
def test_published_encoders_know_people(shared_data: Path, file: str, mean: Any, std: Any) -> None:
    weight = import_onnx_encoder(shared_data / "weights" / file, name="theirs", mean=mean, std=std)
    people = sorted((shared_data / "faces" / "people").iterdir())[:40]
    crops = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize((140, 140)).crop((14, 14, 126, 126)), np.uint8)
            for person in people
            for path in sorted(person.iterdir())[:2]
        ]
    )
    vectors = vectors_of(weight, crops)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    person = np.arange(len(vectors)) // 2
    same = distances[(person[:, None] == person) & ~np.eye(len(vectors), dtype=bool)]
    others = distances[person[:, None] != person]
    assert np.median(same) < 1.0 < 1.25 < np.median(others)
