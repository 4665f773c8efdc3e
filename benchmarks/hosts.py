"""Does training on two hosts give the figures of one process with the same batch?

    python -m benchmarks.hosts --data FOLDER [--steps N] [--batch N] [--recipe NAME] [--set SECTION.KEY=VALUE]
        [--json]

FOLDER is a detector's data set. The hosts are network namespaces, each with a private address, joined by a
virtual cable; that needs root and iproute2. `facepipe train detector` runs four times: in one process with
the batch, twice with other seeds, which shows what is noise, and under torchrun on two hosts with half of the
batch each. Printed: the mean loss in each fifth of the steps.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.namespaces import ip, new_namespaces
from facepipe.training.engine.logs import read_log

_PARTS = 5
_LOSSES = ("class", "box", "landmark")
_PORT = 29500
_NETWORK = "10.213.7"
_TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace.

    Attributes:
        name: Of the namespace.
        address: Of its end of the cable.
        interface: The same end, as `ip link` shows it there.
    """

    name: str
    address: str
    interface: str


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts that reach each other and nobody else.

    Raises:
        NoNamespacesError: That is not allowed here.
    """
    mark = secrets.token_hex(3)
    first, second = (Host(f"fp-{mark}-{n}", f"{_NETWORK}.{n}", f"fp{mark}{n}") for n in (1, 2))
    with new_namespaces(first.name, second.name):
        ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for host in (first, second):
            ip("link", "set", host.interface, "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.name, "link", "set", host.interface, "up")
        yield first, second


def start_on(
    hosts: Sequence[Host], commands: Sequence[Sequence[str]], environment: dict[str, str]
) -> list[subprocess.Popen[str]]:
    """Start one process of a run under torchrun on each host.

    Args:
        hosts: The first is the one where the processes meet.
        commands: For each host what torchrun starts: a script, or --module and a module, and arguments.
        environment: Of all.
    """
    processes = []
    for rank, (host, command) in enumerate(zip(hosts, commands, strict=True)):
        torchrun = [
            *("ip", "netns", "exec", host.name, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(hosts)), "--node-rank", str(rank), "--nproc-per-node", "1"),
            *("--master-addr", hosts[0].address, "--master-port", str(_PORT)),
        ]
        processes.append(
            subprocess.Popen(
                [*torchrun, *command],
                env={**environment, "GLOO_SOCKET_IFNAME": host.interface},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Of a detector.")
@click.option("--recipe", default="retinaface_mobilenet025", show_default=True)
@click.option("--steps", default=200, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Photos of a step, of all processes together.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE")
@click.option("--json", "as_json", is_flag=True)
def main(data: Path, recipe: str, steps: int, batch: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compare the losses of one process and of two hosts."""
    settings = [
        *("device=cpu", f"loop.steps={steps}", "loop.log_every=1", "loop.compile=false"),
        *(f"loop.validate_every={steps}", *overrides),
    ]

    def words(run: Path, batch_size: int, seed: int) -> list[str]:
        own = [*settings, f"loop.batch_size={batch_size}", f"loop.seed={seed}"]
        chosen = [word for setting in own for word in ("--set", setting)]
        return ["train", "detector", str(run), "--recipe", recipe, "--data", str(data), *chosen]

    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {f"one process, seed {seed}": folder / f"seed {seed}" for seed in (0, 1, 2)}
        for seed, run in enumerate(runs.values()):
            command = [sys.executable, "-m", "facepipe.cli", *words(run, batch, seed)]
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_TIMEOUT_S)
        runs["two hosts, seed 0"] = folder / "host 0"
        with two_hosts() as hosts:
            commands = [
                ["--module", "facepipe.cli", *words(folder / f"host {n}", batch // 2, 0)] for n in (0, 1)
            ]
            for process in start_on(hosts, commands, environment):
                _, errors = process.communicate(timeout=_TIMEOUT_S)
                if process.returncode:
                    raise click.ClickException(errors)
        figures = {name: _means(run / "log.csv") for name, run in runs.items()}
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, parts in figures.items():
        click.echo(f"{name:<24}" + "  ".join(f"{value:.3f}" for value in parts))


def _means(log: Path) -> list[float]:
    """Sum of the losses by the labels, in the mean over each fifth of the steps."""
    curves = read_log(log)
    totals = [sum(values) for values in zip(*([v for _, v in curves[loss]] for loss in _LOSSES), strict=True)]
    size = len(totals) // _PARTS
    return [sum(totals[part * size : (part + 1) * size]) / size for part in range(_PARTS)]


if __name__ == "__main__":
    main()
