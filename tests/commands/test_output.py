"""What commands tell people: numbers in words, and progress on terminals."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from facepipe.core.counting import counted
from facepipe.runtime.engines import RuntimeChoice

LOOK = """
import time
from facepipe.commands.output import with_progress
def slowly():
    for i in range(4):
        time.sleep(0.15)
        yield i
for _ in with_progress(slowly(), 4, "looking"):
    pass
"""


@pytest.mark.parametrize(
    ("count", "thing", "told"),
    [
        (0, "photo", "0 photos"),
        (1, "photo", "1 photo"),
        (2, "photo", "2 photos"),
        (1, "new face", "1 new face"),
        (2, "new face", "2 new faces"),
        (1, "person", "1 person"),
        (3, "person", "3 people"),
    ],
)
def test_numbers_with_their_nouns(count: int, thing: str, told: str) -> None:
    assert counted(count, thing) == told


def test_one_thread_is_one() -> None:
    assert str(RuntimeChoice("onnx", "cpu", 1)) == "ONNX Runtime on cpu, 1 thread"


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_progress_is_shown_on_a_terminal_of_unknown_size(tmp_path: Path) -> None:
    """Containers and build machines have terminals of no columns."""
    ours, theirs = os.openpty()
    assert os.get_terminal_size(theirs).columns == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], stderr=theirs, stdout=subprocess.PIPE, env=environment, check=True
    )
    assert select.select([ours], [], [], 0)[0]
    told = os.read(ours, 1 << 16).decode()
    os.close(theirs)
    os.close(ours)
    assert "looking:" in told
    assert "4/4" in told
    assert done.stdout == b""


def test_no_progress_goes_to_files(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, env=environment, check=True)
    assert done.stderr == done.stdout == b""
