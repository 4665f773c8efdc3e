"""How many threads are started: CPU quotas in made files, affinity, and what was asked for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli_helpers import facepipe
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from facepipe.batch.engine import EngineOptions
from facepipe.core import processors
from facepipe.core.errors import UsageError
from facepipe.core.processors import (
    THREADS_VARIABLE,
    compute_threads,
    cpu_quota,
    describe_threads,
    granted_processors,
)
from facepipe.runtime.engines import choose_runtime


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty-two processors are to be seen, and nothing is asked for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "24 19 0:22 / /sys rw - sysfs sysfs rw\n"
    "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
)
V1_GROUPS = "5:cpuset:/other\n4:cpu,cpuacct:{path}\n1:name=systemd:/user.slice\n0::/init\n"
V1 = "sys/fs/cgroup/cpu,cpuacct"

MADE: dict[str, tuple[dict[str, str], float | None]] = {
    "no control groups": ({}, None),
    "version 2, as in a container": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "version 2, without limit": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
        None,
    ),
    "version 2, the group above is narrower": (
        {
            "proc/self/cgroup": "0::/a.slice/b.scope\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/a.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a.slice/b.scope/cpu.max": "800000 100000\n",
        },
        1.5,
    ),
    "version 2, only the host's group is seen": (
        {
            "proc/self/cgroup": "0::/../../docker/abc\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "version 1": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path="/job"),
            "proc/self/mountinfo": V1_MOUNT.format(shown="/"),
            f"{V1}/job/cpu.cfs_quota_us": "400000\n",
            f"{V1}/job/cpu.cfs_period_us": "100000\n",
            f"{V1}/cpu.cfs_quota_us": "-1\n",
            f"{V1}/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, as Docker mounts it": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path="/docker/abc/inner"),
            "proc/self/mountinfo": V1_MOUNT.format(shown="/docker/abc"),
            f"{V1}/inner/cpu.cfs_quota_us": "-1\n",
            f"{V1}/inner/cpu.cfs_period_us": "100000\n",
            f"{V1}/cpu.cfs_quota_us": "300000\n",
            f"{V1}/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "both versions": (
        {
            "proc/self/cgroup": V1_GROUPS.format(path="/job"),
            "proc/self/mountinfo": V1_MOUNT.format(shown="/") + V2_MOUNT.replace("cgroup rw", "unified rw"),
            f"{V1}/job/cpu.cfs_quota_us": "600000\n",
            f"{V1}/job/cpu.cfs_period_us": "100000\n",
        },
        6,
    ),
    "a mount point with a blank": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup ", "/my\\040groups "),
            "my groups/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "torn files": (
        {
            "proc/self/cgroup": "0:\n\nx\n0::/\n",
            "proc/self/mountinfo": "1 2\n - cgroup2\n" + V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "lots\n",
        },
        None,
    ),
    "a period of nothing": (
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "100000 0\n",
        },
        None,
    ),
}


@pytest.mark.parametrize(("files", "quota"), MADE.values(), ids=MADE)
def test_the_quota_is_read(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    root = write(tmp_path, files)
    assert cpu_quota(root) == quota
    assert granted_processors(root) == (32 if quota is None else math.ceil(quota))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.none() | st.integers(1_000, 10_000_000), min_size=1, max_size=6),
    st.integers(1_000, 1_000_000),
)
def test_the_narrowest_group_counts(quotas: list[int | None], period: int) -> None:
    path = "/".join(f"g{i}" for i in range(len(quotas)))
    files = {"proc/self/cgroup": f"0::/{path}\n", "proc/self/mountinfo": V2_MOUNT}
    for depth, quota in enumerate(quotas, 1):
        group = "/".join(path.split("/")[:depth])
        files[f"sys/fs/cgroup/{group}/cpu.max"] = f"{quota or 'max'} {period}\n"
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), files)
        limits = [quota / period for quota in quotas if quota]
        assert cpu_quota(root) == min(limits, default=None)
        assert granted_processors(root) == min([32, *(max(1, math.ceil(limit)) for limit in limits)])


def test_affinity_bounds_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, MADE["version 1"][0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert granted_processors(root) == 2


def test_this_machine() -> None:
    assert 1 <= granted_processors() <= 32


# What is asked for


@pytest.fixture
def quota_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "root", MADE["version 2, as in a container"][0])
    monkeypatch.setattr(processors, "cpu_quota", lambda _=None: cpu_quota(root))


@pytest.mark.usefixtures("quota_of_two")
def test_everything_that_counts_follows_the_quota() -> None:
    assert compute_threads() == 2
    assert choose_runtime().threads == 2
    assert EngineOptions().threads == 3
    batch = choose_runtime(calls=EngineOptions().threads)
    assert (batch.threads, batch.calls) == (1, 3)
    assert str(choose_runtime()) == "ONNX Runtime on cpu, 2 threads"
    assert describe_threads() == "2 threads compute (32 processors, a CPU quota of 2)"


@pytest.mark.usefixtures("quota_of_two")
def test_the_variable_goes_before_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    assert compute_threads() == choose_runtime().threads == EngineOptions().threads == 5
    assert choose_runtime(threads=7).threads == EngineOptions(workers=7).threads == 7
    assert choose_runtime(calls=5).threads == 1
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    assert str(choose_runtime()) == "ONNX Runtime on cpu, 1 thread"
    assert describe_threads() == f"1 thread computes (32 processors, a CPU quota of 2, {THREADS_VARIABLE}=1)"
    monkeypatch.setenv(THREADS_VARIABLE, " ")
    assert compute_threads() == 2


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "9" * 5000, "²"])
def test_a_variable_that_is_no_number_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, value)
    with pytest.raises(UsageError, match=f"{THREADS_VARIABLE}: expected a number from 1 to 1024"):
        choose_runtime()


SEEN_BY_PACKAGES = """
import os
os.sched_getaffinity = lambda _: set(range(32))
import facepipe.core.processors, facepipe.core.environment
facepipe.core.processors.cpu_quota = lambda _=None: {quota}
for name in facepipe.core.environment.THREAD_VARIABLES:
    os.environ.pop(name, None)
