"""Commands on the networks' weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facepipe.commands.options import ANY_PATH, anchor_sizes, threads_option, three_numbers
from facepipe.commands.output import echo, echo_record

if TYPE_CHECKING:
    from facepipe.weights.registry import Weight

_OF_CHECKPOINTS = frozenset({"architecture", "anchors"})
_OF_ONNX = frozenset({"alignment", "size_px", "licence"})


@click.group("weights")
def weights() -> None:
    """List, check, import and fetch the networks' weights."""


@weights.command("list")
def weights_list() -> None:
    """Every weight that is found, and the published ones that can be fetched."""
    from facepipe.weights.published import PUBLISHED, TRAINING_FILES
    from facepipe.weights.registry import list_weights

    for entry in list_weights():
        kind = entry.problem or (entry.weight.card.kind if entry.weight else "")
        echo(f"{entry.name:<40} {entry.origin:<10} {kind}")
    for name, published in PUBLISHED.items():
        echo(f"{name:<40} {'to fetch':<10} {published.kind}")
    for name in TRAINING_FILES:
        echo(f"{name:<40} {'to fetch':<10} for training")


@weights.command("show")
@click.argument("name")
def weights_show(name: str) -> None:
    """A weight's card."""
    from facepipe.weights.registry import load_card

    echo_record(load_card(name).card.to_json().rstrip("\n"))


@weights.command("verify")
@click.argument("names", nargs=-1)
def weights_verify(names: tuple[str, ...]) -> None:
    """Check the files of NAMES, or of every weight, against their cards."""
    from facepipe.doctor import verify_weights

    checks = verify_weights(names)
    for check in checks:
        echo(f"{'ok' if check.ok else 'PROBLEM':<8} {check.what}: {check.finding}")
    if not all(check.ok for check in checks):
        sys.exit(1)


@weights.command("import")
@click.argument("file", type=ANY_PATH)
@click.option("--name", required=True, help="What to call the weight.")
@click.option("--architecture", metavar="NAME", help="Recognised by names, but for plain ReLUs (README).")
@click.option("--channels", type=click.Choice(["rgb", "bgr"]), help="Order that the network was trained on.")
@click.option(
    "--mean", type=three_numbers, metavar="M,M,M", help="Subtracted from each channel, in that order, 0..255."
)
@click.option("--std", type=three_numbers, metavar="M,M,M", help="Divides each channel, in that order.")
@click.option(
    "--anchors",
    type=anchor_sizes,
    metavar="S,S/S,S/S,S",
    help="A detector's anchor sides in pixels, stride by stride.",
)
@click.option(
    "--alignment", metavar="NAME", help="Of an .onnx: template of its faces; arcface_112 by default."
)
@click.option(
    "--size", "size_px", type=int, help="Of an .onnx that leaves it open: side of its input in pixels."
)
@click.option("--licence", help="Of an .onnx: its terms of use, for the card.")
@threads_option
def weights_import(file: Path, name: str, **given: Any) -> None:
    """Turn a checkpoint (.pth, .pt, .safetensors) or a face encoder (.onnx) into a weight with a card.

    An .onnx file is tried on a sample photo. Unless --channels, --mean and --std are given, it takes
    (x - 127.5) / 127.5 of RGB pixels, or the pixels themselves where it begins by scaling them.
    """
    options = {key: value for key, value in given.items() if value is not None}
    is_onnx = file.suffix.lower() == ".onnx"
    if wrong := options.keys() & (_OF_CHECKPOINTS if is_onnx else _OF_ONNX):
        raise click.UsageError(f"--{min(wrong).removesuffix('_px')} is not for {file.name}.")
    weight = _imported_onnx(file, name, options) if is_onnx else _imported_checkpoint(file, name, options)
    echo(f"facepipe: {weight.card.name} ({weight.card.architecture}) is in {weight.folder}", err=True)


def _imported_checkpoint(file: Path, name: str, options: dict[str, Any]) -> Weight:
    from facepipe.runtime.onnx_export import import_checkpoint

    return import_checkpoint(file, name=name, **options)


def _imported_onnx(file: Path, name: str, options: dict[str, Any]) -> Weight:
    from facepipe.onnx_import import import_onnx_encoder

    weight = import_onnx_encoder(file, name=name, **options)
    spec = weight.card.input
    echo(
        f"facepipe: it takes faces of {spec.size_px} px, {spec.channels}, less {spec.mean}, by {spec.std}. "
        "It names nobody before it has a threshold: facepipe evaluate encoder --write-card, "
        "or facepipe calibrate",
        err=True,
    )
    return weight


@weights.command("fetch")
@click.argument("name")
@click.option("--url", help="Another address of the same file.")
def weights_fetch(name: str, url: str | None) -> None:
    """Download a published checkpoint, to be imported or trained with.

    Only a whole checkpoint is kept. Where the file's hash is not known, that of the first download is
    remembered, and later ones must have it.
    """
    from facepipe.weights.downloads import fetch

    result = fetch(name, url=url)
    echo(result.path)
    known = "as expected" if result.was_known else "not known before: remembered from now on"
    echo(f"facepipe: sha256 {result.sha256} ({known}); from {result.origin}", err=True)
    echo(f"facepipe: next: {result.next_step}", err=True)
