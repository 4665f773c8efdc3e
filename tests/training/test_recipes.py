"""Every recipe as it stands, but for the number of its steps and samples: a step of each of its phases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from recognition_helpers import export_teacher, write_people
from training_helpers import write_dataset

from facepipe.cli import main
from facepipe.core.faces import UInt8Array
from facepipe.facenet import network as networks
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import read_phases, recipe_names
from facepipe.training.recognition.config import EncoderConfig

_SHORT = ("device=cpu", "loop.steps=1", "loop.compile=false", "loop.workers=0", "loop.tensorboard=false")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("facenet")])
def test_every_phase_of_an_encoders_recipe_takes_a_step(
    tmp_path: Path, astronaut: UInt8Array, name: str
) -> None:
    people = write_people(tmp_path / "people", astronaut, people=3, photos=4)
    settings = ["loop.batch_size=6", "batch.photos_per_person=2", "held_out_share=0.1"]
    phases = read_phases(EncoderConfig, name)
    if any(phase.config.batch.people for phase in phases):
        settings.append("batch.people=3")
    if any(phase.config.loss.needs_teacher for phase in phases):
        teacher = _teacher(phases[0].config, tmp_path / "teacher.onnx")
        settings.append(f"teacher.weights={teacher}")
        settings.append(f"second_teacher.weights={teacher}")
    _train("encoder", tmp_path / "run", name, people, [*settings, f"cache={tmp_path / 'cache'}"])
    for phase in phases:
        assert _steps(tmp_path / "run", phase.name) == 1


def _teacher(config: EncoderConfig, path: Path) -> Path:
    """A network of random values with the student's layers, and names for the maps that are compared."""
    torch.manual_seed(1)
    network = getattr(networks, config.network.architecture)(128)
    return export_teacher(network, path, 112, config.teacher.taps)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("retinaface")])
def test_every_phase_of_a_detectors_recipe_takes_a_step(
    tmp_path: Path, astronaut: UInt8Array, name: str, request: pytest.FixtureRequest
) -> None:
    photos = write_dataset(tmp_path / "photos", astronaut, (0.25, 0.4, 0.5) * 7)
    settings = ["loop.batch_size=2", "augment.size_px=128"]
    phases = read_phases(DetectorConfig, name)
    if phases[0].config.network.initial == "imagenet":
        settings.append("network.initial=random")
    if any(phase.config.loss.hints_from == "all" for phase in phases):
        settings.append("teacher.weights=retinaface_mobilenet025")
    if any(phase.config.detail for phase in phases):
        yunet = request.getfixturevalue("shared_data") / "weights" / "yunet_n_dynamic.onnx"
        settings.append(f"detail.weights={yunet}")
    _train("detector", tmp_path / "run", name, photos, [*settings, f"cache={tmp_path / 'cache'}"])
    for phase in phases:
        assert _steps(tmp_path / "run", phase.name) == 1


def _train(trainer: str, run: Path, recipe: str, data: Path, settings: list[str]) -> None:
    chosen = [word for setting in (*_SHORT, *settings) for word in ("--set", setting)]
    words = ["train", trainer, str(run), "--recipe", recipe, "--data", str(data), *chosen]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"


def _steps(run: Path, phase: str) -> int:
    """How many steps were done in a phase, or in a recipe without phases."""
    (checkpoint,) = run.glob(f"*_{phase}/last.pt") if phase else [run / "last.pt"]
    return int(load_checkpoint(checkpoint)["step"])
