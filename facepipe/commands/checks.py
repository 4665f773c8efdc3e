"""Commands that show that it works here: demo, doctor."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import ANY_PATH, Setup, gallery_option, threads_option, with_setup

if TYPE_CHECKING:
    from facepipe.runtime import RuntimeName


@click.command()
@click.option("--out", type=ANY_PATH, default=Path("facepipe-demo"), show_default=True, metavar="DIR")
@with_setup
def demo(setup: Setup, out: Path) -> None:
    """Enroll a portrait that ships with scikit-image and find her in altered photos; writes a picture."""
    from facepipe.demo import run_demo

    result = run_demo(out, setup.pipeline)
    for line in result.lines:
        click.echo(line)
    if not result.passed:
        sys.exit(1)


@click.command()
@partial(gallery_option, required=False)
@click.option("--device", default="auto", metavar="cpu|cuda[:N]")
@click.option("--runtime", default="auto", metavar="onnx|openvino|torch")
@threads_option
def doctor(gallery_path: Path | None, device: str, runtime: RuntimeName) -> None:
    """Check the installation: versions, devices, weights, gallery."""
    from facepipe.doctor import examine

    checks = examine(gallery_path, runtime, device)
    for check in checks:
        click.echo(f"{'ok' if check.ok else 'PROBLEM':<8} {check.what}: {check.finding}")
    if not all(check.ok for check in checks):
        sys.exit(1)
