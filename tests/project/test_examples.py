"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pipeline_helpers import shifted
from server_helpers import as_jpeg, raw, running

from facepipe.core.faces import UInt8Array
from facepipe.evaluation.pair_lists import read_pair_list
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


def test_pairs_by_age(tmp_path: Path) -> None:
    ages = {"Ann": (1, 4, 30, 70), "Bob": (2, 9, 33, 60), "Cy": (3, 8, 35, 68)}
    photos = {f"{name} {age}.png": (name, age) for name, own in ages.items() for age in own}
    for path in photos:
        (tmp_path / path).touch()
    lines = ["age,person,path", *(f"{age},{name},{path}" for path, (name, age) in photos.items())]
    (tmp_path / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
    printed = example("pairs_by_age", tmp_path, "photos.csv", "pairs.csv")
    assert printed[:2] == ["0-5: 1 pairs of one person, 1 of two", "5-10: 2 pairs of one person, 2 of two"]
    assert printed[4] == "30+: 10 pairs of one person, 10 of two"
    pairs = read_pair_list(tmp_path / "pairs.csv", tmp_path).pairs
    assert len({frozenset((pair.first, pair.second)) for pair in pairs}) == len(pairs) == 36
    for pair in pairs:
        (one, age), (two, other_age) = photos[pair.first], photos[pair.second]
        assert pair.same_person == (one == two)
        low = [0, 5, 10, 20, 30][["0-5", "5-10", "10-20", "20-30", "30+"].index(str(pair.group))]
        assert low <= abs(age - other_age) < {0: 5, 5: 10, 10: 20, 20: 30, 30: 99}[low]


def test_pairs_by_pose(folder: Path) -> None:
    write_image(folder / "photos" / "black.png", np.zeros((64, 64, 3), np.uint8))
    rows = ["first,second,same", "a.png,b.png,1", "a.png,black.png,0"]
    (folder / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    example("pairs_by_pose", folder, "pairs.csv", "photos", "grouped.csv")
    faces, none = read_pair_list(folder / "grouped.csv", folder / "photos").pairs
    assert (faces.first, faces.second, faces.same_person) == ("a.png", "b.png", True)
    assert faces.group in ("0-15", "15-30")  # she looks nearly straight ahead
    assert (none.same_person, none.group) == (False, "no face")


def test_name_by_server(tmp_path: Path, astronaut: UInt8Array) -> None:
    photo, text = tmp_path / "a.jpg", tmp_path / "b.jpg"
    photo.write_bytes(as_jpeg(astronaut))
    text.write_text("no photo")
    with running(tmp_path / "gallery", log=tmp_path / "log") as server:
        command: list[str | Path] = [sys.executable, ROOT / "examples" / "name_by_server.py", server.url]
        done = subprocess.run([*command, photo], capture_output=True, text=True, check=True, timeout=60)
        (face,) = server.client.post("/v1/identify", **raw(photo.read_bytes())).json()["faces"]
        assert done.stdout.startswith(f"{photo}  {face['name'] or face['status']}")
        failed = subprocess.run([*command, text], capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode == 1
    assert "(photo)" in failed.stderr


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} <= tested
