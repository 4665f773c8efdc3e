"""Commands on the networks' weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from facepipe.commands.options import ANY_PATH, anchor_sizes, threads_option, three_numbers
from facepipe.commands.output import echo, echo_record

if TYPE_CHECKING:
    from weights.card import AnchorSpec


@click.group("weights")
def weights() -> None:
    """List, check, import and fetch the networks' weights."""


@weights.command("list")
def weights_list() -> None:
    """Every weight that is found, and the published ones that can be fetched."""
    from weights.published import PUBLISHED
    from weights.registry import list_weights

    for entry in list_weights():
        kind = entry.problem or (entry.weight.card.kind if entry.weight else "")
        echo(f"{entry.name:<40} {entry.origin:<10} {kind}")
    for name, published in PUBLISHED.items():
        echo(f"{name:<40} {'to fetch':<10} {published.kind}")


@weights.command("show")
@click.argument("name")
def weights_show(name: str) -> None:
    """A weight's card."""
    from weights.registry import load_card

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
@threads_option
def weights_import(
    file: Path,
    name: str,
    architecture: str | None,
    channels: Literal["rgb", "bgr"] | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    anchors: AnchorSpec | None,
) -> None:
    """Turn a published or own checkpoint (.pth, .pt, .safetensors) into a weight with a card."""
    from facepipe.convert import import_checkpoint

    weight = import_checkpoint(
        file, name=name, architecture=architecture, channels=channels, mean=mean, std=std, anchors=anchors
    )
    echo(f"facepipe: {weight.card.name} ({weight.card.architecture}) is in {weight.folder}", err=True)


@weights.command("fetch")
@click.argument("name")
@click.option("--url", help="Another address of the same file.")
def weights_fetch(name: str, url: str | None) -> None:
    """Download a published checkpoint, to be imported.

    Only a whole checkpoint is kept. Where the file's hash is not known, that of the first download is
    remembered, and later ones must have it.
    """
    from weights.download import fetch

    result = fetch(name, url=url)
    echo(result.path)
    known = "as expected" if result.was_known else "not known before: remembered from now on"
    echo(f"facepipe: sha256 {result.sha256} ({known}); from {result.origin}", err=True)
    echo(f"facepipe: next: facepipe weights import {result.path} --name NAME", err=True)
