"""How long does a command take in a process of its own, from its start to its end?

    python -m benchmarks.startup [--runs N] [--json]

The commands take turns. Files are in the disk's cache and Python's bytecode is written, as after the first
use of an installation. One person is enrolled from the portrait that comes with scikit-image, who is then
asked for. The second table splits the imports of `identify` by package (`python -X importtime`, the shortest
of the runs).
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from skimage import data

from benchmarks.measure import table
from facepipe.images.reading import write_image

_ROOT = Path(__file__).parents[1]
_FACEPIPE = ("-m", "facepipe.cli")
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "facepipe --help": (*_FACEPIPE, "--help"),
    "facepipe gallery list": (*_FACEPIPE, "gallery", "list"),
    "facepipe detect PHOTO": (*_FACEPIPE, "detect", "photo.png"),
    "facepipe identify PHOTO": (*_FACEPIPE, "identify", "photo.png"),
}
_IDENTIFY = "facepipe identify PHOTO"
_PACKAGES = 8
"""Of the second table; the others are summed."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a command took, each the median of its runs.

    Attributes:
        seconds: Of the clock.
        processor_s: Of all its threads.
    """

    seconds: float
    processor_s: float


@click.command()
@click.option("--runs", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(runs: int, as_json: bool) -> None:
    """Print tables, or JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image(folder / "photo.png", np.asarray(data.astronaut(), np.uint8))
        _run(folder, [*_FACEPIPE, "enroll", "--name", "Eileen Collins", "photo.png"])
        figures = measure(folder, runs)
        packages = import_seconds(folder, runs)
    if as_json:
        click.echo(json.dumps({"commands": {k: asdict(v) for k, v in figures.items()}, "imports": packages}))
    else:
        click.echo(f"{commands_table(figures)}\n\n{imports_table(packages)}")


def measure(folder: Path, runs: int) -> dict[str, Figures]:
    """Run every command in turns, once unmeasured before."""
    taken: dict[str, list[Figures]] = {name: [] for name in _COMMANDS}
    for _ in range(runs + 1):
        for name, arguments in _COMMANDS.items():
            taken[name].append(_timed(folder, arguments))
    return {
        name: Figures(
            statistics.median(run.seconds for run in all_runs[1:]),
            statistics.median(run.processor_s for run in all_runs[1:]),
        )
        for name, all_runs in taken.items()
    }


def import_seconds(folder: Path, runs: int) -> dict[str, float]:
    """Seconds that `identify` spends on importing each package, without what that imports in turn."""
    shortest: dict[str, int] = {}
    for _ in range(runs):
        for module, taken_us in parse_import_times(_run(folder, ["-X", "importtime", *_COMMANDS[_IDENTIFY]])):
            shortest[module] = min(taken_us, shortest.get(module, taken_us))
    packages: Counter[str] = Counter()
    for module, taken_us in shortest.items():
        packages[_package(module)] += taken_us
    return {package: taken_us / 1e6 for package, taken_us in packages.most_common()}


def parse_import_times(text: str) -> list[tuple[str, int]]:
    """Return each module and its own microseconds from what `python -X importtime` writes to stderr."""
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", text, re.MULTILINE)
    return [(module, int(taken_us)) for taken_us, module in lines]


def _package(module: str) -> str:
    package = module.partition(".")[0]
    return "Python's own" if package in sys.stdlib_module_names else package


def _timed(folder: Path, arguments: Sequence[str]) -> Figures:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _run(folder, arguments)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Figures(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _run(folder: Path, arguments: Sequence[str]) -> str:
    """Run Python in the folder; returns its stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "FACEPIPE_HOME": str(folder / "home"),
        "PYTHONPATH": str(_ROOT),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stderr


def commands_table(figures: Mapping[str, Figures]) -> str:
    """Milliseconds of each command."""
    rows = [
        [f"`{name}`", f"{1e3 * each.seconds:.0f}", f"{1e3 * each.processor_s:.0f}"]
        for name, each in figures.items()
    ]
    return table(["command", "ms", "ms of processors"], rows)


def imports_table(packages: Mapping[str, float]) -> str:
    """Milliseconds of the packages that take longest, and of all others together."""
    listed = list(packages.items())
    rows = [*listed[:_PACKAGES], ("others", sum(seconds for _, seconds in listed[_PACKAGES:]))]
    return table(["imported by `identify`", "ms"], [[name, f"{1e3 * seconds:.0f}"] for name, seconds in rows])


if __name__ == "__main__":
    main()
