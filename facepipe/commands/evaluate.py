"""Commands that measure accuracy, loaded when one of them is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facepipe.commands.options import ANY_PATH, FOLDER, Setup, with_setup
from facepipe.commands.output import echo, with_progress

if TYPE_CHECKING:
    from facepipe.detector import FaceDetector
    from facepipe.evaluation.detector import DetectorProtocol, Setting


@click.group()
def evaluate() -> None:
    """Measure accuracy on labelled photos; figures are JSON."""


@evaluate.command("detector")
@click.option(
    "--images",
    type=FOLDER,
    required=True,
    help="A data set; with --ground-truth photos as EVENT/NAME, any part of WIDER FACE.",
)
@click.option("--ground-truth", type=FOLDER, help="WIDER FACE's .mat files, for its own protocol.")
@click.option("--labels", type=ANY_PATH, help="File or folder of labels, where --images does not hold one.")
@click.option("--landmarks", type=FOLDER, help="Data set with landmarks, to measure their errors.")
@click.option(
    "--setting",
    type=click.Choice(["original", "letterbox640", "letterbox640_gray", "short1600"]),
    default="original",
    show_default=True,
    help="Size at which photos are analyzed.",
)
@click.option("--flip", is_flag=True, help="Detect in the mirrored photos too.")
@click.option(
    "--multi-scale",
    "--as-served",
    "multi_scale",
    is_flag=True,
    help="As `identify` does: large faces in a quarter of the size, candidates merged.",
)
@click.option(
    "--compare",
    multiple=True,
    metavar="NAME",
    help="Measure this detector too, in one table and one plot; may be repeated.",
)
@click.option("--report", type=FOLDER, help="Write detector.html and detector.json, with the curves, here.")
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Show N missed faces and N false alarms in the report.",
)
@click.option("--json", "as_json", is_flag=True)
@with_setup
def evaluate_detector_command(
    setup: Setup,
    images: Path,
    ground_truth: Path | None,
    labels: Path | None,
    landmarks: Path | None,
    compare: tuple[str, ...],
    report: Path | None,
    pictures: int,
    as_json: bool,
    **choices: Any,
) -> None:
    """Average precision, of all faces and by size, and errors of landmarks.

    With --ground-truth on WIDER FACE's easy, medium and hard, else on the labelled faces of at least
    --min-face (8 px). Scores from 0.02 on count, and NMS is at 0.4 (0.45 in letterboxes), unless another is
    asked for. With --json one line for each detector.
    """
    from facepipe.evaluation.detector import evaluate_detector
    from facepipe.evaluation.detector_report import text, write_detector_report
    from facepipe.evaluation.metrics.detection import MIN_FACE_PX
    from facepipe.evaluation.pages import require_report_place

    if ground_truth and (labels or setup.min_face):
        raise click.UsageError("--labels and --min-face are for photos without --ground-truth.")
    if pictures and not report:
        raise click.UsageError("--pictures goes with --report.")
    if report:
        require_report_place(report, "detector")
    detectors, protocol = _detectors_and_protocol(setup, compare, **choices)
    evaluations = [
        evaluate_detector(
            detector,
            protocol,
            images,
            ground_truth,
            landmarks,
            labels=labels,
            min_face_px=setup.min_face or MIN_FACE_PX,
            max_pixels=setup.max_pixels(),
            watch=lambda photos: with_progress(photos, len(photos), "analyzing"),
        )
        for detector in detectors
    ]
    if report:
        echo(f"facepipe: {write_detector_report(report, evaluations, pictures)}", err=True)
    for line in [json.dumps(each.to_dict()) for each in evaluations] if as_json else text(evaluations):
        echo(line)


def _detectors_and_protocol(
    setup: Setup, compare: tuple[str, ...], setting: Setting, flip: bool, multi_scale: bool
) -> tuple[list[FaceDetector], DetectorProtocol]:
    from facepipe.detector import FaceDetector
    from facepipe.evaluation.detector import SCORE_THRESHOLD, DetectorProtocol
    from facepipe.weights.registry import DEFAULT_DETECTOR

    if setup.max_side or setup.original_size or setup.top_k:
        raise click.UsageError(
            "--setting sets the size of photos; leave out --max-side, --original-size and --top-k."
        )
    score = SCORE_THRESHOLD if setup.score_threshold is None else setup.score_threshold
    protocol = DetectorProtocol(setting, flip, multi_scale, score, setup.nms_iou)
    names = [setup.detector_weights or DEFAULT_DETECTOR, *compare]
    runtime = setup.choose_runtime()
    detectors = [FaceDetector.load(name, protocol.options(), runtime) for name in names]
    loaded = [detector.card.name for detector in detectors]
    for name in loaded:
        if loaded.count(name) > 1:
            raise click.UsageError(f"{name} is named twice; compare different detectors.")
    return detectors, protocol


@evaluate.command("encoder")
@click.option(
    "--pairs",
    type=ANY_PATH,
    required=True,
    multiple=True,
    help="LFW's, CALFW's or CPLFW's list, CFP's folder Protocol (or Split/FP in it), lines of "
    "'path path 0|1', or a CSV of first,second,same[,group]; may be repeated.",
)
@click.option(
    "--images",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Their photos; paths of lists are relative to it. One for all lists, or one for each.",
)
@click.option("--people", type=FOLDER, help="More photos: enroll/PERSON, probe/{known,strangers}/PERSON.")
@click.option("--crops", is_flag=True, help="The photos are aligned face crops already.")
@click.option(
    "--enroll", type=click.IntRange(1), default=1, show_default=True, help="Photos of a person enrolled."
)
@click.option("--robustness", "damaged", is_flag=True, help="Measure the pairs again, damaged in 7 ways.")
@click.option("--report", type=FOLDER, help="Write encoder.html and encoder.json, with the curves, here.")
@click.option("--write-card", is_flag=True, help="Put the model of strangers and the figures on the card.")
@click.option("--json", "as_json", is_flag=True)
@with_setup
def evaluate_encoder_command(
    setup: Setup,
    pairs: tuple[Path, ...],
    images: tuple[Path, ...],
    people: Path | None,
    report: Path | None,
    write_card: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Pairs of photos, open-set identification, and how near strangers come, from raw photos or crops.

    The protocols of LFW, CFP (frontal-profile) and lists of your own, such as pairs by age gap; what needs to
    know who is who is left out for lists that only pair photos. Several lists stand side by side in one
    table; --write-card takes its strangers from the first. With --json one line for each list. Forms:
    docs/measuring.md.
    """
    from facepipe.evaluation import encoder
    from facepipe.evaluation.encoder_report import text, write_encoder_report
    from facepipe.evaluation.pages import require_report_place
    from facepipe.evaluation.pair_lists import read_pair_lists
    from facepipe.weights.registry import DEFAULT_ENCODER, load_card

    if report:
        require_report_place(report, "encoder")
    lists = read_pair_lists(pairs, images)
    pipeline = setup.pipeline()
    evaluations = [
        encoder.evaluate_encoder(
            pipeline,
            listed,
            people=people if listed is lists[0] else None,
            watch=lambda photos: with_progress(photos, len(photos), "analyzing"),
            **choices,
        )
        for listed in lists
    ]
    if report:
        echo(f"facepipe: {write_encoder_report(report, evaluations)}", err=True)
    for line in [json.dumps(each.to_dict()) for each in evaluations] if as_json else text(evaluations):
        echo(line)
    if write_card:
        weight = load_card(setup.encoder_weights or DEFAULT_ENCODER)
        echo(f"facepipe: {encoder.write_card(weight, evaluations)}", err=True)


@evaluate.command("people")
@click.argument("folder", type=FOLDER)
@click.option(
    "--threshold", type=float, multiple=True, help="May be repeated; the default one is measured too."
)
@with_setup
def evaluate_people(setup: Setup, folder: Path, threshold: tuple[float, ...]) -> None:
    """Enroll FOLDER/enroll/PERSON, identify FOLDER/probe/{known,strangers}/PERSON, and count."""
    from facepipe.evaluation.photos import people_result

    echo(json.dumps(people_result(setup.pipeline(), folder, threshold).to_dict()))
