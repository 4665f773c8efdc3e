"""A job that another process works with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WORKING = """
import sys
from pathlib import Path
from facepipe.batch.job import Job

with Job(Path(sys.argv[1])) as job:
    print("open", flush=True)
    number = 0
    while sys.argv[2] == "busy":
        number += 1
        with job.file.changing() as database:
            for key in ("one", "two"):
                row = key, str(number) + " " * (number * 7919 % 20_000)
                database.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", row)
        if number % 50 == 0:
            job.file.wipe()
    sys.stdin.read()
"""
"""Holds a job, and writes two rows in each transaction: both are the same at any time."""


@contextmanager
def worked_with(out: Path, how: str = "idle") -> Iterator[subprocess.Popen[str]]:
    """Another process that has the job open."""
    command = [sys.executable, "-c", _WORKING, str(out), how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
