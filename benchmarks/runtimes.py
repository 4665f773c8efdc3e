"""Are faces, names and reasons the same on every runtime and with every processor's instructions?

    python -m benchmarks.runtimes PHOTOS... [--enroll DIR] [--photos N] [--json]

PHOTOS are files or folders, of which the first N are taken. People are enrolled from DIR, one sub-folder a
person, or else from the portrait that comes with scikit-image. `facepipe identify --json` then runs over all
photos once for each runtime that is installed; OpenVINO and torch also with the instructions of AVX2 only,
which environment variables ask of them. (ONNX Runtime has no such setting: it takes what the processor has.)
Each run is compared with the one on ONNX Runtime, the default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import linear_sum_assignment
from skimage import data

from benchmarks.measure import table
from facepipe.commands.output import PARTIAL
from facepipe.core.faces import FloatArray
from facepipe.images.finding import find_photos
from facepipe.images.reading import write_image

_ROOT = Path(__file__).parents[1]
NEAR_PX = 2.0
"""Boxes of one face differ by no more, in pixels of the photo."""
_PER_PROCESS = 500
_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Read by oneDNN, on which OpenVINO and torch run convolutions, and by torch."""
Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""The faces of each photo, as `facepipe identify --json` writes them."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A runtime, and the environment variables that its process has."""

    runtime: str
    environment: Mapping[str, str]


CONFIGURATIONS: Mapping[str, Configuration] = {
    "ONNX Runtime": Configuration("onnx", {}),
    "OpenVINO": Configuration("openvino", {}),
    "OpenVINO, AVX2": Configuration("openvino", _AVX2),
    "torch": Configuration("torch", {}),
    "torch, AVX2": Configuration("torch", _AVX2),
}
_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class Difference:
    """How one run differs from another.

    Attributes:
        faces: Of both runs together, each counted once.
        one_sided: Of them, found in one run only.
        names: Found in both, with other names.
        reasons: Likewise, with other statuses or reasons.
        max_box_px: Largest difference of a box's side.
        max_distance_l2: Largest difference of a distance to the nearest person.
    """

    faces: int
    one_sided: int
    names: int
    reasons: int
    max_box_px: float
    max_distance_l2: float

    @property
    def is_none(self) -> bool:
        """Whether the answers are the same, boxes within `NEAR_PX`."""
        return not (self.one_sided or self.names or self.reasons) and self.max_box_px <= NEAR_PX


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--enroll", "people", type=click.Path(path_type=Path, exists=True), metavar="DIR")
@click.option("--photos", "count", default=500, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(places: tuple[Path, ...], people: Path | None, count: int, as_json: bool) -> None:
    """Print a table, or JSON."""
    photos = [photo.resolve() for photo in find_photos(places)[:count]]
    with tempfile.TemporaryDirectory() as name:
        enroll(Path(name) / "gallery", people)
        runs = {
            label: answers(photos, Path(name) / "gallery", configuration)
            for label, configuration in CONFIGURATIONS.items()
            if find_spec(_PACKAGES[configuration.runtime])
        }
    baseline, *others = runs
    differences = {label: compare(runs[baseline], runs[label]) for label in others}
    click.echo(
        json.dumps({label: asdict(difference) for label, difference in differences.items()})
        if as_json
        else as_table(differences)
    )


def enroll(gallery: Path, people: Path | None) -> None:
    """Make a gallery of the people in sub-folders, or of the portrait that comes with scikit-image."""
    if people is not None:
        _facepipe(["enroll", str(people), "--gallery", str(gallery)])
        return
    portrait = gallery.with_name("portrait.png")
    write_image(portrait, np.asarray(data.astronaut(), np.uint8))
    _facepipe(["enroll", "--name", "Eileen Collins", str(portrait), "--gallery", str(gallery)])


def answers(photos: Sequence[Path], gallery: Path, configuration: Configuration) -> Answers:
    """Identify everybody in the photos, in a process of its own for each few hundred."""
    lines: list[str] = []
    for first in range(0, len(photos), _PER_PROCESS):
        part = [str(photo) for photo in photos[first : first + _PER_PROCESS]]
        options = ["--json", "--runtime", configuration.runtime, "--gallery", str(gallery)]
        lines += _facepipe(["identify", *options, *part], configuration.environment).splitlines()
    results = [json.loads(line) for line in lines]
    return {result["photo"]: result.get("faces") or [] for result in results}


def _facepipe(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "facepipe.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(_ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, PARTIAL):
        raise click.ClickException(f"facepipe {arguments[0]} ended with exit code {done.returncode}")
    return done.stdout


def compare(first: Answers, second: Answers) -> Difference:
    """Compare the answers of two runs over the same photos; faces are paired by their boxes.

    Raises:
        ValueError: The photos are not the same.
    """
    if first.keys() != second.keys():
        raise ValueError("the two runs are of other photos")
    pairs, one_sided = [], 0
    for photo in first:
        paired = _paired(first[photo], second[photo])
        pairs += paired
        one_sided += len(first[photo]) + len(second[photo]) - 2 * len(paired)
    distances = [(one["distance_l2"], other["distance_l2"]) for one, other in pairs]
    return Difference(
        faces=len(pairs) + one_sided,
        one_sided=one_sided,
        names=sum(one["name"] != other["name"] for one, other in pairs),
        reasons=sum(_reason(one) != _reason(other) for one, other in pairs),
        max_box_px=max((_box_difference_px(one, other) for one, other in pairs), default=0.0),
        max_distance_l2=max((abs(a - b) for a, b in distances if None not in (a, b)), default=0.0),
    )


def _paired(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pair the faces whose boxes are nearest, in all; those that overlap nothing stay without a partner."""
    if not first or not second:
        return []
    costs = np.array([[_box_difference_px(one, other) for other in second] for one in first])
    rows, columns = linear_sum_assignment(costs)
    return [
        (first[row], second[column])
        for row, column in zip(rows, columns, strict=True)
        if costs[row, column] <= _short_side_px(first[row]) / 2
    ]


def _box(face: Mapping[str, Any]) -> FloatArray:
    return np.array(face["box_xyxy"], np.float32)


def _short_side_px(face: Mapping[str, Any]) -> float:
    box = _box(face)
    return float((box[2:] - box[:2]).min())


def _box_difference_px(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float(np.abs(_box(one) - _box(other)).max())


def _reason(face: Mapping[str, Any]) -> tuple[Any, Any]:
    return face["status"], face["reason"]


def as_table(differences: Mapping[str, Difference]) -> str:
    """One row a run."""
    columns = [
        "beside ONNX Runtime",
        "faces",
        "in one run only",
        "other names",
        "other reasons",
        "boxes, px at most",
        "distances, at most",
    ]
    rows = [
        [
            label,
            str(difference.faces),
            str(difference.one_sided),
            str(difference.names),
            str(difference.reasons),
            f"{difference.max_box_px:.2f}",
            f"{difference.max_distance_l2:.4f}",
        ]
        for label, difference in differences.items()
    ]
    return table(columns, rows)


if __name__ == "__main__":
    main()
