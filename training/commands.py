"""`facepipe train`, `data` and `export`, loaded when one of them is called."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facepipe.commands.options import ANY_PATH, FILE, FOLDER, Command, threads_option
from facepipe.commands.output import INTERRUPTED, echo, with_progress
from facepipe.core.counting import counted
from facepipe.core.errors import MissingExtraError
from facepipe.training.engine.memory import keep_freed_memory

if TYPE_CHECKING:
    from facepipe.training.detection.config import DetectorConfig
    from facepipe.training.engine.runs import TrainingOutcome
    from facepipe.training.engine.task import Progress
    from facepipe.training.recognition.config import EncoderConfig


_DEFAULT_RECIPES = {
    "detector": "retinaface_mobilenet025_detail_photos",
    "encoder": "facenet_mobilefacenet_people",
}
"""They go on from shipped weights, and need nothing but data."""
_SHORT_NAMES = {
    ("detector", "paper"): "retinaface_mobilenet025_paper",
    ("encoder", "paper"): "facenet_mobilenet_paper",
}
"""Of recipes."""


def _require_torch(purpose: str) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(purpose, "train") from error


@click.group()
def train() -> None:
    """Train networks on your own data."""
    keep_freed_memory()


def _with_run_options(command: Command) -> Command:
    """Return the options of every trainer."""
    for option in reversed(
        (
            click.option(
                "--recipe",
                help="Name of a recipe, or a TOML file; paper: as published.  "
                "[default: goes on from the shipped weight]",
            ),
            click.option("--phase", metavar="NAME", help="Only this phase of a recipe that has several."),
            click.option("--cache", type=FOLDER, help="Where to keep decoded photos."),
            click.option("--teacher", help="Weight to learn from."),
            click.option(
                "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting."
            ),
            click.option("--resume", is_flag=True, help="Continue the run in RUN."),
            click.option("--device", metavar="cpu|cuda[:N]", help="Where to run."),
            threads_option,
        )
    ):
        command = option(command)
    return command


@train.command("detector")
@click.argument("run", type=FOLDER, required=False)
@click.option("--data", type=FOLDER, multiple=True, help="Data set to train on; may be repeated.")
@click.option("--validate", "validation", type=FOLDER, help="Data set for average precision.")
@click.option("--ground-truth", type=FOLDER, help="WIDER FACE's .mat files, for its own protocol.")
@_with_run_options
def train_detector_command(
    run: Path | None,
    data: tuple[Path, ...],
    validation: Path | None,
    ground_truth: Path | None,
    **choices: Any,
) -> None:
    """Train RetinaFace; checkpoints, log and pictures go to the folder RUN (runs/detector).

    Ctrl-C or SIGTERM saves and leaves with 130; continue with --resume.
    """
    _require_torch("training")
    from facepipe.training.detection.config import DetectorConfig

    folders = {
        "data": [{"folder": folder} for folder in data] or None,
        "validation.photos": validation,
        "validation.ground_truth": ground_truth,
    }
    _train(DetectorConfig, run, folders, **choices)


@train.command("encoder")
@click.argument("run", type=FOLDER, required=False)
@click.option("--data", "crops", type=FOLDER, multiple=True, help="Aligned crops, a sub-folder per person.")
@click.option("--photos", type=FOLDER, multiple=True, help="Whole photos, a sub-folder per person.")
@click.option("--unlabelled", type=ANY_PATH, multiple=True, help="Aligned crops of anybody: folder or .tar.")
@click.option("--pairs", type=FILE, help="Pairs to validate on, in the form of LFW's pairs.txt.")
@click.option("--images", type=FOLDER, help="The pairs' photos, as PERSON/PERSON_0001.*")
@_with_run_options
def train_encoder_command(
    run: Path | None,
    crops: tuple[Path, ...],
    photos: tuple[Path, ...],
    unlabelled: tuple[Path, ...],
    pairs: Path | None,
    images: Path | None,
    **choices: Any,
) -> None:
    """Train FaceNet; checkpoints, log and curves go to the folder RUN (runs/encoder).

    --data, --photos and --unlabelled may be repeated and mixed. Ctrl-C or SIGTERM saves and leaves with 130;
    continue with --resume.
    """
    _require_torch("training")
    from facepipe.training.recognition.config import EncoderConfig

    faces = [
        *({"path": path} for path in crops),
        *({"path": path, "kind": "photos"} for path in photos),
        *({"path": path, "labelled": False} for path in unlabelled),
    ]
    files = {"data": faces or None, "validation.pairs": pairs, "validation.images": images}
    _train(EncoderConfig, run, files, **choices)


def _train(
    kind: type[DetectorConfig] | type[EncoderConfig],
    run: Path | None,
    files: dict[str, Any],
    *,
    recipe: str | None,
    phase: str | None,
    cache: Path | None,
    teacher: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    device: str | None,
) -> None:
    """Train by the settings of a recipe, or of the run that is resumed."""
    from facepipe.training.detection.config import DetectorConfig
    from facepipe.training.engine.config import read_phases
    from facepipe.training.engine.phases import holds_phases, phases_of_run
    from facepipe.training.engine.runs import configuration_of_run, new_run_folder
    from facepipe.training.train import train as train_network
    from facepipe.training.train import train_phases

    options = {**files, "cache": cache, "teacher.weights": teacher}
    settings = [*overrides, *([f"device={device}"] if device else [])]
    name = "detector" if kind is DetectorConfig else "encoder"
    if resume and run is None:
        raise click.UsageError("Name the folder of the run to continue.")
    if resume and recipe is None and any(options.values()):
        raise click.UsageError("A run goes on with its own data; change settings with --set.")
    folder = run or new_run_folder(Path("runs") / name)
    with _TrainingBar() as bar:
        watching: dict[str, Any] = {"on_log": bar.log, "on_step": bar.step, "say": bar.say}
        if resume and recipe is None and holds_phases(folder):
            outcome = train_phases(phases_of_run(kind, folder, settings), folder, resume=True, **watching)
        elif resume and recipe is None:
            config = configuration_of_run(kind, folder, settings)
            outcome = train_network(config, folder, resume=True, **watching)
        else:
            recipe = _SHORT_NAMES.get((name, recipe or ""), recipe or _DEFAULT_RECIPES[name])
            phases = _chosen(read_phases(kind, recipe, settings, options), phase)
            bar.say(f"recipe {recipe}, run {folder}")
            if len(phases) > 1:
                outcome = train_phases(phases, folder, resume=resume, **watching)
            else:
                outcome = train_network(phases[0].config, folder, resume=resume, **watching)
    _report(outcome)


def _chosen(phases: list[Any], name: str | None) -> list[Any]:
    """Return the phase of this name; None: all."""
    chosen = [phase for phase in phases if name in (None, phase.name)]
    if not chosen:
        there = ", ".join(phase.name for phase in phases if phase.name) or "none"
        raise click.UsageError(f"The recipe has no phase {name!r}; its phases: {there}.")
    return chosen


def _report(outcome: TrainingOutcome) -> None:
    stopped = outcome.step < outcome.steps
    if os.environ.get("RANK", "0") == "0":
        state = "stopped; continue with --resume" if stopped else "finished"
        echo(f"facepipe: step {outcome.step} of {outcome.steps}, {state}: {outcome.last}", err=True)
        for name, value in outcome.figures.items():
            echo(f"{name} {value:.4f}")
    if stopped:
        sys.exit(INTERRUPTED)


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

        if self._bar is None or self._bar.total != progress.steps or progress.step <= self._bar.n:
            if self._bar is not None:  # of the phase before
                self._bar.close()
            self._bar = tqdm(total=progress.steps, initial=progress.step - 1, unit="step")
        self._bar.set_postfix({k: f"{v:.2f}" for k, v in progress.losses.items()}, refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """Show a line, above the bar where there is one."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.clear()
        echo(f"facepipe: {line}", err=True)

    def log(self, figures: dict[str, float]) -> None:
        """After every logged step."""
        if not self._silent and self._bar is None:
            echo("  ".join(f"{name} {value:.4g}" for name, value in figures.items()), err=True)


