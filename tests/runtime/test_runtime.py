"""What runs where: what is asked for or an error, and the same numbers on both runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from paths import ROOT

from facepipe.align import align_faces
from facepipe.batch.ray_worker import installation_of
from facepipe.core.errors import DeviceError, FacepipeError, MissingExtraError, UsageError, WeightsError
from facepipe.core.faces import FloatArray, UInt8Array
from facepipe.detector import FaceDetector
from facepipe.encoder import FaceEncoder
from facepipe.pipeline import FacePipeline
from facepipe.runtime import engines
from facepipe.runtime.engines import (
    Engine,
    Network,
    RuntimeChoice,
    RuntimeName,
    choose_runtime,
    open_network,
    to_planes,
)
from facepipe.weights.cards import InputSpec
from facepipe.weights.files import write_weight
from facepipe.weights.registry import DEFAULT_DETECTOR, DEFAULT_ENCODER, Weight, load_card

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs the [train] extra")


# Choosing


def test_the_plain_choice_is_onnx_runtime_on_the_cpu() -> None:
    choice = choose_runtime()
    assert (choice.runtime, choice.device) == ("onnx", "cpu")
    assert 1 <= choice.threads <= (os.cpu_count() or 1)
    assert choose_runtime(threads=3) == RuntimeChoice("onnx", "cpu", 3)
    assert str(RuntimeChoice("onnx", "cpu", 3)) == "ONNX Runtime on cpu, 3 threads"
    assert str(RuntimeChoice("openvino", "cpu", 1, calls=4)) == "OpenVINO on cpu, 4 threads"
    assert str(RuntimeChoice("torch", "cuda:1", 3)) == "torch on cuda:1"


@pytest.mark.parametrize(
    ("runtime", "package"), [("auto", "onnxruntime"), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_nodes_of_a_cluster_need_the_runtime_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, runtime: RuntimeName, package: str
) -> None:
    pipeline = FacePipeline.load(runtime=RuntimeChoice("onnx", "cpu", 1))
    monkeypatch.setattr(engines, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(metadata, "version", lambda name: f"1 of {name}")
    packages = installation_of(pipeline, runtime).packages
    assert packages.keys() & {"onnxruntime", "openvino", "torch"} == {package}


@needs_torch
def test_torch_when_asked_for() -> None:
    assert choose_runtime("torch").runtime == "torch"
    assert choose_runtime("torch", "cpu").device == "cpu"


@pytest.mark.parametrize(
    ("runtime", "device", "told"),
    [
        ("tensorflow", "auto", "unknown runtime 'tensorflow': expected one of auto, onnx, openvino, torch"),
        ("", "auto", "unknown runtime ''"),
        ("auto", "gpu", "unknown device 'gpu': expected cpu, cuda or cuda:N"),
        ("auto", "cuda:", "unknown device 'cuda:'"),
        ("auto", "cuda:-1", "unknown device 'cuda:-1'"),
        ("auto", "CPU", "unknown device 'CPU'"),
        ("onnx", "cuda", "runtime onnx runs on the CPU only; for cuda use --runtime torch"),
        ("onnx", "cuda:0", "runtime onnx runs on the CPU only"),
        ("openvino", "cuda", "runtime openvino runs on the CPU only; for cuda use --runtime torch"),
    ],
)
def test_words_that_mean_nothing_are_wrong_usage(runtime: str, device: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_runtime(runtime, device)  # type: ignore[arg-type]


@needs_torch
@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_a_missing_device_is_an_error_and_no_fallback(runtime: str) -> None:
    with pytest.raises(DeviceError, match=r"cuda:99 is not available: torch sees \d+ CUDA devices"):
        choose_runtime(runtime, "cuda:99")  # type: ignore[arg-type]


def without_torch(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python where `import torch` and `import onnx` fail as if they were not installed."""
    blocked = "import sys; sys.modules.update(torch=None, onnx=None, torchvision=None)\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["identify", "--runtime", "torch", "photo.jpg"],
        ["detect", "--device", "cuda", "photo.jpg"],
        ["weights", "import", "some.pth", "--name", "some"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_without_torch_the_one_line_to_type_is_told(arguments: list[str]) -> None:
    done = without_torch(f"from facepipe import cli; cli.main({arguments!r})")
    assert done.returncode == MissingExtraError.exit_code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert 'pip install "facenet-pytorch' in done.stderr


# The runtimes

OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"needs the [{extra}] extra"))
    for name, extra in (("torch", "train"), ("openvino", "openvino"))
]
AGREE_TO: dict[str, float] = {"torch": 1e-3, "openvino": 1e-4}


