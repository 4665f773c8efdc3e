"""Real servers in processes of their own, and what asks them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from facepipe.core.faces import UInt8Array

_START_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """A running `facepipe serve`.

    Attributes:
        url: Where it listens.
        process: The command.
        log: The file of its stderr.
        client: Sends requests to it.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client

    def wait_until_ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def stop(self) -> int:
        """Stop it by SIGTERM; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def serve_command(gallery: Path | str, *options: object) -> list[str]:
    """Return the command line of a server on a free port."""
    command = [sys.executable, "-m", "facepipe.cli", "serve", "--gallery", gallery, "--port", 0, *options]
    return [str(word) for word in command]


def start(gallery: Path | str, *options: object, log: Path) -> Server:
    """Start a server; it need not be ready yet."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FACEPIPE_HOME": str(log.parent)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            serve_command(gallery, *options), stderr=stderr, env=environment, start_new_session=True
        )
    url = _url_in(log, process)
    return Server(url, process, log, httpx.Client(base_url=url, timeout=30.0))


def _url_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://"):
                return word
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text()}")


@contextmanager
def running(gallery: Path | str, *options: object, log: Path) -> Iterator[Server]:
    """Run a server; in the end it is killed with all its workers."""
    server = start(gallery, *options, log=log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.client.close()
        kill(server)


def kill(server: Server) -> None:
    """Kill a server and its workers."""
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(30)


def as_jpeg(rgb: UInt8Array) -> bytes:
    """Return a photo as the bytes of a JPEG file."""
    stream = BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def raw(photo: bytes) -> dict[str, Any]:
    """Return the arguments of a request whose body is a photo."""
    return {"content": photo, "headers": {"Content-Type": "image/jpeg"}}


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return answer.status_code, answer.json()["code"]
