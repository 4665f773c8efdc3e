"""Training with data alone: defaults, and what is said of the work before and while it is done."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from training_helpers import write_dataset

from facepipe.cli import main
from facepipe.core.faces import UInt8Array
from facepipe.training.commands import _TrainingBar
from facepipe.training.engine import plan
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.plan import TimeEstimate, precision_warning, slowdown
from facepipe.training.engine.runs import new_run_folder
from facepipe.training.engine.task import Progress

CPU = torch.device("cpu")
SHORT = [
    f"--set={setting}"
    for setting in (
        *("device=cpu", "augment.size_px=64", "loop.batch_size=2", "loop.steps=12", "loop.workers=0"),
        *("loop.compile=false", "loop.validate_every=100"),
    )
]


def train(*words: object) -> Result:
    return CliRunner().invoke(main, ["train", "detector", *map(str, words), *SHORT])


@pytest.fixture
def dataset(tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_dataset(tmp_path / "data", astronaut)


def test_data_alone_trains_the_shipped_detector_and_says_how_long(dataset: Path) -> None:
    done = train("--data", dataset)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "facepipe: recipe retinaface_mobilenet025_detail_photos, run runs/detector"
    assert re.fullmatch(
        r"facepipe: 1 photo, each used 24\.0 times: to step 12 with 2 samples each; 0\.\d+ M parameters in "
        r"float32; 1 process on cpu \(\d+ threads?\)",
        lines[1],
    )
    (estimate,) = (line for line in lines if "s a step" in line)
    assert re.search(
        r": \d+\.\d\d s a step: \d+ s for the other 2 steps, .*; \d+\.\d GB of memory$", estimate
    )
    state = load_checkpoint(Path("runs/detector/last.pt"))
    assert state["record"]["network"]["initial"] == "retinaface_mobilenet025_focus"
    written = {path.name for path in Path("runs/detector").iterdir()}
    pictures = {"curves.png", "precision_recall.png", "samples.jpg"}
    assert written == {*pictures, "best.pt", "last.pt", "log.csv", "tensorboard", ".lock"}
    more = CliRunner().invoke(main, ["train", "detector", "runs/detector", "--resume", "--set=loop.steps=14"])
    assert more.exit_code == 0, more.output
    assert "each used 28.0 times: from step 12 to step 14 with" in more.output
    unnamed = train("--resume")
    assert (unnamed.exit_code, "Name the folder" in unnamed.output) == (2, True)


def test_new_runs_never_share_a_folder(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(new_run_folder(tmp_path / "runs" / "detector"))
        names[-1].mkdir(parents=True)
    assert [path.name for path in names] == ["detector", "detector-2", "detector-3"]


def test_the_time_is_measured_after_the_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter(100.0 + 5.0 * step for step in range(9))  # from the second step to the tenth
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    estimate = TimeEstimate(said.append)
    for step in range(501, 521):  # of a run that was continued
        estimate.add(Progress(step, 2010, {}))
    assert len(said) == 1
    assert said[0].startswith("5.00 s a step: 2 h 5 min for the other 1500 steps, without validation")


def test_slow_steps_are_measured_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 150.0])  # at the second step and at the third
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    estimate = TimeEstimate(said.append)
    for step in range(1, 8):
        estimate.add(Progress(step, 43, {}))
    assert [line.partition(",")[0] for line in said] == ["150.00 s a step: 100 min for the other 40 steps"]


def test_a_precision_without_units_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 1.0, "bfloat16": 12.0}
    monkeypatch.setattr(plan, "_seconds", lambda precision, device: seconds[precision])
    assert precision_warning("float32", CPU) is None
    warning = precision_warning("bfloat16", CPU)
    assert warning is not None
    assert warning.startswith(
        "bfloat16 takes 12.0 times as long as float32 on this processor; --set loop.precision"
    )
    assert precision_warning("bfloat16", torch.device("cuda")) is None
    seconds["bfloat16"] = 0.3
    assert precision_warning("bfloat16", CPU) is None


def test_the_precision_is_measured_without_a_random_number() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert 0 < slowdown("bfloat16", CPU) < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_every_phase_has_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := io.StringIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with _TrainingBar() as bar:
        for steps in (3, 3, 2):
            for step in range(1, steps + 1):
                bar.step(Progress(step, steps, {"class": 1.0}))
            bar.say("the next phase")
    shown = terminal.getvalue()
    assert shown.count("0/3 ") == 2
    assert shown.count("0/2 ") == 1
    assert "facepipe: the next phase\n" in shown


def test_other_processes_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _TrainingBar().say("a line")
    monkeypatch.setenv("RANK", "1")
    _TrainingBar().say("another line")
    assert capsys.readouterr().err == "facepipe: a line\n"
