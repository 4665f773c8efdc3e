"""A Ray cluster of machines with addresses of their own: network namespaces on a bridge of theirs."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from paths import ROOT

from benchmarks.namespaces import ip, new_namespaces

HEAD = "10.213.0.1:6379"
_TOKEN = "7" * 64
_STORE_BYTES = 80_000_000
_SOON = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""Ray notices in seconds that a node has gone; as shipped it takes up to a minute."""
_COUNT = itertools.count()


class Machines:
    """Network namespaces on a bridge, in each of which a node of one Ray cluster can be started.

    Args:
        folder: For Ray's files; a short path.
        count: How many.
        environment: Of all processes there.

    Raises:
        NoNamespacesError: On entering: no namespaces can be made here.
    """

    def __init__(self, folder: Path, count: int, environment: dict[str, str] | None = None) -> None:
        self._folder, self._count = folder, count
        self._ray_folder = folder / "ray"
        self._ray_folder.mkdir()
        self._open = ExitStack()
        prefix = f"fp{os.getpid()}x{next(_COUNT)}"
        self._switch, self._names = f"{prefix}s", [f"{prefix}n{number}" for number in range(count)]
        self.environment = {
            # not what a local cluster of this process was given
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "FACEPIPE_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            **_SOON,
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        self._open.enter_context(new_namespaces(self._switch, *self._names))
        try:
            ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "bridge0", "up")
            for number in range(self._count):
                self._add(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self._count):
            self.kill(number)
        self._open.close()

    def _add(self, number: int) -> None:
        name, port = self._names[number], f"port{number}"
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch)
        ip("-n", self._switch, "link", "set", port, "master", "bridge0", "up")
        ip("-n", name, "address", "add", f"10.213.0.{number + 1}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")

    def start_ray(self, number: int, *, processors: int = 1, hides: Path | None = None) -> None:
        """Start the head on machine 0, or a node that joins it as soon as it can.

        Args:
            number: Of the machine.
            processors: That it gives to the cluster.
            hides: A folder that is empty on this machine.
        """
        role = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._ray_folder}"]
        command = [
            *(role if number == 0 else [f"--address={HEAD}"]),
            f"--node-ip-address=10.213.0.{number + 1}",
            f"--num-cpus={processors}",
            f"--object-store-memory={_STORE_BYTES}",
            "--disable-usage-stats",
            "--block",
        ]
        start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *command]
        if number:  # machines do not share a folder of temporary files
            private = [self._ray_folder, *([] if hides is None else [hides])]
            mounts = "".join(f"mount -t tmpfs none '{folder}' && " for folder in private)
            start = ["unshare", "-m", "sh", "-c", f'{mounts}exec "$@"', "sh", *start]
        log = (self._folder / f"node{number}.log").open("wb")
        with log:
            self._popen(number, start, stdout=log, stderr=subprocess.STDOUT)

    def wait_for_nodes(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many nodes are in the cluster."""
        script = (
            "import ray, sys, time\n"
            f"ray.init(address={HEAD!r}, log_to_driver=False, logging_level='ERROR')\n"
            f"end = time.monotonic() + {timeout_s}\n"
            f"while sum(node['Alive'] for node in ray.nodes()) != {count} and time.monotonic() < end:\n"
            "    time.sleep(0.1)\n"
            f"sys.exit(sum(node['Alive'] for node in ray.nodes()) != {count})\n"
        )
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not self._popen(0, [sys.executable, "-c", script], stderr=subprocess.DEVNULL).wait():
                return
            time.sleep(0.3)
        logs = "\n".join(log.read_text() for log in sorted(self._folder.glob("node*.log")))
        raise AssertionError(f"no {count} nodes in {timeout_s} seconds\n{logs}")

    def run(self, command: Sequence[str | Path], *, number: int = 0) -> subprocess.Popen[str]:
        """Start a command on a machine; its outputs are pipes."""
        return self._popen(number, list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _popen(self, number: int, command: list[str], **pipes: Any) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(
            ["ip", "netns", "exec", self._names[number], *command],
            env=self.environment,
            cwd=self._folder,
            text=True,
            **pipes,
        )
        return process

    def kill(self, number: int) -> None:
        """SIGKILL everything on a machine, as if it lost its power."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self._names[number]], capture_output=True, text=True, check=False
        )
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self, number: int) -> None:
        """Take a machine off the network."""
        ip("-n", self._names[number], "link", "set", "eth0", "down")

    def mend(self, number: int) -> None:
        """Put it back."""
        ip("-n", self._names[number], "link", "set", "eth0", "up")
