"""The command that runs the main job on a photo that is always there."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from facepipe.commands.options import ANY_PATH, Setup, with_setup
from facepipe.commands.output import echo


@click.command()
@click.option("--out", type=ANY_PATH, default=Path("facepipe-demo"), show_default=True, metavar="DIR")
@with_setup
def demo(setup: Setup, out: Path) -> None:
    """Enroll a portrait that ships with scikit-image and find her in altered photos; writes a picture."""
    from facepipe.demo import run_demo

    result = run_demo(out, setup.pipeline)
    for line in result.lines:
        echo(line)
    if not result.passed:
        sys.exit(1)
