"""The regression guard and what it is made of; the benchmarks themselves run in CI on a small setting."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from pipeline_helpers import FACE_XYXY
from torch import nn

from facepipe.core.faces import UInt8Array

sys.path.append(str(ROOT))

from benchmarks import check, measure, pipeline, reference_system, startup


@pytest.mark.parametrize(
    ("now", "failed"),
    [
        ({"a": 10.0, "b": 2.0}, []),
        ({"a": 8.01, "b": 1.61}, []),
        ({"a": 7.99, "b": 2.0}, ["a"]),
        ({"a": 1.0, "b": 1.0}, ["a", "b"]),
        ({"a": 30.0, "b": 2.0, "new": 1.0}, []),
    ],
)
def test_a_ratio_may_fall_by_a_fifth(now: dict[str, float], failed: list[str]) -> None:
    assert list(check.slower(now, {"a": 10.0, "b": 2.0})) == failed


def test_the_cost_of_a_network_is_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8 x 8 places, 8 outputs, 27 inputs each
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # depthwise: 9 inputs each
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    known = measure.cost(network, torch.zeros(1, 3, 16, 16))
    assert known.macs == 64 * 8 * 27 + 64 * 8 * 9 + 5120
    assert known.parameters == 216 + 80 + 5130


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    taken = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "a", "b", "b"] * 3
    assert set(taken) == {"a", "b"}


def test_the_folder_has_all_sizes_and_the_same_photos_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pipeline.make_folder(tmp_path / name, None, 12)
    photos = sorted((tmp_path / "one").iterdir())
    assert len(photos) == 12
    assert all(photo.read_bytes() == (tmp_path / "two" / photo.name).read_bytes() for photo in photos)
    assert {Image.open(photo).size for photo in photos} <= set(pipeline.SIZES_WH)


def test_a_photo_fills_its_size_without_being_stretched() -> None:
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[:, 100:] = 255
    fitted = pipeline.fitted(photo, (50, 50))
    assert fitted.shape == (50, 50, 3)
    assert fitted[:, :24].max() < 40
    assert fitted[:, 26:].min() > 215


def test_many_more_photos_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "DISTINCT", 2)
    monkeypatch.setattr(random.Random, "choices", lambda *_: [(64, 48)])
    pipeline.make_folder(tmp_path / "photos", None, 5)
    inodes = [photo.stat().st_ino for photo in sorted((tmp_path / "photos").iterdir())]
    assert inodes[0] == inodes[2] == inodes[4] != inodes[1] == inodes[3]


@pytest.mark.parametrize("growth", [None, {"median": 0.01, "largest": 0.02}])
def test_memory_is_in_the_table_where_it_was_measured(growth: dict[str, float] | None) -> None:
    row: dict[str, Any] = {"photos": 6, "seconds": 2.0, "faces": 9, "peak_bytes": 1_000_000}
    figures: dict[str, dict[str, Any]] = {
        "batch": {**row, "stages": {"read": 1.0}, "busy": 0.9, "growth": growth},
        "loop": {**row, "seconds": 4.0},
    }
    shown = pipeline.as_table(figures, memory=growth is not None)
    assert "| batch | 3.00 | 2.0 | 9 | 1 MB |" in shown
    assert ("+1.0% in the median" in shown) == (growth is not None)


@pytest.mark.parametrize(
    ("trainer", "small"),
    [
        ("detector", ["augment.size_px=64", "loop.batch_size=2"]),
        ("encoder", ["loop.batch_size=4", "batch.people=2", "batch.photos_per_person=2"]),
    ],
)
def test_the_parts_of_training_are_measured(trainer: str, small: list[str]) -> None:
    settings = [part for setting in [*small, "loop.compile=false"] for part in ("--set", setting)]
    command = [sys.executable, "-m", "benchmarks.training", trainer, *settings]
    # In a process of its own, whose memory the benchmark keeps as a trainer does.
    run = subprocess.run(
        [*command, "--steps", "1", "--rounds", "1", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert min(figures.values()) > 0
    assert figures.get("losses_of_step", 0) < 1
    assert ("losses_of_step" in figures) == (trainer == "detector")


def test_import_times_are_read_by_module() -> None:
    written = """import time: self [us] | cumulative | imported package
import time:       120 |        120 |     numpy.version
import time:      3000 |       3120 |   numpy
running on ONNX Runtime
import time:        50 |         50 | json
"""
    assert startup.parse_import_times(written) == [("numpy.version", 120), ("numpy", 3000), ("json", 50)]


def test_commands_are_timed_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = ("-c", "import time; time.sleep(0.2)")
    monkeypatch.setattr(startup, "_COMMANDS", {"python -c pass": ("-c", "pass"), "slow": slow})
    figures = startup.measure(tmp_path, runs=1)
    assert figures["slow"].seconds > 0.2 > figures["slow"].processor_s > 0
    assert "| `slow` |" in startup.commands_table(figures)
    assert "| others | 3 |" in startup.imports_table({f"package{i}": 0.001 for i in range(11)})


def test_a_letterbox_keeps_the_shape_and_leads_back_to_the_photo() -> None:
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[50:, 150:] = 255
    square, scale, corner = reference_system.letterbox(photo, 640)
    assert (scale, corner.tolist()) == (3.2, [0, 160])
    assert (square[:160] == 128).all()
    assert (square[480:] == 128).all()
    assert square[321 + 2 : 480, 480 + 2 :].min() == 255
    assert square[160:318, :478].max() == 0


def test_the_reference_system_finds_the_face_in_pixels_of_the_photo(astronaut: UInt8Array) -> None:
    system = reference_system.ReferenceSystem(people=3)
    wide = np.zeros((700, 1000, 3), np.uint8)
    wide[100:612, 400:912] = astronaut
    (box,) = system.detect(wide).boxes_xyxy
    moved_by = np.array([400, 100, 400, 100])
    assert np.abs(box - FACE_XYXY - moved_by).max() < 15
    assert system.identify(wide) == [None]  # an encoder of random values knows nobody
