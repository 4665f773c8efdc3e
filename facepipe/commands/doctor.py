"""The command that checks the installation."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from facepipe.commands.options import gallery_option, threads_option
from facepipe.commands.output import echo

if TYPE_CHECKING:
    from facepipe.gallery.address import GalleryAddress
    from facepipe.runtime.engines import RuntimeName


@click.command()
@partial(gallery_option, required=False)
@click.option("--device", default="auto", metavar="cpu|cuda[:N]")
@click.option("--runtime", default="auto", metavar="onnx|openvino|torch")
@threads_option
def doctor(gallery_address: GalleryAddress | None, device: str, runtime: RuntimeName) -> None:
    """Check the installation: versions, devices, weights, gallery."""
    from facepipe.doctor import examine

    checks = examine(gallery_address, runtime, device)
    for check in checks:
        echo(f"{'ok' if check.ok else 'PROBLEM':<8} {check.what}: {check.finding}")
    if not all(check.ok for check in checks):
        sys.exit(1)
