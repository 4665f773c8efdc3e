"""What the doctor looks at: each thing that can be broken is broken here, and found."""

from __future__ import annotations

import json
import shutil
import sqlite3
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import facepipe
from paths import ROOT

from facepipe import doctor
from facepipe.core.errors import UsageError, WeightsError
from facepipe.doctor import Check, examine, verify_weights
from facepipe.gallery import Gallery, NewTemplate
from facepipe.gallery.storage.schema import row_checksum
from facepipe.pipeline import card_identity
from facepipe.training.engine.config import read_configuration
from facepipe.training.recognition.config import EncoderConfig
from facepipe.weights.registry import (
    DEFAULT_DETECTOR,
    DEFAULT_ENCODER,
    list_weights,
    load_card,
    shipped_folder,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACEPIPE_OFFLINE_WEIGHTS", raising=False)
    return tmp_path / "home"


def problems(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.finding for check in checks if not check.ok}


def populated_gallery(folder: Path) -> Path:
    with Gallery.open(folder, card_identity(load_card(DEFAULT_ENCODER).card), create=True) as gallery:
        for row, name in enumerate(("Ada", "Bob")):
            gallery.add(name, [NewTemplate(np.eye(128, dtype=np.float32)[row])])
    return folder


def test_a_healthy_installation(tmp_path: Path) -> None:
    gallery = populated_gallery(tmp_path / "gallery")
    checks = examine(gallery)
    assert problems(checks) == {}
    findings = {check.what: check.finding for check in checks}
    assert findings["gallery"] == f"{gallery}: 2 people, 2 faces of {DEFAULT_ENCODER}"
    assert findings["runtime"].startswith("ONNX Runtime on cpu")
    assert findings[f"weight {DEFAULT_DETECTOR}"] == "detector, files as on the card"
    assert findings[f"weight {DEFAULT_ENCODER}"] == "encoder, files as on the card"
    assert "Python" in findings["facepipe"]
    assert {"numpy", "scikit-image", "faiss-cpu", "opencv-python-headless", "torch"} <= set(findings)


def test_every_package_of_the_plain_install_is_looked_at() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(line.split(">")[0] for line in project["dependencies"]) == sorted(doctor._NEEDED)


def test_a_gallery_need_not_exist(tmp_path: Path) -> None:
    checks = examine(tmp_path / "none")
    assert problems(checks) == {}
    assert "none yet" in checks[-1].finding
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("error", [ImportError("No module named 'faiss'"), OSError("libGL.so.1: missing")])
def test_a_package_that_cant_be_loaded_is_named_and_nothing_else_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(module: str) -> Any:
        if module == "faiss":
            raise error
        return import_module(module)

    monkeypatch.setattr(doctor, "import_module", load)
    checks = examine(tmp_path / "none")
    assert problems(checks) == {
        "faiss-cpu": f"can't be loaded ({error}): pip install --force-reinstall faiss-cpu"
    }
    assert not any(check.what.startswith(("weight", "runtime", "gallery")) for check in checks)


def test_a_missing_device_or_runtime(tmp_path: Path) -> None:
    assert "runtime" in problems(examine(tmp_path, "torch", "cuda:99"))
    assert "unknown runtime" in problems(examine(tmp_path, "jax"))["runtime"]  # type: ignore[arg-type]


def test_damaged_weights_are_found(home: Path) -> None:
    """A copy of a shipped weight under another name, with one byte changed."""
    folder = home / "weights"
    folder.mkdir(parents=True)
    raw = json.loads((shipped_folder() / f"{DEFAULT_DETECTOR}.json").read_text())
    for part in ("parameters", "onnx"):
        name = f"copy.{raw[part]['name'].rsplit('.')[-1]}"
        shutil.copy(shipped_folder() / raw[part]["name"], folder / name)
        raw[part]["name"] = name
    del raw["sha256"]
    (folder / "copy.json").write_text(json.dumps(raw | {"name": "copy"}))
    assert problems(verify_weights(())) == {}
    data = bytearray((folder / "copy.onnx").read_bytes())
    data[1000] ^= 1
    (folder / "copy.onnx").write_bytes(data)
    (folder / "torn.json").write_text("{")
    found = problems(verify_weights(()))
    assert set(found) == {"weight copy", "weight torn"}
    assert "sha256" in found["weight copy"]
    assert "not a facepipe weight card" in found["weight torn"]
    assert problems(verify_weights(["copy"])) == {"weight copy": found["weight copy"]}


def test_weights_by_name() -> None:
    (good,) = verify_weights([DEFAULT_ENCODER])
    assert good.ok
    (unknown,) = verify_weights(["retinaface_mobilenet"])
    assert not unknown.ok
    assert DEFAULT_DETECTOR in unknown.finding


def damage(gallery: Path, how: str) -> None:
    file = gallery / "gallery.sqlite3"
    match how:
        case "a threshold is beyond every distance":
            with sqlite3.connect(file) as sql:
                sql.create_function("row_checksum", -1, row_checksum)
                sql.execute("UPDATE people SET threshold_l2 = 7.0, checksum = row_checksum(name, 7.0)")

        case "a stored vector is cut":
            with sqlite3.connect(file) as sql:
                sql.execute("UPDATE templates SET vector = x'00' WHERE id = 2")
        case "a stored vector is no unit vector":
            with sqlite3.connect(file) as sql:
                sql.execute("UPDATE templates SET vector = zeroblob(512) WHERE id = 2")
        case "not a database":
            file.write_bytes(b"These are not the vectors you are looking for." * 100)
        case "empty":
            file.write_bytes(b"")
        case "no gallery":
            shutil.rmtree(gallery)
            gallery.mkdir()
        case "a file":
            shutil.rmtree(gallery)
            gallery.write_bytes(b"")


@pytest.mark.parametrize(
    "how",
    [
        "a threshold is beyond every distance",
        "a stored vector is cut",
        "a stored vector is no unit vector",
        "not a database",
        "empty",
        "no gallery",
        "a file",
    ],
)
def test_a_damaged_gallery_is_found(tmp_path: Path, how: str) -> None:
    gallery = populated_gallery(tmp_path / "gallery")
    damage(gallery, how)
    found = problems(examine(gallery))
    assert list(found) == ["gallery"]
    assert "Traceback" not in found["gallery"]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where neither HOME nor the list of users names a home folder."""
    pwd = pytest.importorskip("pwd")

    def unknown(_: object) -> None:
        raise KeyError

    for name in ("FACEPIPE_HOME", "HOME"):
        monkeypatch.delenv(name)
    for function in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, function, unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_the_rest_is_looked_at(tmp_path: Path) -> None:
    told = "no home folder found: set FACEPIPE_HOME to a folder for facepipe's files"
    assert problems(examine()) == {"gallery": told}
    assert problems(examine(populated_gallery(tmp_path / "gallery"))) == {}
    said = facepipe("doctor")
    assert (said.code, said.lines[-1]) == (1, f"PROBLEM  gallery: {told}")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_weights_that_ship_are_found() -> None:
    assert load_card(DEFAULT_ENCODER).card.name == DEFAULT_ENCODER
    said = facepipe("weights", "list")
    assert said.code == 0
    assert f"{DEFAULT_DETECTOR:<40} shipped    detector" in said.lines
    with pytest.raises(WeightsError, match=rf"no weight is called 'mine'; known: .*{DEFAULT_ENCODER}"):
        load_card("mine")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gallery", "list"), "set FACEPIPE_HOME"),
        (("enroll", "--name", "Ada", "photo.png"), "set FACEPIPE_HOME"),
        (("weights", "fetch", "published_facenet_casia_512"), "set FACEPIPE_HOME"),
    ],
    ids=" ".join,
)
def test_without_a_home_folder_what_needs_one_is_wrong_usage(arguments: tuple[str, ...], told: str) -> None:
    said = facepipe(*arguments)
    assert said.code == 2
    assert told in said.err


@pytest.mark.usefixtures("homeless")
def test_a_home_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", "~/weights")
    with pytest.raises(UsageError, match="~/weights: no such home folder; write the whole path"):
        list_weights()
    assert problems(examine())["weights"].startswith("~/weights: no such home folder")
    with pytest.raises(UsageError, match="~/cache: no such home folder"):
        read_configuration(EncoderConfig, None, ["cache='~/cache'"])


def test_a_home_folder_that_may_not_be_entered_is_named(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def closed(self: Path, _: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "glob", closed)
    assert "Permission denied" in problems(examine())["weights"]


@pytest.mark.parametrize("command", [("weights", "list"), ("doctor",)], ids=" ".join)
def test_a_home_that_is_no_folder_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "file"))
    assert facepipe(*command).code == 0
