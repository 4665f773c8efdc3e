"""One run on two hosts: the steps of one process with the whole batch, and clear ends where hosts differ."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_helpers import environment, plain_task, run_python, write_dataset

from benchmarks.hosts import Host, start_on, two_hosts
from benchmarks.namespaces import NoNamespacesError
from facepipe.core.errors import DataError
from facepipe.core.faces import UInt8Array
from facepipe.training.engine.checkpoints import load_checkpoint
from facepipe.training.engine.config import to_plain
from facepipe.training.engine.logs import read_log
from facepipe.training.engine.loop import TrainingLoop
from facepipe.training.engine.loop_config import LoopConfig
from facepipe.training.engine.optimizer import OptimiserConfig

_STEPS = 3
_SETTINGS = (
    *("device=cpu", "augment.size_px=64", "loop.warmup_steps=0", "loop.log_every=1", "loop.workers=0"),
    *("loop.compile=false", "optimiser.name=sgd", "optimiser.learning_rate=0.01"),
    *("optimiser.reference_batch=4", "network.initial=retinaface_mobilenet025"),
    f"loop.steps={_STEPS}",
)

_WITHOUT_BATCH_NORM = """
import sys
from dataclasses import replace
import facepipe.training.detection.prepare as preparation
from training_helpers import remove_batch_norm
real = preparation.initial_detector
def without_batch_norm(config):
    start = real(config)
    remove_batch_norm(start.network)
    return start
preparation.initial_detector = without_batch_norm
from facepipe.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as made:
            yield made
    except NoNamespacesError as error:
        pytest.skip(str(error))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The command, with a network that sees each photo alone."""
    path = tmp_path / "command.py"
    path.write_text(_WITHOUT_BATCH_NORM)
    return path


@pytest.fixture
def dataset(tmp_path: Path, astronaut: UInt8Array) -> Path:
    return write_dataset(tmp_path / "data", astronaut)


def words(run: Path, dataset: Path, *settings: str) -> list[str]:
    chosen = [f"--set={setting}" for setting in (*_SETTINGS, *settings)]
    recipe = ["--recipe", "retinaface_mobilenet025", "--data", str(dataset)]
    return ["train", "detector", str(run), *recipe, *chosen]


def run_together(hosts: Sequence[Host], script: Path, *commands: Sequence[str]) -> list[tuple[int, str]]:
    """Exit code and stderr of each host."""
    processes: list[subprocess.Popen[str]] = start_on(
        hosts, [[str(script), *command] for command in commands], environment()
    )
    ends = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, end) for process, end in zip(processes, ends, strict=True)]


def test_two_hosts_train_as_one_process_with_the_whole_batch(
    hosts: tuple[Host, Host], script: Path, dataset: Path, tmp_path: Path
) -> None:
    """Each host has a disk of its own."""
    copy = shutil.copytree(dataset, tmp_path / "data of the other host")
    one, (first, second) = tmp_path / "one", (tmp_path / "host 1", tmp_path / "host 2")
    done = run_python(script, *words(one, dataset, "loop.batch_size=4"))
    assert done.returncode == 0, done.stderr
    half = "loop.batch_size=2"
    ends = run_together(hosts, script, words(first, dataset, half), words(second, copy, half))
    assert [code for code, _ in ends] == [0, 0], ends
    assert not (second / "last.pt").exists()
    expected, found = (load_checkpoint(run / "last.pt") for run in (one, first))
    assert expected["step"] == found["step"] == _STEPS
    figures, others = read_log(one / "log.csv"), read_log(first / "log.csv")
    for loss in ("class", "box", "landmark"):
        assert [v for _, v in others[loss]] == pytest.approx([v for _, v in figures[loss]], rel=1e-3)
    for name, value in expected["module"].items():
        torch.testing.assert_close(found["module"][name], value, atol=1e-5, rtol=1e-3)


_COMPARE = """
import sys
from facepipe.training.engine.distributed import different_in_ranks, process_group, rank
with process_group("cpu") as device:
    values = {"settings": 2**32 - 1, "steps": 4 * rank(), "weights": 2**32 - 1 - rank()}
    print(different_in_ranks(values, device))
"""


def test_processes_find_in_what_they_differ() -> None:
    common = {**environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COMPARE],
            env={**common, "RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    for process in processes:
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, "['steps', 'weights']\n"), errors


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def test_a_run_of_processes_that_differ_ends_before_the_first_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, float]] = []

    def different(values: Mapping[str, float], device: torch.device) -> list[str]:
        asked.append(values)
        return ["settings", "weights"] if len(asked) == 3 else []

    monkeypatch.setattr("facepipe.training.engine.loop.different_in_ranks", different)
    short = LoopConfig(steps=1, batch_size=2, workers=0)
    longer = replace(short, steps=2)

    def run(config: LoopConfig) -> None:
        record = {"loop": to_plain(config), "optimiser": {}}
        task = plain_task(dataset, 2)
        TrainingLoop(task, OptimiserConfig(), config, tmp_path / "run", record).run()

    run(short)
    run(replace(short, workers=1, compile=False))
    with pytest.raises(DataError, match=r"run: .* differ in their settings, weights; .*last\.pt"):
        run(longer)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 1
    fresh, again, other = asked
    assert (fresh["steps done"], fresh["weights"]) == (0, 0)
    assert (again["steps done"], again["weights"]) == (1, other["weights"]) != (1, 0)
    assert again["settings"] == fresh["settings"] != other["settings"]
    assert fresh["number of samples"] > 0