def on_both(name: str, other: Engine) -> tuple[Network, Network]:
    weight = load_card(name)
    return (
        open_network(weight, RuntimeChoice("onnx", "cpu", 1)),
        open_network(weight, RuntimeChoice(other, "cpu", 1)),
    )


def planes(photo: UInt8Array, spec: InputSpec) -> FloatArray:
    batch = np.zeros((1, 3, *photo.shape[:2]), np.float32)
    to_planes(photo, spec, batch[0])
    return batch


@pytest.mark.parametrize("other", OTHERS)
def test_detector_outputs_agree(astronaut: UInt8Array, other: Engine) -> None:
    onnx, second = on_both(DEFAULT_DETECTOR, other)
    batch = planes(astronaut[:320, :416], load_card(DEFAULT_DETECTOR).card.input)
    for ours, theirs in zip(onnx.run(batch), second.run(batch), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=AGREE_TO[other])


@pytest.mark.parametrize("engine", ["onnx", *OTHERS])
def test_the_first_outputs_do_not_depend_on_the_others(astronaut: UInt8Array, engine: Engine) -> None:
    batch = planes(astronaut[:256, :320], load_card(DEFAULT_DETECTOR).card.input)
    network = open_network(load_card(DEFAULT_DETECTOR), RuntimeChoice(engine, "cpu", 1))
    all_four, first = network.run(batch), network.run(batch, 3)
    assert (len(all_four), len(first)) == (4, 3)
    for with_all, alone in zip(all_four, first, strict=False):
        np.testing.assert_array_equal(with_all, alone)


@pytest.mark.parametrize("other", OTHERS)
def test_encoder_outputs_agree(astronaut: UInt8Array, other: Engine) -> None:
    onnx, second = on_both(DEFAULT_ENCODER, other)
    crops = [astronaut[y : y + 112, x : x + 112] for y, x in ((60, 170), (200, 200))]
    spec = load_card(DEFAULT_ENCODER).card.input
    batch = np.concatenate([planes(np.ascontiguousarray(crop), spec) for crop in crops])
    (ours,), (theirs,) = onnx.run(batch), second.run(batch)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=AGREE_TO[other])


needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the [openvino] extra")


def test_an_openvino_that_cannot_be_loaded_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so: no such file')")
    code = "from facepipe import cli\ncli.main(['detect', '--runtime', 'openvino', 'docs/astronaut.jpg'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == DeviceError.exit_code
    assert "Traceback" not in done.stderr
    assert "OpenVINO can't be loaded (libopenvino.so: no such file)" in done.stderr
    assert "--runtime onnx" in done.stderr