@click.group()
def data() -> None:
    """Prepare data sets, and check them before training on them."""


@data.group()
def prepare() -> None:
    """Make data sets of official downloads."""


@prepare.command("wider")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--landmarks", is_flag=True, help="Make landmarks for labels that have none, by the detector.")
@threads_option
def prepare_wider_command(folder: Path, landmarks: bool) -> None:
    """Make DIR/train and DIR/val of WIDER FACE's downloads in DIR.

    DIR holds WIDER_train, WIDER_val, wider_face_split and, where wanted, retinaface_gt_v1.1 and eval_tools,
    as folders or .zip files. They stay as they are; photos of folders become hard links.
    """
    from facepipe.detector import FaceDetector
    from facepipe.training.detection.wider import place_ground_truth, prepare_wider

    detector = FaceDetector.load() if landmarks else None
    parts = prepare_wider(
        folder, detector, watch=lambda photos: with_progress(photos, len(photos), "preparing")
    )
    for part in parts:
        photos = ", ".join(counted(count, how) for how, count in part.photos.items())
        echo(f"{part.folder}: {photos}; {counted(part.faces, 'face')}, {part.with_landmarks} with landmarks")
    if truth := place_ground_truth(folder):
        echo(f"{truth}: for --ground-truth")


@data.command("check")
@click.argument("folder", type=FOLDER)
@click.option("--labels", type=ANY_PATH, help="File or folder of labels, where FOLDER does not hold one.")
@click.option("--json", "as_json", is_flag=True)
def data_check(folder: Path, labels: Path | None, as_json: bool) -> None:
    """Print faults of a detector's data set, counts and sizes."""
    from facepipe.training.detection.check import check_dataset

    report = check_dataset(folder, labels)
    if as_json:
        echo(json.dumps(report.to_dict(), default=str))
    else:
        for fault in report.faults:
            echo(f"{fault.kind}: {fault.photo}: {fault.detail}")
        echo(
            f"{counted(report.photos, 'photo')}, {counted(report.faces, 'face')}, "
            f"{report.with_landmarks} with landmarks"
        )
        for low, high, count in report.sizes:
            echo(f"{low:>8} to {high:>7} px {count:>8}")
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
    """Draw a contact sheet of augmented crops with their boxes and landmarks."""
    _require_torch("looking at training crops")
    from facepipe.training.detection.config import DetectorConfig
    from facepipe.training.detection.prepare import write_preview
    from facepipe.training.engine.config import read_configuration

    data = {"data": [{"folder": folder} for folder in folders]}
    write_preview(read_configuration(DetectorConfig, recipe, overrides, data), out, count=count)
    echo(f"facepipe: {out}", err=True)


@click.command()
@click.argument("checkpoints", type=FILE, nargs=-1, required=True)
@click.option("--name", required=True, help="What to call the weight.")
@click.option("--out", type=FOLDER, help="Where to; your own weights by default.")
@click.option("--half", is_flag=True, help="Store the weights as float16: half the size, the same speed.")
@click.option("--class-bias", default=0.0, help="Of a detector: raise the face logits of strides 16 and 32.")
@click.option("--licence", default="", help="Terms of use, for the card.")
@threads_option
def export(
    checkpoints: tuple[Path, ...], name: str, out: Path | None, half: bool, class_bias: float, licence: str
) -> None:
    """Turn checkpoints of a detector's or an encoder's run, averaged, into a weight."""
    _require_torch("exporting a checkpoint")
    from facepipe.training.export import export_checkpoint
    from facepipe.weights.registry import check_new_name, user_folder

    folder = user_folder() if out is None else out
    if out is None:
        check_new_name(name)
    weight = export_checkpoint(
        list(checkpoints), name, folder, half_storage=half, class_bias=class_bias, licence=licence
    )
    echo(f"facepipe: {weight.card.name} is in {weight.folder}", err=True)
