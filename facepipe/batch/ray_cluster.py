"""A connection to a Ray cluster. Nothing here knows photos."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from facepipe.core.errors import ClusterError, MissingExtraError, UsageError, one_line
from facepipe.core.processors import compute_threads

LOCAL = "local"
"""The address of a cluster that is started on this machine, for this process alone."""
_AUTO = "auto"
_CONNECT_S = 5.0
_LOCAL_STORE_BYTES = 256 << 20
"""Object store of a local cluster: photos are read by path there, so it holds little."""
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever the system: Ray listens on the loopback address only
    "RAY_AUTH_MODE": "token",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: Of this start of Ray on it.
        address: Its IP address.
        processors: That it gives to the cluster.
    """

    id: str
    address: str
    processors: int


class RayCluster:
    """A Ray cluster, connected from `with` on; one a process.

    Args:
        address: "local": started here, on the loopback address, and ended with the connection. "auto": the
            one that runs on this machine, or that of `$RAY_ADDRESS`. Else HOST:PORT of its head.

    Raises:
        UsageError: The address is of another form.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        if address not in (LOCAL, _AUTO):
            _host_and_port(address)
        _set_environment(address)
        self._ray = _import_ray()
        self._folder: str | None = None

    def __enter__(self) -> Self:
        try:
            self._start() if self.address == LOCAL else self._connect()
        except ClusterError:
            self.close()
            raise
        except Exception as error:  # Ray's have no common root
            self.close()
            raise ClusterError(f"Ray at {self.address}: {one_line(error)}; {_cure(self.address)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, the workers, and a cluster that was started here."""
        self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(
            prefix="facepipe-ray-"
        )  # private; Ray opens its own folder to everybody
        self._ray.init(
            num_cpus=compute_threads(),
            object_store_memory=_LOCAL_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=os.path.join(self._folder, "ray"),
            **_quiet(),
        )
        for node in self.nodes():
            if not ipaddress.ip_address(node.address).is_loopback:
                raise ClusterError(
                    f"Ray {self._ray.__version__} listens on {node.address} instead of the loopback address; "
                    "start it where Ray was not imported before, or start the cluster yourself"
                )

    def _connect(self) -> None:
        if self.address != _AUTO:
            _require_listener(self.address)
        self._ray.init(address=self.address, **_quiet())

    def nodes(self) -> list[Node]:
        """Return the machines that are there and give processors.

        Raises:
            ClusterError: The head does not answer.
        """
        try:
            nodes = self._ray.nodes()
        except Exception as error:
            raise ClusterError(f"Ray at {self.address} has gone: {one_line(error)}") from error
        found = [
            Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
            for node in nodes
            if node["Alive"]
        ]
        return [node for node in found if node.processors]

    def store_bytes(self) -> int:
        """Return the size of the object store on this machine, which holds what is sent from here."""
        here = self._ray.get_runtime_context().get_node_id()
        sizes = [node["Resources"] for node in self._ray.nodes() if node["NodeID"] == here]
        return sum(int(size.get("object_store_memory", 0)) for size in sizes)

    def start_worker(self, worker: type[Any], node: Node, processors: int, calls: int) -> Any:
        """Start a process on a node.

        Args:
            worker: Its class.
            node: Where.
            processors: Of the node, for this process.
            calls: How many it answers side by side.

        Returns:
            An actor: `actor.method.remote(...)` calls it.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._ray.remote(worker).options(
            num_cpus=processors,
            max_concurrency=calls,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        return actor.remote()

    def stop_worker(self, actor: Any) -> None:
        """End a process, whatever it does."""
        with suppress(Exception):  # of any class; the worker ends with the connection in any case
            self._ray.kill(actor, no_restart=True)


def is_lost_worker(error: BaseException) -> bool:
    """Whether a call failed because its worker or node has gone, and not by what the worker raised."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def is_death(error: BaseException) -> bool:
    """Whether a lost worker is known to have died, by whatever cause."""
    from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

    return isinstance(error, (ActorDiedError, OutOfMemoryError, WorkerCrashedError))


def raised_there(error: BaseException) -> BaseException:
    """Return what the worker raised, of an error of a call."""
    from ray.exceptions import RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def last_line(error: BaseException) -> str:
    """Return the line of Ray's long messages that names the cause: the last one with an error."""
    lines = [_COLOURS.sub("", line).strip() for line in str(error).splitlines()]
    return one_line(
        next((line for line in reversed(lines) if "Error: " in line), lines[0] if lines else error)
    )


def _import_ray() -> Any:
    try:
        import ray
        from ray._private import worker
    except ImportError as error:
        raise MissingExtraError("a batch over a cluster", "ray") from error
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    worker._worker_logs_enabled = False  # else it prints the deaths of workers, which are handled, to stdout
    return ray


def _set_environment(address: str) -> None:
    """Have nothing sent to Ray's makers; of a local cluster, have it listen here only and demand a secret.

    Ray reads that when it is imported.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will change
    if address == LOCAL and "ray" not in sys.modules:
        for name, value in _PRIVATE.items():
            os.environ.setdefault(name, value)
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _quiet() -> dict[str, Any]:
    return {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UsageError(f"--ray: expected local, auto or HOST:PORT of the cluster's head, got {address!r}")
    return host.strip("[]"), int(port)


def _require_listener(address: str) -> None:
    """Fail at once where Ray would try for a minute."""
    try:
        socket.create_connection(_host_and_port(address), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"no Ray at {address} ({reason}); {_cure(address)}") from error


def _cure(address: str) -> str:
    if address == LOCAL:
        return "analyze without --ray"
    return (
        "start it (`ray start --head` there, `ray start --address=HOST:PORT` on every node, this machine "
        "included), and use the same versions of Python and Ray everywhere"
    )
