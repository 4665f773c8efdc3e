"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image
from pipeline_helpers import shifted

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image


@pytest.fixture
def folder(tmp_path: Path, astronaut: UInt8Array) -> Path:
    (tmp_path / "people" / "Eileen").mkdir(parents=True)
    write_image(tmp_path / "people" / "Eileen" / "portrait.png", astronaut)
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.png", shifted(astronaut, 20))
    write_image(tmp_path / "photos" / "b.png", shifted(astronaut, 40))
    return tmp_path


def example(name: str, folder: Path, *arguments: str | Path) -> list[str]:
    """What an example prints, run in the folder."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_name_a_folder(folder: Path) -> None:
    lines = example("name_a_folder", folder, "people", "photos")
    assert lines[0].startswith("enrolled  Eileen")
    assert [line.split(": ")[1] for line in lines[1:]] == ["Eileen", "Eileen"]


def test_group_strangers(folder: Path) -> None:
    (line,) = example("group_strangers", folder, "photos")
    assert line.count(".png") == 2


def test_verify_two_photos(folder: Path) -> None:
    assert example("verify_two_photos", folder, "photos/a.png", "photos/b.png")[0] == "the same person"


def test_only_the_aligner(folder: Path) -> None:
    example("only_the_aligner", folder, "photos/a.png")
    assert Image.open(folder / "face0.png").size == (112, 112)


def test_own_detector(folder: Path, shared_data: Path) -> None:
    model = shared_data / "weights" / "yunet_n_dynamic.onnx"
    assert len(example("own_detector", folder, model, "photos/a.png")) == 1


def test_own_encoder(folder: Path, shared_data: Path) -> None:
    model = shared_data / "weights" / "teacher_sface_128.onnx"
    (line,) = example("own_encoder", folder, model, "photos/a.png", "photos/b.png")
    assert float(line.removeprefix("distance ")) < 0.5


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} <= tested
