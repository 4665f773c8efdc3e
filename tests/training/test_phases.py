"""Recipes in phases: one command runs them all, and goes on in the phase in which it was stopped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from training_helpers import assert_same_run, write_dataset

from facepipe.cli import main
from facepipe.core.errors import DataError, FacepipeError, UsageError
from facepipe.core.faces import UInt8Array
from facepipe.training.commands import _TrainingBar
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import read_configuration, read_phases
from facepipe.training.engine.phases import phases_of_run
from facepipe.training.engine.task import Progress
from facepipe.training.recognition.config import EncoderConfig

RECIPE = """
device = "cpu"
[augment]
size_px = 64
[teacher]
weights = "for all"
[loop]
batch_size = 2
steps = 3
workers = 0
log_every = 1
checkpoint_every = 100
[[phase]]
name = "first"
[phase.loop]
seed = 5
[[phase]]
name = "second"
teacher.weights = "its own"
[phase.loop]
steps = 4
warmup_steps = 2
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a teacher."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    taught = ('[teacher]\nweights = "for all"\n', 'teacher.weights = "its own"\n')
    file.write_text(RECIPE.replace(taught[0], "").replace(taught[1], ""))
    return file


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path_factory.mktemp("photos") / "data", astronaut)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path, dataset: Path) -> Path:
    """A run of both phases that nothing has stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = train(run, "--recipe", recipe, "--data", dataset)
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if ": phase" in line] == [
        f"facepipe: phase first, 1 of 2: {run / '1_first'}",
        f"facepipe: phase second, 2 of 2: {run / '2_second'}",
    ]
    assert done.output.splitlines()[-1].endswith(f"{run / '2_second' / 'last.pt'}")
    return run


def train(*words: object) -> Result:
    return CliRunner().invoke(main, ["train", "detector", *map(str, words)])


def test_a_phase_changes_what_stands_before_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    options = {"teacher.weights": "of the command", "data": [{"folder": Path("a")}]}
    first, second = read_phases(DetectorConfig, file, ["optimiser.learning_rate=0.5"], options)
    assert (first.name, second.name) == ("first", "second")
    assert (first.config.loop.steps, first.config.loop.seed, first.config.loop.batch_size) == (3, 5, 2)
    assert (second.config.loop.steps, second.config.loop.seed, second.config.loop.warmup_steps) == (4, 0, 2)
    assert first.config.teacher is not None
    assert second.config.teacher is not None
    assert (first.config.teacher.weights, second.config.teacher.weights) == ("of the command", "its own")
    for phase in (first, second):
        assert phase.config.optimiser.learning_rate == 0.5
        assert phase.config.data[0].folder == Path("a")
    assert read_configuration(DetectorConfig, file).loop.steps == 4
    (only,) = read_phases(DetectorConfig, "retinaface_mobilenet025")
    assert only.name == ""


@pytest.mark.parametrize(
    "phases",
    [
        "phase = 1",
        "phase = []",
        "phase = [1]",
        "[phase]\nname = 'a'",
        "[[phase]]\n[phase.loop]\nsteps = 1",
        "[[phase]]\nname = 'a'\n[[phase]]\nname = 'a'",
        "[[phase]]\nname = '../a'",
        "[[phase]]\nname = ''",
        "[[phase]]\nname = 'a'\nunknown = 1",
    ],
)
def test_what_are_no_phases_is_named(tmp_path: Path, phases: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(phases)
    with pytest.raises(UsageError, match=r"phase|unknown"):
        read_phases(DetectorConfig, file)


@pytest.mark.parametrize(
    ("kind", "name", "phases"),
    [
        (EncoderConfig, "facenet_mobilenetv1", ["blocks", "whole", "ensemble"]),
        (EncoderConfig, "facenet_mobilefacenet", ["blocks", "whole", "corrupted"]),
        (DetectorConfig, "retinaface_mobilenet025_taught", ["maps", "labels", "scenes"]),
        (DetectorConfig, "retinaface_mobilenet025_focus", ["branch", "maps", "labels", "scenes", "focus"]),
    ],
)
def test_the_recipes_of_the_shipped_weights_have_phases(
    kind: type[DetectorConfig] | type[EncoderConfig], name: str, phases: list[str]
) -> None:
    assert [phase.name for phase in read_phases(kind, name)] == phases


def stop_at(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Progress], bool]) -> None:
    def step(_: _TrainingBar, progress: Progress) -> None:
        if wanted(progress):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(_TrainingBar, "step", step)


@pytest.mark.parametrize("stopped", ["in the first", "between", "in the second"])
def test_a_run_continues_in_the_phase_where_it_was_stopped(
    tmp_path: Path, recipe: Path, dataset: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    words = ["--recipe", recipe, "--data", dataset]
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        if stopped == "between":  # the process ends after the first phase
            patch.setattr("facepipe.training.train.with_initial", lambda *_: 1 / 0)
            assert isinstance(train(cut, *words).exception, ZeroDivisionError)
        else:
            steps = 3 if stopped == "in the first" else 4
            stop_at(patch, lambda progress: (progress.step, progress.steps) == (2, steps))
            assert train(cut, *words).exit_code == 130
    assert (cut / "2_second").exists() == (stopped == "in the second")
    refused = train(cut, *words)
    assert (refused.exit_code, "continue it with --resume" in refused.output) == (2, True)
    resumed = train(cut, "--resume")
    assert resumed.exit_code == 0, resumed.output
    for phase in ("1_first", "2_second"):
        one, other = (load_checkpoint(run / phase / "last.pt") for run in (cut, whole))
        for record in (one["record"], other["record"]):
            record["network"].pop("initial")
        assert_same_run(one, other)
    first, second = (load_checkpoint(cut / phase / "last.pt") for phase in ("1_first", "2_second"))
    assert any(not torch.equal(first["module"][key], value) for key, value in second["module"].items())


def test_settings_change_in_the_phases_that_have_not_ended(tmp_path: Path, whole: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert train(run, "--resume").exit_code == 0  # nothing is left to do
    shutil.rmtree(run / "2_second")
    first, second = phases_of_run(DetectorConfig, run, ["loop.steps=5"])
    assert (first.config.loop.steps, second.config.loop.steps) == (3, 5)
    with pytest.raises(UsageError, match="another trainer"):
        phases_of_run(EncoderConfig, run)
    for content in ("", "{}", "[]", "[1]", json.dumps([{"name": "first"}])):
        (run / "phases.json").write_text(content)
        with pytest.raises(DataError, match=r"phases\.json: not the phases of a run"):
            phases_of_run(DetectorConfig, run)


def test_a_run_that_saved_nothing_begins_anew(tmp_path: Path, recipe: Path, dataset: Path) -> None:
    """Here the first weights were not found."""
    words = ["--recipe", recipe, "--data", dataset, "--set"]
    refused = train(tmp_path / "run", *words, "network.initial=gone.pth")
    assert "gone.pth" in refused.output
    again = train(tmp_path / "run", *words, "network.initial=imagenet")
    assert "torchvision has no MobileNetV1" in again.output


def test_one_phase_runs_alone(tmp_path: Path, recipe: Path, dataset: Path) -> None:
    words = ["--recipe", recipe, "--data", dataset, "--phase"]
    alone = train(tmp_path / "alone", *words, "second")
    assert alone.exit_code == 0, alone.output
    assert load_checkpoint(tmp_path / "alone" / "last.pt")["step"] == 4
    unknown = train(tmp_path / "unknown", *words, "third")
    assert (unknown.exit_code, "its phases: first, second" in unknown.output) == (2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('teacher.weights = "gone"', "no weight is called 'gone'"),
        ('validation.photos = "/nowhere"', "/nowhere"),
        (
            'loss.hints_from = "all"',
            "loss.hints_from = all compares with a teacher of the same layers: name one",
        ),
    ],
)
def test_what_a_later_phase_lacks_ends_the_run_before_the_first(
    tmp_path: Path, recipe: Path, dataset: Path, settings: str, message: str
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.read_text().replace('name = "second"', f'name = "second"\n{settings}'))
    refused = train(tmp_path / "run", "--recipe", file, "--data", dataset)
    assert isinstance(refused.exception, FacepipeError | SystemExit)
    assert message in f"{refused.output}{refused.exception}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["retinaface_mobilenet025_taught", "retinaface_mobilenet025_focus"])
def test_a_taught_recipe_without_its_teacher_says_so_at_once(
    tmp_path: Path, dataset: Path, recipe: str
) -> None:
    refused = train(tmp_path / "run", "--recipe", recipe, "--data", dataset)
    assert refused.exit_code == 2
    assert "name one (--teacher)" in refused.output
