"""The command line as the tests use it: in this process, or in one of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner
from paths import ROOT

from facepipe import cli

RUNNING = "facepipe: running on "


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of stdout."""
        return self.out.splitlines()

    @property
    def complaints(self) -> list[str]:
        """Lines of stderr beside the one that says what runs where."""
        return [line for line in self.err.splitlines() if not line.startswith(RUNNING)]


def facepipe(*arguments: object) -> Said:
    """Run a command in this process; an exception that the command line did not expect comes through."""
    logger = logging.getLogger("facepipe")
    handlers, level = logger.handlers, logger.level
    try:
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    finally:
        logger.handlers, logger.level = handlers, level
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def start(
    *arguments: object,
    home: Path,
    preexec: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
    stdout: IO[str] | int = subprocess.PIPE,
    stderr: IO[str] | int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start a command in a process of its own, in the folder `home`."""
    settings = {"PYTHONPATH": str(ROOT), "FACEPIPE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "facepipe.cli", *map(str, arguments)],
        stdout=stdout,
        stderr=stderr,
        text=True,
        cwd=home,
        env={**os.environ, **settings, **(environment or {})},
        preexec_fn=preexec,
    )


def finished(process: subprocess.Popen[str]) -> Said:
    """Wait for it."""
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out or "", err or "")


def bound_by_permissions() -> Callable[[], None] | None:
    """What a started process does first so that permission bits hold for it, also for the superuser."""
    if os.geteuid() != 0:
        return None
    if not sys.platform.startswith("linux"):
        pytest.skip("permission bits don't hold for the superuser")
    library = ctypes.CDLL(None, use_errno=True)

    def drop() -> None:
        drop_from_bounding_set, override, read_search = 24, 1, 2
        for capability in (override, read_search):
            library.prctl(drop_from_bounding_set, capability, 0, 0, 0)

    probe = subprocess.run(
        [sys.executable, "-c", "import os; print(os.access('/proc/1/environ', os.R_OK))"],
        preexec_fn=drop,
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip("Python is out of reach without the superuser's rights")
    return drop
