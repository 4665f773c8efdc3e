"""What README promises: its Python is typed strictly, and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from facepipe.core.faces import UInt8Array
from facepipe.images.reading import write_image

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippets_are_strictly_typed(tmp_path: Path, number: int) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPETS[number], encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file="),
            *("--cache-dir", ROOT / ".mypy_cache" / "readme", file),
        ],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], astronaut: UInt8Array
) -> None:
    (example,) = SNIPPETS
    (tmp_path / "people" / "Eileen").mkdir(parents=True)
    write_image(tmp_path / "people" / "Eileen" / "portrait.png", astronaut)
    write_image(tmp_path / "party.jpg", np.ascontiguousarray(astronaut[:, ::-1]))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    enrolled, found = capsys.readouterr().out.splitlines()
    assert enrolled.startswith("enrolled")
    assert "] Eileen 0." in found
