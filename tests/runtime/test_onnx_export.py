"""Weights as files: import of published layouts, ONNX beside torch, and what ships with the package."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facepipe.core.errors import FacepipeError, MissingExtraError, UsageError, WeightsError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.weights.cards import AnchorSpec, EmbeddingSpec, InputSpec, WeightCard, WeightFile
from facepipe.weights.files import read_onnx, read_parameters, verify
from facepipe.weights.registry import Weight, load_card, shipped_folder

torch = pytest.importorskip("torch", reason="converting weights needs the [train] extra")
pytest.importorskip("onnx", reason="converting weights needs the [train] extra")
import onnxruntime  # noqa: E402
from network_helpers import preprocessed, randomised  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from facepipe.runtime import onnx_export as convert  # noqa: E402
from facepipe.runtime.architectures import build_network, load_network, serving_module  # noqa: E402
from facepipe.runtime.onnx_export import import_checkpoint, write_pair  # noqa: E402

MOBILENET, INCEPTION = "facenet_mobilenet", "facenet_inception_resnet_v1"
LAYOUTS = {
    "retinaface_mobilenet025": ("retinaface_mobilenet025", None, (104, 117, 123), 1),
    "retinaface_resnet50": ("retinaface_resnet50", None, (104, 117, 123), 1),
    "facenet_mobilenet_128 (published key layout)": (MOBILENET, 128, (0, 0, 0), 255),
    "facenet_inception_resnetv1_128 (published key layout)": (INCEPTION, 128, (0, 0, 0), 255),
    "facenet_pytorch_inception_resnetv1_512": (INCEPTION, 512, (127.5, 127.5, 127.5), 128),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone after the test: some of these weights have a hundred megabytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def random_state(shared_data: Path, layout: str) -> dict[str, Any]:
    """Random values under exactly the published names, of sizes at which every layer matters."""
    shapes = json.loads((shared_data / "reference" / "published_layouts.json").read_text())[layout]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) == 1:
            state[name] = torch.randn(shape, generator=generator) * 0.1 + float(name.endswith("weight"))
        else:
            state[name] = torch.randn(shape, generator=generator) * (1 / np.prod(shape[1:])) ** 0.5
    return state


def saved(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def run_onnx(weight: Weight, images: FloatArray) -> list[FloatArray]:
    session = onnxruntime.InferenceSession(read_onnx(weight), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {"images": images})]


def run_torch(weight: Weight, images: FloatArray) -> list[FloatArray]:
    with torch.inference_mode():
        outputs = serving_module(load_network(weight))(torch.from_numpy(images))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def require_agreement(weight: Weight, shapes: list[tuple[int, ...]]) -> None:
    random = np.random.default_rng(1)
    for shape in shapes:
        images = random.normal(0, 1, shape).astype(np.float32)
        for ours, theirs in zip(run_torch(weight, images), run_onnx(weight, images), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_is_recognised_and_imported_whole(
    shared_data: Path, folder: Path, layout: str
) -> None:
    architecture, dimensions, mean, std = LAYOUTS[layout]
    state = random_state(shared_data, layout)
    weight = import_checkpoint(saved(state, folder / "x.pth"), name="imported", folder=folder / "out")
    card = weight.card
    assert card == load_card(folder / "out" / "imported.json").card
    assert (card.architecture, card.input.channels) == (architecture, "rgb")
    assert (card.input.mean, card.input.std) == (mean, (std,) * 3)
    if dimensions is None:
        assert card.kind == "detector"
        assert card.anchors == AnchorSpec()
        require_agreement(weight, [(1, 3, 64, 32), (3, 3, 96, 160)])
    else:
        assert card.input.size_px == 160
        assert card.embedding == EmbeddingSpec(dimensions, "facenet_160")
        require_agreement(weight, [(1, 3, 160, 160), (5, 3, 160, 160)])
    arrived = {float(value.astype(np.float64).sum()) for value in read_parameters(weight).values()}
    sent = {float(v.double().sum()) for n, v in state.items() if "num_batches" not in n}
    np.testing.assert_allclose(sorted(arrived), sorted(sent), atol=1e-9)


def test_published_retinaface_gives_the_published_outputs_on_onnx(shared_data: Path, folder: Path) -> None:
    file = shared_data / "weights" / "retinaface_mnet025_bgr.pth"
    weight = import_checkpoint(file, name="mnet_bgr", channels="bgr", folder=folder)
    assert weight.card.input == InputSpec("bgr", (104, 117, 123), (1, 1, 1))
    golden = np.load(shared_data / "reference" / "group_bgr.npz")
    outputs = run_onnx(weight, preprocessed(shared_data / "reference" / "group.png", "bgr"))
    for output, name in zip(
        outputs, ("box_regression", "class_probability", "landmark_regression"), strict=True
    ):
        np.testing.assert_allclose(output[0], golden[name], rtol=0, atol=1e-4)


def test_what_is_said_at_import_stands_on_the_card(shared_data: Path, folder: Path) -> None:
    file = shared_data / "weights" / "retinaface_mnet025_bgr_anchors10.pth"
    anchors = AnchorSpec(sizes_px=((10, 20), (32, 64), (128, 256)))
    card = import_checkpoint(
        file,
        name="other",
        architecture="retinaface_mobilenet025",
        channels="bgr",
        mean=(1, 2, 3),
        std=(4, 5, 6),
        anchors=anchors,
        folder=folder,
    ).card
    assert card.input == InputSpec("bgr", (1, 2, 3), (4, 5, 6))
    assert card.anchors == anchors
    assert card.training["imported_from"] == file.name
    assert len(card.training["imported_sha256"]) == 64


@pytest.mark.parametrize(
    ("layout", "classifier", "dimensions"),
    [
        ("facenet_mobilenet_128 (published key layout)", "classifier", 128),
        ("facenet_pytorch_inception_resnetv1_512", "logits", 512),
    ],
)
def test_the_classifier_of_the_training_is_left_behind(
    shared_data: Path, folder: Path, layout: str, classifier: str, dimensions: int
) -> None:
    state = random_state(shared_data, layout)
    state |= {f"{classifier}.weight": torch.ones(10, dimensions), f"{classifier}.bias": torch.ones(10)}
    weight = import_checkpoint(saved(state, folder / "x.pt"), name="x", folder=folder)
    assert not any(classifier in name for name in read_parameters(weight))


def test_safetensors_and_half_precision_import_too(shared_data: Path, folder: Path) -> None:
    state = random_state(shared_data, "retinaface_mobilenet025")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, folder / "x.safetensors")
    weight = import_checkpoint(folder / "x.safetensors", name="x", folder=folder / "out")
    assert {str(value.dtype) for value in read_parameters(weight).values()} == {"float32"}


def test_a_file_named_as_published_gets_what_its_authors_say_of_it(shared_data: Path, folder: Path) -> None:
    state = random_state(shared_data, "facenet_mobilenet_128 (published key layout)")
    card = import_checkpoint(saved(state, folder / "facenet_mobilenet.pth"), name="x", folder=folder).card
    assert card.training["trained_on"] == "CASIA-WebFace"
    assert "98.23" in card.measured["LFW accuracy"]
    assert "CASIA-WebFace" in card.licence


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "fpn.merge1.0.weight"), r"nearest is retinaface_mobilenet025, with 1 missing"),
        (lambda s: s | {"extra": torch.ones(1)}, r"1 unexpected \(extra\)"),
        (
            lambda s: s | {"BboxHead.0.conv1x1.bias": torch.ones(12)},
            r"1 of other shape \(box_heads.0.bias\)",
        ),
        (lambda s: {"a": torch.ones(1)}, r"x\.pth: has no known layout \(retinaface_mobilenet025, "),
        (
            lambda s: s | {"BboxHead.0.conv1x1.bias": torch.full((8,), np.nan)},
            r"box_heads.0.bias has values that are not finite",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "something else", "not finite"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    shared_data: Path, folder: Path, change: Any, message: str
) -> None:
    state = change(random_state(shared_data, "retinaface_mobilenet025"))
    with pytest.raises(WeightsError, match=message):
        import_checkpoint(saved(state, folder / "x.pth"), name="x", folder=folder / "out")
    assert not (folder / "out").exists()


def test_a_classifier_is_no_detector(shared_data: Path, folder: Path) -> None:
    file = shared_data / "weights" / "mobilenetv1_025_imagenet.pth"
    with pytest.raises(
        WeightsError, match=r"mobilenetv1_025_imagenet\.pth: is a backbone without a detector"
    ):
        import_checkpoint(file, name="x", folder=folder)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"architecture": "facenet_mobilenet"}, WeightsError, "nearest is facenet_mobilenet, with"),
        ({"architecture": "yolo"}, WeightsError, "can't import 'yolo'; known layouts are"),
        ({"name": "facenet_mobilefacenet_128"}, WeightsError, "ships with facepipe"),
        ({"name": "../x"}, WeightsError, "can't name a weight"),
        ({"std": (1.0, 1.0, 0.0)}, WeightsError, "positive std"),
        ({"anchors": AnchorSpec(sizes_px=((16,), (64,), (256,)))}, UsageError, "two anchor sizes"),
        (
            {"anchors": AnchorSpec(sizes_px=((16, 32),), strides_px=(8,))},
            UsageError,
            "two anchor sizes at each of three strides",
        ),
    ],
)
def test_wishes_that_do_not_fit_are_refused(
    shared_data: Path, folder: Path, arguments: dict[str, Any], error: type[FacepipeError], message: str
) -> None:
    file = shared_data / "weights" / "retinaface_mnet025_rgb.pth"
    with pytest.raises(error, match=message):
        import_checkpoint(file, **{"name": "x", "folder": folder / "out", **arguments})
    assert not (folder / "out").exists()


def test_an_encoder_has_no_anchors(shared_data: Path, folder: Path) -> None:
    state = random_state(shared_data, "facenet_mobilenet_128 (published key layout)")
    with pytest.raises(UsageError, match="facenet_mobilenet is an encoder: it has no anchors"):
        import_checkpoint(saved(state, folder / "x.pth"), name="x", anchors=AnchorSpec(), folder=folder)


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"])
def test_a_broken_safetensors_file_is_named(folder: Path, content: bytes | None) -> None:
    file = folder / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors: can't read this safetensors file"):
        import_checkpoint(file, name="x", folder=folder)


def encoder_card(name: str = "mine", dimensions: int = 128) -> WeightCard:
    return WeightCard(
        name=name,
        kind="encoder",
        architecture="facenet_mobilenet",
        input=InputSpec("rgb", (127.5,) * 3, (127.5,) * 3, 112),
        parameters=WeightFile(f"{name}.safetensors", None),
        embedding=EmbeddingSpec(dimensions, "arcface_112"),
    )


@pytest.mark.parametrize("half_storage", [False, True])
def test_a_written_pair_agrees_and_is_self_contained(folder: Path, half_storage: bool) -> None:
    network = randomised(build_network("facenet_mobilenet", 128))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weight = write_pair(network, encoder_card(), folder, half_storage=half_storage)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.json", "mine.onnx", "mine.safetensors"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    parameters = read_parameters(weight)
    assert parameters["trunk.stages.stage1.0.0.weight"].dtype == (np.float16 if half_storage else np.float32)
    assert parameters["trunk.stages.stage1.0.1.running_var"].dtype == np.float32
    assert len(read_onnx(weight)) == pytest.approx(3.34e6 * (2 if half_storage else 4), rel=0.03)
    images = np.random.default_rng(0).normal(0, 1, (3, 3, 112, 112)).astype(np.float32)
    (ours,), (theirs,) = run_torch(weight, images), run_onnx(weight, images)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    with torch.inference_mode():
        unrounded = serving_module(network)(torch.from_numpy(images)).numpy()
    assert 0 < np.abs(theirs - unrounded).max() < (1e-2 if half_storage else 1e-5)


def test_a_pair_that_disagrees_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = serving_module(randomised(build_network("facenet_mobilenet", 128)))
    honest = convert.export_onnx
    monkeypatch.setattr(convert, "export_onnx", lambda serving, card, **_: honest(other, card))
    with pytest.raises(WeightsError, match="torch and ONNX disagree by"):
        write_pair(build_network("facenet_mobilenet", 128), encoder_card(), folder)
    assert not list(folder.iterdir())


def test_a_network_that_is_not_the_cards_is_not_written(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"other parameters than the architecture has: 5 of other shape"):
        write_pair(build_network("facenet_mobilenet", 64), encoder_card(dimensions=128), folder)
    assert not list(folder.iterdir())


def test_an_encoder_without_a_size_is_not_written(folder: Path) -> None:
    card = encoder_card()
    sizeless = replace(card, input=replace(card.input, size_px=None))
    with pytest.raises(WeightsError, match=r"card of mine: an encoder needs 'input.size_px'"):
        write_pair(build_network("facenet_mobilenet", 128), sizeless, folder)


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_without_the_extra_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install .*"torch>='):
        import_checkpoint(folder / "x.pth", name="x")


SHIPPED = sorted(path.stem for path in shipped_folder().glob("*.json"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_weight_is_whole_and_its_files_agree(name: str, astronaut: UInt8Array) -> None:
    weight = load_card(name)
    verify(weight)
    card = weight.card
    side = card.input.size_px or 256
    crop = astronaut[:256, 96:352] if card.kind == "detector" else astronaut[50 : 50 + side, 170 : 170 + side]
    pixels = crop if card.input.channels == "rgb" else crop[..., ::-1]
    images = ((pixels - np.array(card.input.mean)) / np.array(card.input.std)).astype(np.float32)
    batch = np.ascontiguousarray(images.transpose(2, 0, 1)[None])
    for ours, theirs in zip(run_torch(weight, batch), run_onnx(weight, batch), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
        if card.embedding:
            assert theirs.shape == (1, card.embedding.dimensions)
            assert np.linalg.norm(theirs) == pytest.approx(1, abs=1e-5)
            assert card.embedding.threshold_l2 is not None
            assert card.embedding.threshold_source
    assert all([card.licence, card.training, card.measured, card.limits])


def test_the_default_encoder_and_that_of_older_galleries_are_there() -> None:
    assert {"facenet_mobilenetv1_128", "facenet_mobilefacenet_128"} <= set(SHIPPED)
