"""Whole runs of both trainers, by the command, that are stopped or meet what is broken."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from recognition_helpers import tiny_config, write_people, write_teacher
from torch import nn
from training_helpers import TORCHRUN, assert_same_run, environment, run_python, to_toml, write_dataset

import facepipe.training.detection.prepare as preparation
from facepipe.cli import main
from facepipe.core.faces import UInt8Array
from facepipe.images.reading import read_image
from facepipe.training.commands import _TrainingBar
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import read_configuration, to_plain
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.runs import configuration_of_run, only_run_in
from facepipe.training.engine.task import Progress
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.teacher import Teacher
from facepipe.training.train import train

SETTINGS = [
    "device=cpu",
    "augment.size_px=64",
    "loop.batch_size=2",
    "loop.workers=1",
    "loop.steps=6",
    "loop.warmup_steps=1",
    "loop.log_every=1",
    "loop.checkpoint_every=4",
    "loop.compile=false",
]


@pytest.fixture
def dataset(tmp_path: Path, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path / "data", astronaut)


def _config(dataset: Path, *overrides: str) -> DetectorConfig:
    return read_configuration(DetectorConfig, None, [f"data.0.folder={dataset}", *SETTINGS, *overrides])


def _words(dataset: Path, run: Path, *overrides: str) -> list[str]:
    settings = [f"--set={setting}" for setting in (*SETTINGS, *overrides)]
    recipe = ["--recipe", "retinaface_mobilenet025"]
    return ["train", "detector", str(run), *recipe, "--data", str(dataset), *settings]


def _train(dataset: Path, run: Path, *overrides: str) -> Result:
    done = CliRunner().invoke(main, _words(dataset, run, *overrides))
    assert multiprocessing.active_children() == []
    return done


def _at_step(step: int, number: signal.Signals = signal.SIGTERM) -> Callable[[Progress], None]:
    return lambda progress: signal.raise_signal(number) if progress.step == step else None


def _with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """No detector has dropout yet; give it some."""
    real = preparation.initial_detector  # type: ignore[attr-defined]

    def with_dropout(config: Any) -> Any:
        start = real(config)
        start.network.backbone.stage1.append(  # type: ignore[operator, union-attr]
            nn.Dropout(0.3)
        )
        return start

    monkeypatch.setattr(preparation, "initial_detector", with_dropout)


@pytest.mark.parametrize("step", [3, 4])
def test_a_detector_with_dropout_resumes_exactly(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    _with_dropout(monkeypatch)
    config = _config(dataset)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", on_step=_at_step(step))
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["step"] == step
    resumed = configuration_of_run(DetectorConfig, tmp_path / "cut")
    train(resumed, tmp_path / "cut", resume=True)
    whole, cut = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert_same_run(cut, whole)
    assert (
        read_log(tmp_path / "cut" / "log.csv")["class"] == read_log(tmp_path / "whole" / "log.csv")["class"]
    )


def test_an_encoder_with_dropout_resumes_exactly(tmp_path: Path, astronaut: UInt8Array) -> None:
    config = tiny_config(
        f"cache={tmp_path / 'cache'}",
        f"data.0.path={write_people(tmp_path / 'people', astronaut)}",
        "loss.softmax=1",
        "loop.workers=1",
    )
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", on_step=_at_step(2))
    resumed = configuration_of_run(EncoderConfig, tmp_path / "cut")
    train(resumed, tmp_path / "cut", resume=True)
    whole, cut = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert_same_run(cut, whole)
    torch.manual_seed(0)
    assert not torch.equal(cut["random"], torch.get_rng_state())  # dropout has drawn


@pytest.mark.parametrize("content", [None, b"no photo"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_command_without_a_readable_photo_ends_with_the_name_of_one(
    tmp_path: Path, dataset: Path, content: bytes | None, workers: int
) -> None:
    for photo in (dataset / "images").iterdir():
        photo.unlink()
        if content:
            photo.write_bytes(content)
    done = _train(dataset, tmp_path / "run", f"loop.workers={workers}")
    assert done.exit_code == 1, done.output
    assert f"20 photos in a row can't be read, such as {dataset / 'images'}" in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run" / "last.pt").exists()


def remove_photos(dataset: Path) -> None:
    for photo in (dataset / "images").iterdir():
        photo.unlink()


def test_the_process_of_a_run_that_failed_in_a_worker_ends(tmp_path: Path, dataset: Path) -> None:
    remove_photos(dataset)
    done = subprocess.run(
        [sys.executable, "-m", "facepipe.cli", *_words(dataset, tmp_path / "run", "loop.workers=2")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert str(dataset / "images") in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


_TOGETHER = """
import sys
from cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("cached", [False, True])
def test_processes_that_train_together_end_together(tmp_path: Path, dataset: Path, cached: bool) -> None:
    remove_photos(dataset)
    script = tmp_path / "together.py"
    script.write_text(_TOGETHER)
    cache = [f"cache={tmp_path / 'cache'}"] if cached else []  # decoded by the first process, or by workers
    words = _words(dataset, tmp_path / "run", "loop.batch_size=1", *cache)
    done = run_python(script, *words, launcher=TORCHRUN)
    assert done.returncode != 0
    assert str(dataset / "images") in done.stderr
    assert "Error: " not in done.stderr.replace("ChildFailedError", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_with_130(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    at_step = _at_step(2, number)
    monkeypatch.setattr(_TrainingBar, "step", lambda _, progress: at_step(progress))
    done = _train(dataset, tmp_path / "run")
    assert done.exit_code == 130, done.output
    assert "step 2 of 6, stopped; continue with --resume" in done.output
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_photos_are_decoded_leaves_nothing_half_written(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(path: Path) -> UInt8Array:
        if path.name == "1.png":
            signal.raise_signal(number)
        return read_image(path)

    before = signal.getsignal(signal.SIGTERM)
    cache = f"cache={tmp_path / 'cache'}"
    with monkeypatch.context() as patch:
        patch.setattr("facepipe.training.detection.data.read_image", interrupted)
        done = _train(dataset, tmp_path / "run", cache)
    assert done.exit_code == 130, done.output
    assert list((tmp_path / "cache").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert _train(dataset, tmp_path / "run", cache, "loop.steps=1").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_teacher_looks_leaves_nothing_half_written(
    tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = tiny_config(
        f"cache={tmp_path / 'cache'}",
        f"data.0.path={write_people(tmp_path / 'people', astronaut)}",
        f"teacher.weights={write_teacher(tmp_path / 'teacher.onnx')}",
        "teacher.view=canonical",
        "loss.cosine=1",
        "loop.steps=1",
    )
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("\n".join(f"{key} = {to_toml(value)}" for key, value in to_plain(config).items()))
    words = ["train", "encoder", str(tmp_path / "run"), "--recipe", str(recipe)]

    def interrupted(self: Teacher, pixels: torch.Tensor) -> Any:
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "__call__", interrupted)
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 130, done.output
    assert not list((tmp_path / "cache").glob("teacher-*"))
    assert not list((tmp_path / "cache").glob(".*"))
    assert CliRunner().invoke(main, words).exit_code == 0
    (vectors,) = (tmp_path / "cache").glob("teacher-*.npy")
    vectors.write_bytes(vectors.read_bytes()[:-5])  # cut off: computed anew
    assert CliRunner().invoke(main, [*words[:2], str(tmp_path / "next"), *words[3:]]).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_validation_photo_is_heard(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    calls = []

    def overlaps(*_: object) -> Any:
        calls.append("of one box more")
        signal.raise_signal(number)

    monkeypatch.setattr("facepipe.retinaface.nms.iou", overlaps)
    done = _train(dataset, tmp_path / "run", f"validation.photos={dataset}", "loop.validate_every=2")
    assert done.exit_code == 130, done.output
    assert len(calls) == 1
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_what_breaks_a_validation_photo_is_said_with_its_name(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError("of sides")

    monkeypatch.setattr("facepipe.training.detection.validation.scored_boxes", fail)
    done = _train(dataset, tmp_path / "run", f"validation.photos={dataset}", "loop.validate_every=2")
    assert done.exit_code == 1, done.output
    assert f"{dataset / 'images' / '0.png'}: " in done.output
    assert "ZeroDivisionError: of sides" in done.output
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, dataset: Path) -> None:
    with only_run_in(tmp_path / "run"):
        done = _train(dataset, tmp_path / "run")
    assert done.exit_code == 2
    assert "another run trains in this folder" in done.output


@pytest.mark.parametrize(
    ("precision", "without"), [("float32", {"CXX": "no-compiler"}), ("bfloat16", {"PATH": ""})]
)
def test_without_a_compiler_a_run_says_so_and_goes_on(
    tmp_path: Path, dataset: Path, precision: str, without: dict[str, str]
) -> None:
    run = tmp_path / "run"
    words = _words(dataset, run, "loop.steps=1", "loop.compile=true", f"loop.precision={precision}")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, "-m", "facepipe.cli", *words],
        capture_output=True,
        text=True,
        env={key: value for key, value in environment().items() if key != "CXX"} | without | cache,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.compile does not work here" in done.stderr
    assert "C++ compiler" in done.stderr
    record = load_checkpoint(run / "last.pt")["record"]["loop"]
    assert (record["compile"], record["precision"]) == (False, precision)
