"""The `facepipe` command: its groups, and what becomes of a failure."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import click

from facepipe import __version__
from facepipe.commands import (
    audit,
    batch,
    batch_merge,
    calibrate,
    cluster,
    demo,
    doctor,
    face,
    gallery,
    library,
    photos,
    reembed,
    review,
    serve,
    sort,
    verify,
    video,
    watch,
    weights,
)
from facepipe.commands import evaluate as evaluation
from facepipe.commands.output import INTERRUPTED, LOG_JSON, log
from facepipe.core.errors import FacepipeError
from facepipe.core.logs import JsonFormatter, LineFormatter
from facepipe.core.plain_text import visible
from facepipe.training import commands as training

# Before it ends, Python searches all that was imported for cyclic garbage: a sixth of the time of `identify`.
atexit.register(gc.freeze)


class FacepipeGroup(click.Group):
    """Commands whose failures are one line on stderr and the documented exit code."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the command line, of which an error may quote any part."""
        with _visible_usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and turn a failure into its exit code."""
        try:
            with _visible_usage_errors():
                return super().invoke(ctx)
        except FacepipeError as error:
            log(str(error), "ERROR")
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            raise  # click leaves quietly: whoever read stdout has had enough
        except OSError as error:
            log(str(error), "ERROR")
            _drop_what_stdout_refuses()
            ctx.exit(1)
        except KeyboardInterrupt:
            log("interrupted; what was reported as done is kept", "WARNING")
            ctx.exit(INTERRUPTED)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            if LOG_JSON not in ctx.meta:
                raise  # click writes what is wrong with an option, and Python a traceback
            wrong_usage = error if isinstance(error, click.ClickException) else None
            log(wrong_usage.format_message() if wrong_usage else traceback.format_exc(), "ERROR")
            ctx.exit(wrong_usage.exit_code if wrong_usage else 1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; --log-json holds for what is wrong with its other options, too."""
        if LOG_JSON in args:
            ctx.meta[LOG_JSON] = True
        return super().resolve_command(ctx, args)


@contextmanager
def _visible_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = visible(error.message)  # type: ignore[misc]
        raise


def _log_warnings(handler: logging.Handler) -> None:
    """Write Python's own warnings by the handler, until the command ends."""
    logger = logging.getLogger("py.warnings")
    before, logger.handlers = logger.handlers, [handler]
    logging.captureWarnings(True)

    def restore() -> None:
        logging.captureWarnings(False)
        logger.handlers = before

    click.get_current_context().call_on_close(restore)


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
    as_json = LOG_JSON in click.get_current_context().meta
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logger = logging.getLogger("facepipe")
    logger.handlers = [handler]
    if as_json:
        _log_warnings(handler)
    logger.setLevel(logging.INFO)  # Not by assignment: what was asked before is remembered.


for command in (
    photos.enroll,
    photos.identify,
    photos.detect,
    photos.embed,
    verify.verify,
    batch.batch,
    batch_merge.batch_merge,
    sort.sort,
    watch.watch,
    video.video,
    serve.serve,
    review.review,
    cluster.cluster,
    library.name,
    library.library,
    calibrate.calibrate,
    gallery.gallery,
    face.face,
    weights.weights,
    training.train,
    training.data,
    evaluation.evaluate,
    training.export,
    demo.demo,
    doctor.doctor,
):
    main.add_command(command)
gallery.gallery.add_command(audit.audit)
gallery.gallery.add_command(reembed.reembed)


if __name__ == "__main__":
    main()
