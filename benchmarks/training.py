"""Where does the time of training go? Samples a second of loading alone, of the step alone, and of both.

    python -m benchmarks.training detector [--data FOLDER] [--recipe NAME] [--set SECTION.KEY=VALUE] [--json]
    python -m benchmarks.training encoder  [--data FOLDER] ...

FOLDER is a detector's data set (`images/` and `label.txt`), or aligned crops of people, one folder each.
Without one, the photos are made up: smooth colours.

The step alone takes its batches from memory; the loop loads them in worker processes as a run does. Loading
that is hidden well costs the loop nothing: it should keep 90% of the step's speed. Targets and losses of the
detector, with their gradients at the network's outputs, should cost less than 10% of a step (measured where
there is no teacher).
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from torch import nn

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image
from facepipe.training.detection.config import DetectorConfig
from facepipe.training.detection.initialize import initial_detector
from facepipe.training.detection.prepare import build_task as build_detector_task
from facepipe.training.engine.config import read_configuration
from facepipe.training.engine.distributed import process_group
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.memory import keep_freed_memory
from facepipe.training.engine.optimizer import OptimiserConfig, autocast
from facepipe.training.engine.stream import Batches
from facepipe.training.engine.task import Task
from facepipe.training.recognition.config import EncoderConfig
from facepipe.training.recognition.initialize import initial_encoder, resolve_config
from facepipe.training.recognition.prepare import build_task as build_encoder_task

_RECIPES = {"detector": "retinaface_mobilenet025", "encoder": "facenet_mobilefacenet_people"}
_WARM_UP = 4
_READY_BATCHES = 4
_NEVER = 1_000_000_000


@click.command()
@click.argument("trainer", type=click.Choice(sorted(_RECIPES)))
@click.option("--data", type=click.Path(path_type=Path), help="Default: made up.")
@click.option("--recipe", help=f"Default: {_RECIPES['detector']} or {_RECIPES['encoder']}.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting.")
@click.option("--steps", default=20, show_default=True, help="Timed steps of each round.")
@click.option("--rounds", default=3, show_default=True, help="Their median counts.")
@click.option("--device", default="auto", show_default=True)
@click.option("--give-back", is_flag=True, help="Give freed memory back, as `facepipe train` does not.")
@click.option("--json", "as_json", is_flag=True)
def main(
    trainer: str,
    data: Path | None,
    recipe: str | None,
    overrides: tuple[str, ...],
    steps: int,
    rounds: int,
    device: str,
    give_back: bool,
    as_json: bool,
) -> None:
    """Print a table, or JSON."""
    if not give_back:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary, process_group(device) as place:
        folder = data or made_up(trainer, Path(temporary) / "data")
        build = _detector if trainer == "detector" else _encoder
        task, loop, optimiser = build(folder, recipe or _RECIPES[trainer], overrides, Path(temporary), place)
        figures = measure(task, loop, optimiser, steps, rounds)
        if trainer == "detector" and not any("teacher" in override for override in overrides):
            figures["losses_of_step"] = loss_share(task, loop, figures["step"], place)
    figures |= {"loop_of_step": figures["loop"] / figures["step"]}
    click.echo(json.dumps(figures) if as_json else table(figures))


def measure(
    task: Task[Any], loop: LoopConfig, optimiser: OptimiserConfig, steps: int, rounds: int
) -> dict[str, float]:
    """Samples a second of "loader", "step" and "loop", taken in turns, so that a busy machine slows all."""
    with closing(task.batches(0)) as batches:
        ready = list(itertools.islice(batches, _READY_BATCHES))
    ways: dict[str, Callable[[], float]] = {
        "loader": lambda: _seconds_a_batch(task, steps),
        "step": lambda: _seconds_a_step(_FromMemory(task, ready), loop, optimiser, steps),
        "loop": lambda: _seconds_a_step(task, loop, optimiser, steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: loop.batch_size / statistics.median(taken) for name, taken in seconds.items()}


class _Recorded(nn.Module):
    """Calls a function and keeps its last answer."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call
        self.answer: Any = None

    def forward(self, *inputs: Any) -> Any:
        self.answer = self.call(*inputs)
        return self.answer


