"""The same faces, names and reasons on every runtime, also with the instructions of AVX2 alone."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from pipeline_helpers import side_by_side
from skimage import data

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

sys.path.append(str(ROOT))

from benchmarks.runtimes import CONFIGURATIONS, Answers, answers, compare, enroll

_SHARED = ROOT.parent / "shared" / "data"
_DEFAULT, *_OTHERS = CONFIGURATIONS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, astronaut: UInt8Array) -> list[Path]:
    """The portrait alone, twice, dark and small, and a photo without a face."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = {
        "alone": astronaut,
        "twice": side_by_side(astronaut),
        "dark": astronaut // 4,
        "small": astronaut[::4, ::4],
        "coffee": np.asarray(data.coffee(), np.uint8),
    }
    for name, picture in pictures.items():
        write_image(folder / f"{name}.png", np.ascontiguousarray(picture))
    return [folder / f"{name}.png" for name in pictures]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the portrait's person."""
    gallery = tmp_path_factory.mktemp("home") / "gallery"
    enroll(gallery, None)
    return gallery


@pytest.fixture(scope="module")
def shared_photos() -> list[Path]:
    """A few photos of crowds and of people, where they are."""
    return [
        *sorted((_SHARED / "wider" / "dev" / "images").rglob("*.webp"))[::200],
        *sorted((_SHARED / "photos" / "people" / "probe").rglob("*.webp"))[::120],
    ]


@pytest.fixture(scope="module")
def by_default(photos: list[Path], shared_photos: list[Path], gallery: Path) -> Answers:
    return answers([*photos, *shared_photos], gallery, CONFIGURATIONS[_DEFAULT])


@pytest.mark.parametrize("label", _OTHERS)
def test_answers_do_not_depend_on_runtime_or_instructions(
    label: str, photos: list[Path], shared_photos: list[Path], gallery: Path, by_default: Answers
) -> None:
    configuration = CONFIGURATIONS[label]
    if find_spec(configuration.runtime) is None:
        pytest.skip(f"needs {configuration.runtime}")
    assert sum(face["name"] == "Eileen Collins" for face in by_default[str(photos[0])]) == 1
    difference = compare(by_default, answers([*photos, *shared_photos], gallery, configuration))
    assert difference.faces >= 5
    assert difference.is_none, difference


def test_the_photos_of_others_are_there(shared_photos: list[Path]) -> None:
    if not _SHARED.exists():
        pytest.skip("needs ../shared/data: photos that are not part of the project")
    assert len(shared_photos) >= 4


def face(left: float, name: str | None = None, reason: str | None = None) -> dict[str, Any]:
    status = "named" if name else "unknown"
    box = [left, 0.0, left + 20.0, 30.0]
    return {"box_xyxy": box, "name": name, "status": status, "reason": reason, "distance_l2": None}


def test_other_faces_names_reasons_and_boxes_are_differences() -> None:
    first = {"a": [face(0, "Ann"), face(100)], "b": [face(50)]}
    assert compare(first, first).is_none
    moved = compare(first, {"a": [face(101.5), face(0, "Ann")], "b": [face(50)]})
    assert (moved.is_none, moved.faces, moved.max_box_px) == (True, 3, 1.5)
    assert not compare(first, {"a": [face(0, "Ann"), face(103)], "b": [face(50)]}).is_none
    others = compare(first, {"a": [face(0, "Bob"), face(100, reason="blurred")], "b": [face(200)]})
    assert (others.names, others.reasons, others.one_sided) == (1, 1, 2)
    with pytest.raises(ValueError, match="other photos"):
        compare(first, {"a": []})
