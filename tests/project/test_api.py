"""What `import facepipe` offers: all of it there, typed, documented, and nothing loaded before it is used."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

import facepipe


def test_the_names_are_sorted_and_unique() -> None:
    assert facepipe.__all__ == sorted(facepipe.__all__)
    assert len(set(facepipe.__all__)) == len(facepipe.__all__)


@pytest.mark.parametrize("name", facepipe.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    thing: Any = getattr(facepipe, name)
    assert thing.__name__ == name
    assert inspect.getdoc(thing)


def test_what_the_issue_asks_for_is_there() -> None:
    wanted = {"FacePipeline", "FaceDetector", "FaceEncoder", "Gallery", "Faces", "read_image", "align_faces"}
    assert wanted <= set(facepipe.__all__)


def test_names_have_a_home_and_only_they() -> None:
    stub = ast.parse((Path(facepipe.__file__).parent / "__init__.pyi").read_text())
    listed = [node.names[0].name for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert sorted(listed) == facepipe.__all__
    assert dir(facepipe) == sorted([*facepipe.__all__, "__version__"])
    with pytest.raises(AttributeError, match="No facepipe attribute FaceNet"):
        _ = facepipe.FaceNet  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        exec("from facepipe import no_such_thing")


def test_renamed_names_still_work_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match=r"facepipe\.enrol is now facepipe\.enroll"):
        assert facepipe.enrol is facepipe.enroll  # type: ignore[attr-defined]


def test_all_at_once() -> None:
    names: dict[str, Any] = {}
    exec("from facepipe import *", names)
    assert set(facepipe.__all__) <= set(names)


def test_the_package_is_typed() -> None:
    assert (Path(facepipe.__file__).parent / "py.typed").is_file()


def test_files_of_the_same_names_in_the_working_folder_change_nothing(tmp_path: Path) -> None:
    for name in ("cli", "gallery", "training", "weights"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else')")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "__init__.py").write_text("raise SystemExit('somebody else')")
    done = subprocess.run(
        [sys.executable, "-m", "facepipe.cli", "weights", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(facepipe.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "facenet" in done.stdout


@pytest.mark.parametrize("name", facepipe.__all__)
def test_configuration_and_results_are_frozen_and_slotted(name: str) -> None:
    thing: Any = getattr(facepipe, name)
    if dataclasses.is_dataclass(thing):
        assert vars(thing)["__dataclass_params__"].frozen
        assert "__slots__" in vars(thing)


@pytest.mark.parametrize(
    "method", ["load", "detect", "embed", "identify", "identify_files", "close"], ids=str
)
def test_the_pipelines_methods_say_what_they_do(method: str) -> None:
    function = getattr(facepipe.FacePipeline, method)
    assert inspect.getdoc(function)
    parameters = list(inspect.signature(function).parameters.values())
    assert all(p.annotation is not p.empty for p in parameters if p.name not in ("self", "cls"))


def test_the_version_is_the_packages() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == facepipe.__version__