def loss_share(task: Task[Any], loop: LoopConfig, samples_per_s: float, device: torch.device) -> float:
    """Time of targets and losses, there and back, as a share of the step's."""
    with closing(task.batches(0)) as batches:
        batch = next(batches)
    recorded = _Recorded(task.module)
    with autocast(loop.precision, device):
        task.losses(recorded, batch, 0.0)
    maps, output, detail = recorded.answer
    output = type(output)(*(part.detach().requires_grad_() for part in output))
    repeated = _Recorded(lambda *_: (maps, output, detail))

    def once() -> float:
        started = time.perf_counter()
        with autocast(loop.precision, device):
            parts = task.losses(repeated, batch, 0.0)
        torch.stack(list(parts.values())).sum().backward()
        _finish(device)
        return time.perf_counter() - started

    taken = [once() for _ in range(_WARM_UP + 10)][_WARM_UP:]
    return statistics.median(taken) * samples_per_s / loop.batch_size


def table(figures: dict[str, float]) -> str:
    """For people."""
    lines = [f"{name:<8}{figures[name]:9.1f} samples/s" for name in ("loader", "step", "loop")]
    lines.append(f"the loop keeps {100 * figures['loop_of_step']:.0f}% of the step's speed")
    if "losses_of_step" in figures:
        lines.append(f"targets and losses take {100 * figures['losses_of_step']:.0f}% of the step")
    return "\n".join(lines)


class _FromMemory:
    """A task with batches that are ready."""

    def __init__(self, task: Task[Any], batches: Sequence[Any]) -> None:
        self._task, self._batches = task, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batches(self, first_step: int) -> Batches[Any]:
        """See `facepipe.training.engine.task.Task`."""
        return (batch for batch in itertools.cycle(self._batches))


def _seconds_a_batch(task: Task[Any], count: int) -> float:
    with closing(task.batches(0)) as batches:
        for _ in range(_WARM_UP):
            next(batches)
        started = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - started) / count


def _seconds_a_step(task: Task[Any], loop: LoopConfig, optimiser: OptimiserConfig, count: int) -> float:
    steps, ends = _WARM_UP + count, [time.perf_counter()]
    config = replace(loop, steps=steps, validate_every=_NEVER, checkpoint_every=_NEVER, log_every=_NEVER)
    with tempfile.TemporaryDirectory() as folder:
        TrainingLoop(
            task, optimiser, config, Path(folder), {}, on_step=lambda _: ends.append(time.perf_counter())
        ).run()
    return (ends[steps] - ends[_WARM_UP]) / count


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_Built = tuple[Task[Any], LoopConfig, OptimiserConfig]


def _detector(data: Path, recipe: str, overrides: Sequence[str], cache: Path, device: torch.device) -> _Built:
    options = {"data": [{"folder": data}], "cache": cache / "cache"}
    config = read_configuration(DetectorConfig, recipe, overrides, options)
    config = replace(config, validation=None)
    task = build_detector_task(config, initial_detector(config.network), device)
    return task, config.loop, config.optimiser


def _encoder(data: Path, recipe: str, overrides: Sequence[str], cache: Path, device: torch.device) -> _Built:
    options = {"data": [{"path": data}], "cache": cache / "cache"}
    config = read_configuration(EncoderConfig, recipe, overrides, options)
    start = initial_encoder(config.network)
    config = replace(
        config, validation=None, held_out_share=0.0, network=resolve_config(config.network, start)
    )
    return build_encoder_task(config, start, device), config.loop, config.optimiser


def made_up(trainer: str, folder: Path) -> Path:
    """A data set of smooth colours: 32 photos of 12 faces each, or 24 people with 6 crops each."""
    rng = np.random.default_rng(0)
    if trainer == "encoder":
        for person in range(24):
            (folder / f"person_{person}").mkdir(parents=True)
            for i in range(6):
                write_image(folder / f"person_{person}" / f"{i}.jpg", _colours(rng, 160, 160))
        return folder
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(32):
        write_image(folder / "images" / f"{i}.jpg", _colours(rng, 1024, 768))
        lines += [f"# {i}.jpg", *(_face_line(rng) for _ in range(12))]
    (folder / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _face_line(rng: np.random.Generator) -> str:
    side = float(np.exp(rng.uniform(np.log(10), np.log(200))))
    left, top = rng.uniform(0, 1024 - side), rng.uniform(0, 768 - side)
    points = [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)]
    landmarks = " ".join(f"{left + x * side:.1f} {top + y * side:.1f} 0" for x, y in points)
    return f"{left:.1f} {top:.1f} {side:.1f} {side:.1f} {landmarks} 0.9"


def _colours(rng: np.random.Generator, width_px: int, height_px: int) -> UInt8Array:
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC), np.uint8)


if __name__ == "__main__":
    main()