@needs_openvino
def test_threads_share_an_openvino_network(astronaut: UInt8Array) -> None:
    spec = load_card(DEFAULT_ENCODER).card.input
    network = open_network(load_card(DEFAULT_ENCODER), RuntimeChoice("openvino", "cpu", 1, calls=2))
    batches = [planes(np.ascontiguousarray(astronaut[y : y + 112, 170:282]), spec) for y in range(0, 320, 40)]
    one_by_one = [network.run(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = [outputs[0] for outputs in pool.map(network.run, batches)]
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.parametrize("other", OTHERS)
def test_the_whole_way_agrees(astronaut: UInt8Array, other: Engine) -> None:
    results = []
    for runtime in ("onnx", other):
        choice = choose_runtime(runtime, threads=1)
        faces = FaceDetector.load(runtime=choice).detect(astronaut)
        crops = align_faces(astronaut, faces.landmarks, "arcface_112")
        results.append((faces, FaceEncoder.load(runtime=choice).encode(crops)))
    (faces, embeddings), (other_faces, other_embeddings) = results
    np.testing.assert_allclose(faces.boxes_xyxy, other_faces.boxes_xyxy, atol=0.05)
    np.testing.assert_allclose(faces.landmarks, other_faces.landmarks, atol=0.05)
    np.testing.assert_allclose(embeddings, other_embeddings, atol=1e-3)


# Files that can't be run


def copied(folder: Path, onnx: bytes | None) -> Weight:
    """The shipped encoder's card over other files."""
    card = replace(load_card(DEFAULT_ENCODER).card, name="other")
    return write_weight(folder, card, {"x": np.zeros(3, np.float32)}, onnx)


CANT_RUN: dict[str, tuple[bytes | None, str]] = {
    "no ONNX file": (None, "other has no ONNX file: run it with --runtime torch"),
    "not ONNX": (b"neither protobuf nor anything", r"other\.onnx: not a readable ONNX file"),
    "empty": (b"", r"other\.onnx: not a readable ONNX file"),
    "nothing": (b"\x08\x08\x3a\x00", r"other\.onnx: ONNX Runtime can't load it"),
}


@pytest.mark.parametrize(("onnx", "told"), CANT_RUN.values(), ids=CANT_RUN)
def test_a_weight_that_cant_run_is_a_clear_error(tmp_path: Path, onnx: bytes | None, told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        open_network(copied(tmp_path, onnx), RuntimeChoice("onnx", "cpu", 1))


def test_a_file_that_was_changed_is_not_run(tmp_path: Path) -> None:
    weight = copied(tmp_path, b"something")
    (tmp_path / "other.onnx").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="sha256"):
        open_network(weight, RuntimeChoice("onnx", "cpu", 1))


@needs_torch
def test_torch_refuses_parameters_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(FacepipeError, match="other parameters than the architecture has"):
        open_network(copied(tmp_path, None), RuntimeChoice("torch", "cpu", 1))


# Preprocessing


def reference_planes(image: UInt8Array, spec: InputSpec) -> npt.NDArray[np.float64]:
    pixels = image.astype(np.float64)
    pixels = pixels if spec.channels == "rgb" else pixels[..., ::-1]
    normalised: npt.NDArray[np.float64] = (pixels - spec.mean) / spec.std
    return normalised.transpose(2, 0, 1)


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec("rgb", (104, 117, 123), (1, 1, 1)),
        InputSpec("bgr", (104, 117, 123), (1, 1, 1)),
        InputSpec("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        InputSpec("bgr", (1, 2, 3), (4, 5, 6)),
    ],
    ids=lambda spec: f"{spec.channels} {spec.mean[0]:g}",
)
def test_planes_are_as_the_card_says_and_padding_is_untouched(spec: InputSpec, astronaut: UInt8Array) -> None:
    image = astronaut[60:173, 180:251]
    for view in (image, image[:, ::-1], image[::2, ::3]):
        height, width = view.shape[:2]
        out = np.full((3, 128, 96), -7, np.float32)
        to_planes(view, spec, out)
        np.testing.assert_allclose(out[:, :height, :width], reference_planes(view, spec), atol=1e-4)
        assert (out[:, height:] == -7).all()
        assert (out[:, :, width:] == -7).all()


def test_one_pixel() -> None:
    out = np.zeros((3, 32, 32), np.float32)
    to_planes(np.array([[[1, 2, 3]]], np.uint8), InputSpec("bgr", (0, 0, 0), (1, 1, 1)), out)
    np.testing.assert_array_equal(out[:, 0, 0], [3, 2, 1])
    assert out.sum() == 6


def test_threads_do_not_wait_for_work_by_spinning_after_a_run() -> None:
    """They would take the processors from the next network."""
    network = open_network(load_card(DEFAULT_DETECTOR), RuntimeChoice("onnx", "cpu", 2))
    spent_s = []
    for _ in range(5):
        network.run(np.zeros((1, 3, 256, 256), np.float32))
        started = time.process_time()
        time.sleep(0.02)
        spent_s.append(time.process_time() - started)
    assert min(spent_s) < 0.005
