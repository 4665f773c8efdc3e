"""The training half of the `facepipe` command, loaded when one of its commands is asked for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facepipe.cli_options import Setup, with_setup
from facepipe.errors import MissingExtraError

if TYPE_CHECKING:
    from training.detection.configuration import DetectorConfig
    from training.loop import Progress

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


def _require_torch(purpose: str) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(purpose, "train") from error


@click.group()
def train() -> None:
    """Train networks on your own data."""


@train.command("detector")
@click.argument("run", type=FOLDER)
@click.option("--recipe", help="Name of a recipe, or a TOML file.")
@click.option("--data", type=FOLDER, multiple=True, help="Data set to train on; may be repeated.")
@click.option("--validate", type=FOLDER, help="Data set for average precision.")
@click.option("--ground-truth", type=FOLDER, help="WIDER FACE's .mat files, for its own protocol.")
@click.option("--cache", type=FOLDER, help="Where to keep decoded photos.")
@click.option("--teacher", help="Weight to learn from.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting.")
@click.option("--resume", is_flag=True, help="Continue the run in RUN.")
@click.option("--device", metavar="cpu|cuda[:N]", help="Where to run.")
def train_detector_command(run: Path, resume: bool, **choices: Any) -> None:
    """Train RetinaFace; checkpoints, log and pictures go to the folder RUN."""
    _require_torch("training")
    from training.detection.run import train_detector

    config = _detector_config(run, resume, **choices)
    with _TrainingBar() as bar:
        outcome = train_detector(config, run, resume=resume, on_log=bar.log, on_step=bar.step)
    if os.environ.get("RANK", "0") == "0":
        state = "finished" if outcome.step == outcome.steps else "stopped; continue with --resume"
        click.echo(f"facepipe: step {outcome.step} of {outcome.steps}, {state}: {outcome.last}", err=True)
        for name, value in outcome.figures.items():
            click.echo(f"{name} {value:.4f}")


def _detector_config(
    run: Path,
    resume: bool,
    recipe: str | None,
    data: tuple[Path, ...],
    validate: Path | None,
    ground_truth: Path | None,
    cache: Path | None,
    teacher: str | None,
    overrides: tuple[str, ...],
    device: str | None,
) -> DetectorConfig:
    from training.detection.configuration import detector_configuration
    from training.detection.run import configuration_of_run

    settings = [*overrides, *([f"device={device}"] if device else [])]
    if resume and recipe is None:
        if data or validate or ground_truth or cache or teacher:
            raise click.UsageError("A run goes on with its own data; change settings with --set.")
        return configuration_of_run(run, settings)
    if recipe is None:
        raise click.UsageError("Name a recipe (--recipe), or continue a run (--resume).")
    return detector_configuration(
        recipe,
        data=data,
        teacher=teacher,
        validation=validate,
        ground_truth=ground_truth,
        cache=cache,
        overrides=settings,
    )


class _TrainingBar:
    """Progress on stderr: a bar on a terminal, else the logged lines; only in the first process."""

    def __init__(self) -> None:
        self._silent = os.environ.get("RANK", "0") != "0"
        self._bar: Any = None

    def __enter__(self) -> _TrainingBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, progress: Progress) -> None:
        """After every step."""
        if self._silent or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, unit="step")
        self._bar.set_postfix({k: f"{v:.2f}" for k, v in progress.losses.items()}, refresh=False)
        self._bar.update()

    def log(self, figures: dict[str, float]) -> None:
        """After every logged step."""
        if not self._silent and self._bar is None:
            click.echo("  ".join(f"{name} {value:.4g}" for name, value in figures.items()), err=True)


@click.group()
def data() -> None:
    """Look at data sets before training on them."""


@data.command("check")
@click.argument("folder", type=FOLDER)
@click.option("--labels", type=FILE, help="Label file, where it is not in the folder.")
@click.option("--json", "as_json", is_flag=True)
def data_check(folder: Path, labels: Path | None, as_json: bool) -> None:
    """Faults of a detector's data set, counts and sizes."""
    from training.detection.check import check_dataset

    report = check_dataset(folder, labels)
    if as_json:
        click.echo(json.dumps(report.to_dict(), default=str))
    else:
        for fault in report.faults:
            click.echo(f"{fault.kind}: {fault.photo}: {fault.detail}")
        click.echo(f"{report.photos} photos, {report.faces} faces, {report.with_landmarks} with landmarks")
        for low, high, count in report.sizes:
            click.echo(f"{low:>8} to {high:>7} px {count:>8}")
    if report.faults:
        sys.exit(1)