facepipe.core.environment.prepare_environment()
import cv2, faiss
print(cv2.getNumThreads(), faiss.omp_get_max_threads())
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_opencv_and_faiss_follow_too() -> None:
    assert run(SEEN_BY_PACKAGES.format(quota=1.0)) == "1 1"
    assert run(SEEN_BY_PACKAGES.format(quota=None), FACEPIPE_THREADS="1") == "1 1"


def test_what_the_user_has_set_stands() -> None:
    code = "import facepipe, os; print(os.environ['OMP_NUM_THREADS'])"
    assert run(code, FACEPIPE_THREADS="3", OMP_NUM_THREADS="7") == "7"


def test_torch_follows_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from facepipe.training.engine.distributed import process_group

    before = torch.get_num_threads()
    try:
        monkeypatch.setenv(THREADS_VARIABLE, "3")
        with process_group("cpu"):
            assert torch.get_num_threads() == 3
        monkeypatch.delenv(THREADS_VARIABLE)
        monkeypatch.setattr(processors, "cpu_quota", lambda _=None: 1.0)
        with process_group("cpu"):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# The option

COMMANDS = [
    ("enroll",),
    ("identify",),
    ("detect",),
    ("embed",),
    ("batch",),
    ("watch",),
    ("video",),
    ("demo",),
    ("doctor",),
    ("export",),
    ("weights", "import"),
    ("train", "detector"),
    ("train", "encoder"),
    ("evaluate", "detector"),
    ("evaluate", "encoder"),
    ("evaluate", "people"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_that_run_networks_have_the_option(command: tuple[str, ...]) -> None:
    assert "--threads N" in facepipe(*command, "--help").out


def test_the_option_reaches_what_runs_and_ends_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OPENCV_FOR_THREADS_NUM", raising=False)
    lines = facepipe("doctor", "--threads", 5).lines
    assert "ok       runtime: ONNX Runtime on cpu, 5 threads" in lines
    assert any(line.startswith("ok       processors: 5 threads compute (32 processors") for line in lines)
    assert (os.environ[THREADS_VARIABLE], os.environ["OMP_NUM_THREADS"]) == ("2", "2")
    assert "OPENCV_FOR_THREADS_NUM" not in os.environ
    assert facepipe("doctor", "--threads", 0).code == 2
