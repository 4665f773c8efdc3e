"""The `facepipe` command: its groups, and what becomes of a failure."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from typing import Any

import click

from facepipe import __version__
from facepipe.commands import audit, batch, calibrate, checks, cluster, gallery, photos, video, watch, weights
from facepipe.commands.output import INTERRUPTED
from facepipe.errors import FacepipeError
from training import commands as training
from training.evaluation import commands as evaluation


class FacepipeGroup(click.Group):
    """Commands whose failures are one line on stderr and the documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn a failure into its exit code."""
        try:
            return super().invoke(ctx)
        except FacepipeError as error:
            click.echo(f"facepipe: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            raise  # click leaves quietly: whoever read stdout has had enough
        except OSError as error:
            click.echo(f"facepipe: {error}", err=True)
            _drop_what_stdout_refuses()
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("facepipe: interrupted; what was reported as done is kept", err=True)
            ctx.exit(INTERRUPTED)


def _drop_what_stdout_refuses() -> None:
    """Python would try again at its end, fail again, and leave with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=FacepipeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facepipe")
def main() -> None:
    """Find the faces in photos and say who they are.

    Exit codes: 0 all went well; 1 failure, or no photo went well; 2 wrong usage; 3 some photos failed or
    were refused; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # letters that the terminal lacks, file names that are no text
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("facepipe: %(message)s"))
    logger = logging.getLogger("facepipe")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)  # Not by assignment: what was asked before is remembered.


for command in (
    photos.enroll,
    photos.identify,
    photos.detect,
    photos.embed,
    batch.batch,
    batch.sort,
    watch.watch,
    video.video,
    cluster.cluster,
    calibrate.calibrate,
    gallery.gallery,
    weights.weights,
    training.train,
    training.data,
    evaluation.evaluate,
    training.export,
    checks.demo,
    checks.doctor,
):
    main.add_command(command)
gallery.gallery.add_command(audit.audit)


if __name__ == "__main__":
    main()
