"""The attack in short: some cases of each kind, and proof that it notices what it is to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest
from paths import TESTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
ATTACK = TESTS / "attack.py"

KILLED_CALLS = ["add", "remove", "rename", "merge", "threshold", "index"]
KILLED_COMMANDS = [
    *(
        "enroll",
        "remove",
        "rename",
        "merge",
        "threshold",
        "export",
        "import",
        "merge-from",
        "backup",
        "restore",
    ),
    *("encrypt", "decrypt", "repair", "batch", "sort --move", "sort --move to another disk"),
    *("new weight", "left-over files"),
]
DAMAGED = [
    *(
        "gallery database",
        "gallery log",
        "log of another gallery",
        "gallery index",
        "index of another gallery",
    ),
    *("encrypted gallery", "batch job", "encrypted batch job", "archive"),
]
DAMAGED_WEIGHTS = ["safetensors", "onnx"]
MUTATED = ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "HEIC"]
MUTATED_VIDEOS = ["mp4 video", "avi video", "webm video"]
BOMBS = [
    *("rgba of 16 bits.png", "profile.png", "text.png", "rgb.tif", "frames.gif", "one colour.webp"),
    *("archive of empty people", "sidecar of entities"),
]


def attack(*words: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run the attack in a process of its own, on a facepipe that `planted` has spoiled."""
    code = f"import sys; sys.path.insert(0, {str(ATTACK.parent)!r}); import attack\n"
    code += textwrap.dedent(planted) + f"\nsys.exit(attack.main({list(words)!r}))"
    command = [sys.executable, "-c", code] if planted else [sys.executable, str(ATTACK), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


def rows(out: str) -> dict[str, tuple[int, dict[str, int]]]:
    """By attack, its tries and their outcomes."""
    found = {}
    for line in out.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[2].isdigit():
            outcomes = {what: int(count) for count, what in re.findall(r"(\d+) ([^,]+)", cells[6])}
            found[f"{cells[0]}/{cells[1]}"] = (int(cells[3].replace(",", "")), outcomes)
    return found


def kept(kind: str, targets: list[str], rounds: int) -> dict[str, tuple[int, dict[str, int]]]:
    """Attack these targets; every promise must be kept, and every target be tried."""
    names = [f"{kind}/{target}" for target in targets]
    done = attack("--rounds", str(rounds), "--only", ",".join(names))
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    assert list(found) == names
    assert all(tries for tries, _ in found.values()), done.stdout
    return found


def test_killed_calls_lose_nothing_acknowledged() -> None:
    found = kept("kills", [*(f"gallery {verb}" for verb in KILLED_CALLS), "crowd"], rounds=5)
    # The moments are within changes indeed: some were kept whole, others left no trace.
    outcomes = [outcomes for _, outcomes in found.values()]
    assert min(sum(each.get(what, 0) for each in outcomes) for what in ("done", "undone")) >= 10
    assert sum(tries for tries, _ in found.values()) >= 100


def test_killed_commands_lose_nothing_told() -> None:
    kept("kills", KILLED_COMMANDS, rounds=1)


def test_damage_gives_no_wrong_name() -> None:
    kept("corruptions", DAMAGED, rounds=4)


def test_damaged_weights_are_refused() -> None:
    found = kept("corruptions", DAMAGED_WEIGHTS, rounds=2)
    assert all(set(outcomes) == {"refused"} for _, outcomes in found.values())


def test_mutated_inputs_are_read_or_refused() -> None:
    found = kept("inputs", [*MUTATED, "XMP", *MUTATED_VIDEOS], rounds=2)
    for what in ("read", "refused"):
        assert sum(outcomes.get(what, 0) for _, outcomes in found.values()) >= 50


def test_bombs_stay_small() -> None:
    kept("bombs", BOMBS, rounds=1)


def test_the_same_case_comes_again() -> None:
    done = [attack("--case", "inputs/PNG/3", "--seed", "5").stdout for _ in range(2)]
    assert "inputs | PNG" in done[0]
    same = [re.sub(r"\d+ MB", "", out) for out in done]
    assert same[0] == same[1]


# What is planted must be found

LATE = """
    from facepipe.gallery import Gallery
    add, close = Gallery.add, Gallery.close

    def late_add(self, *words):
        self.__dict__.setdefault("late", []).append(words)
        return []

    def late_close(self):
        for words in self.__dict__.pop("late", []):
            add(self, *words)
        close(self)

    Gallery.add, Gallery.close = late_add, late_close
"""
IN_TWO_STEPS = """
    from facepipe.gallery import Gallery

    def merge(self, source, into):
        crops = zip(self.templates(source), self.vectors(source))
        self.add(into, [face.as_new_template(vector, None) for face, vector in crops])
        for _ in range(5000):
            len(source)  # Calls at which it may be killed.
        self.remove(source)

    Gallery.merge = merge
"""
NEVER_WIPED = """
    import facepipe.gallery.storage.sqlite.database
    prepare = facepipe.gallery.storage.sqlite.database.prepare

    def leave_remains(connection):
        prepare(connection)
        connection.execute("PRAGMA secure_delete = OFF")

    facepipe.gallery.storage.sqlite.database.prepare = leave_remains
    facepipe.gallery.storage.sqlite.database.Database.wipe_deleted = lambda self, wait: True
"""
SPOILED_GALLERY = """
    import tempfile
    from pathlib import Path
    from attacks import corruptions
    from facepipe.gallery import Gallery

    def spoiled(data, dice):
        folder = Path(tempfile.mkdtemp())
        (folder / "gallery.sqlite3").write_bytes(data)
        with Gallery.open(folder) as gallery:
            gallery.{change}
        return (folder / "gallery.sqlite3").read_bytes()

    corruptions.damaged = spoiled
"""
SPOILED_READER = """
    import os, signal
    from attacks import inputs

    def read(path):
        {action}

    inputs.read_image, inputs._COMMAND_SHARE, inputs.CPU_LIMIT_S = read, 0.0, 0.3
"""
HOARDER = """
    import numpy as np
    from attacks import bombs
    from facepipe.images.reading import read_image, read_reduced
    import facepipe.batch.analysis, facepipe.pipeline
    hoard = []

    def hoarding(read):
        def reading(*words, **options):
            hoard.append(np.ones(2000 << 20, np.uint8))
            return read(*words, **options)
        return reading

    facepipe.pipeline.read_image = hoarding(read_image)
    facepipe.batch.analysis.read_reduced = hoarding(read_reduced)
    bombs.PEAK_LIMIT_BYTES = 500 << 20
"""


@pytest.mark.parametrize(
    ("name", "planted", "told"),
    [
        ("kills/gallery add", LATE, "expected one of"),
        ("kills/enroll", LATE, "after '{"),
        ("kills/gallery merge", IN_TWO_STEPS, "expected one of"),
        ("kills/gallery remove", NEVER_WIPED, "are left in"),
        (
            "corruptions/gallery database",
            SPOILED_GALLERY.format(change="rename('person 1', 'x')"),
            "was named x",
        ),
        (
            "corruptions/gallery database",
            SPOILED_GALLERY.format(change="remove('person 2')"),
            "nothing was told",
        ),
        ("inputs/PNG", SPOILED_READER.format(action="raise ValueError(path)"), "ValueError"),
        ("inputs/PNG", SPOILED_READER.format(action="os.kill(os.getpid(), signal.SIGSEGV)"), "exit code -11"),
        (
            "inputs/PNG",
            SPOILED_READER.format(action="[hash((n,)) for n in range(20_000_000)]"),
            "processor time",
        ),
        ("bombs/profile.png", HOARDER, "MB at most"),
    ],
)
def test_a_planted_fault_is_found(name: str, planted: str, told: str) -> None:
    rounds = 12 if name == "kills/gallery merge" else 4  # a kill must fall between its two steps
    done = attack("--rounds", str(rounds), "--only", name, planted=planted)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f'BROKEN  --seed 1 --case "{name}/' in done.stdout
    assert told in done.stdout