@data.command("preview")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option("--recipe", default="retinaface_mobilenet025", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting.")
@click.option("--count", default=24, show_default=True, help="How many crops.")
@click.option("--out", type=FILE, default=Path("crops.png"), show_default=True)
def data_preview(
    folders: tuple[Path, ...], recipe: str, overrides: tuple[str, ...], count: int, out: Path
) -> None:
    """A contact sheet of augmented crops with their boxes and landmarks."""
    _require_torch("looking at training crops")
    from training.detection.configuration import detector_configuration
    from training.detection.run import write_preview

    write_preview(detector_configuration(recipe, data=folders, overrides=overrides), out, count=count)
    click.echo(f"facepipe: {out}", err=True)


@click.command()
@click.argument("checkpoints", type=FILE, nargs=-1, required=True)
@click.option("--name", required=True, help="What to call the weight.")
@click.option("--out", type=FOLDER, help="Where to; your own weights by default.")
@click.option("--licence", default="", help="Terms of use, for the card.")
def export(checkpoints: tuple[Path, ...], name: str, out: Path | None, licence: str) -> None:
    """Turn checkpoints of a run, averaged, into a weight: safetensors, ONNX and card."""
    _require_torch("exporting a checkpoint")
    from training.detection.run import export_checkpoint
    from weights.registry import check_new_name, user_folder

    folder = user_folder() if out is None else out
    if out is None:
        check_new_name(name)
    weight = export_checkpoint(list(checkpoints), name, folder, licence=licence)
    click.echo(f"facepipe: {weight.card.name} is in {weight.folder}", err=True)


@click.group()
def evaluate() -> None:
    """Measure accuracy on labelled photos; figures are JSON."""


@evaluate.command("detector")
@click.option("--images", type=FOLDER, required=True, help="Photos as EVENT/NAME, any part of WIDER FACE.")
@click.option("--ground-truth", type=FOLDER, required=True, help="The official .mat files.")
@with_setup
def evaluate_detector(setup: Setup, images: Path, ground_truth: Path) -> None:
    """WIDER FACE's easy, medium and hard. Original size unless --max-side says otherwise."""
    from training.evaluation.photos import wider_result

    result = wider_result(setup.detector_for_evaluation(), images, ground_truth, setup.max_pixels())
    click.echo(json.dumps(result.to_dict()))


@evaluate.command("pairs")
@click.argument("pairs", type=FILE)
@click.option("--images", type=FOLDER, required=True, help="Photos as PERSON/PERSON_0001.*")
@with_setup
def evaluate_pairs(setup: Setup, pairs: Path, images: Path) -> None:
    """LFW's protocol from raw photos, and thresholds from all couples of strangers."""
    from training.evaluation.photos import pairs_result

    click.echo(json.dumps(pairs_result(setup.pipeline(), pairs, images)))


@evaluate.command("people")
@click.argument("folder", type=FOLDER)
@click.option(
    "--threshold", type=float, multiple=True, help="May be repeated; the default one is measured too."
)
@with_setup
def evaluate_people(setup: Setup, folder: Path, threshold: tuple[float, ...]) -> None:
    """Enroll FOLDER/enroll/PERSON, identify FOLDER/probe/{known,strangers}/PERSON, and count."""
    from training.evaluation.photos import people_result

    pipeline = setup.pipeline()
    default = pipeline.encoder.embedding.threshold_l2
    thresholds = sorted({*threshold, *([default] if default else [])})
    click.echo(json.dumps(people_result(pipeline, folder, thresholds).to_dict()))
