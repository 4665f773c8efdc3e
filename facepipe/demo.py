"""The main job on a real photo, right after install: learn a portrait, find her again, name nobody else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from facepipe.core.errors import FacepipeError
from facepipe.core.faces import UInt8Array
from facepipe.core.files import temporary_folder
from facepipe.enrollment import PersonPhoto, enroll
from facepipe.pipeline import FacePipeline, PhotoResult
from facepipe.reports.pictures import PictureFolder, make_folder, write_picture

PERSON = "Eileen Collins"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The lines of the demo, and whether all went as it should."""

    lines: tuple[str, ...]
    passed: bool


def run_demo(folder: Path, open_pipeline: Callable[..., FacePipeline]) -> DemoResult:
    """Enroll NASA's portrait of Eileen Collins (public domain, from scikit-image) and find her again.

    Altered copies must get her name; photos without her must stay without names. The gallery is temporary.

    Args:
        folder: Gets the photos, and annotated copies in `annotated/`.
        open_pipeline: Called with the folder of the gallery and `create=True`.

    Raises:
        FacepipeError: The portrait can't be enrolled, or the folder can't be written.
    """
    portrait, others = _photos()
    make_folder(folder)
    path = folder / "portrait.png"
    write_picture(path, portrait)
    probes = {**{f"she_is_{name}.jpg": photo for name, photo in _altered(portrait)}, **others}
    for name, photo in probes.items():
        write_picture(folder / name, photo)
    with (
        temporary_folder(Path(tempfile.gettempdir())) as temporary,
        open_pipeline(temporary / "gallery", create=True) as pipeline,
    ):
        for report in enroll(pipeline, [PersonPhoto(PERSON, path)]):
            if report.outcome.value != "enrolled":
                raise FacepipeError(f"the portrait could not be enrolled: {report.sentence}")
        results = list(pipeline.identify_files([folder / name for name in probes]))
    return _result(folder, results)


def _result(folder: Path, results: list[PhotoResult]) -> DemoResult:
    annotated = PictureFolder(folder / "annotated", [result.path for result in results])
    lines, passed = [f"enrolled {PERSON} from {folder / 'portrait.png'}"], True
    for result in results:
        names = [match.name for match in (result.faces.matches or ())] if result.faces else []
        expected = [PERSON] if result.path.name.startswith("she_is_") else []
        right = [name for name in names if name] == expected
        passed &= right
        found = ", ".join(name or "unknown" for name in names) or "no faces"
        lines.append(f"{'ok' if right else 'WRONG':<6} {result.path.name}: {found}")
        annotated.write_annotated(result)
    lines.append(f"annotated photos are in {folder / 'annotated'}")
    return DemoResult(tuple(lines), passed)


def _photos() -> tuple[UInt8Array, dict[str, UInt8Array]]:
    import skimage.data

    data: Any = skimage.data  # untyped
    others = {"a_cat.jpg": data.chelsea(), "a_coffee.jpg": data.coffee(), "a_rocket.jpg": data.rocket()}
    return _as_rgb(data.astronaut()), {name: _as_rgb(photo) for name, photo in others.items()}


def _altered(portrait: UInt8Array) -> Iterator[tuple[str, UInt8Array]]:
    height, width = portrait.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 15, 1.0)
    gray = cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)
    wide = np.zeros((height, 2 * width, 3), np.uint8)
    wide[:, width:] = portrait
    yield "mirrored", _as_rgb(portrait[:, ::-1])
    yield "turned", _as_rgb(cv2.warpAffine(portrait, turn, (width, height)))
    yield "darker", _as_rgb(portrait // 2)
    yield "gray", _as_rgb(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))
    yield "small", _as_rgb(cv2.resize(portrait, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    yield "off_centre", wide


def _as_rgb(photo: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> UInt8Array:
    return np.ascontiguousarray(photo, dtype=np.uint8)
