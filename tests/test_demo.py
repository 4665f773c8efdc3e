"""The first thing that anybody runs: it works, it shows something, and it says so when it doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from facepipe.core.errors import FacepipeError, OutputError
from facepipe.demo import PERSON, run_demo
from facepipe.detector import DetectorOptions
from facepipe.images.reading import read_image
from facepipe.pipeline import FacePipeline
from facepipe.runtime.engines import RuntimeChoice


class Opener:
    """Opens pipelines as the command line does, and remembers the galleries."""

    def __init__(self, **options: Any) -> None:
        self.options = DetectorOptions(**options)
        self.galleries: list[Path] = []

    def __call__(self, gallery: Path, *, create: bool) -> FacePipeline:
        self.galleries.append(gallery)
        choice = RuntimeChoice("onnx", "cpu", 1)
        return FacePipeline.load(gallery, create_gallery=create, options=self.options, runtime=choice)


def test_she_is_found_and_nobody_else(tmp_path: Path) -> None:
    opener = Opener()
    result = run_demo(tmp_path / "demo", opener)
    assert result.passed, "\n".join(result.lines)
    assert result.lines[0].startswith(f"enrolled {PERSON}")
    assert sum(line.startswith("ok") for line in result.lines) == 9
    photos = {path.name for path in (tmp_path / "demo").glob("*.*")}
    annotated = {path.name for path in (tmp_path / "demo" / "annotated").iterdir()}
    assert photos == annotated | {"portrait.png"}
    assert len(annotated) == 9
    before, after = (read_image(tmp_path / "demo" / sub / "she_is_turned.jpg") for sub in ("", "annotated"))
    assert before.shape == after.shape
    assert (before != after).any()
    assert not opener.galleries[0].exists()


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert [run_demo(tmp_path, Opener()).passed for _ in range(2)] == [True, True]
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_person_who_is_not_named_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener()

    def strict(gallery: Path, *, create: bool) -> FacePipeline:
        pipeline = opener(gallery, create=create)
        assert pipeline.gallery is not None
        pipeline.gallery.set_threshold(1e-6)
        return pipeline

    result = run_demo(tmp_path, strict)
    assert not result.passed
    assert any(line.startswith("WRONG  she_is_gray.jpg: unknown") for line in result.lines)


def test_a_portrait_without_a_face_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FacepipeError, match="could not be enrolled: no face found"):
        run_demo(tmp_path, Opener(score_threshold=1.0))


def test_a_place_that_cant_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="can't make this folder"):
        run_demo(tmp_path / "file", Opener())
