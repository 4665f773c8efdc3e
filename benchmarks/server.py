"""How fast is `facepipe serve`, beside `batch` on the same photos, and does its memory stay flat?

    python -m benchmarks.server throughput [--source DIR] [--photos N] [--clients N] [--workers N]
    python -m benchmarks.server memory [--requests N]
    python -m benchmarks.server kills [--kills N]

`throughput` makes the folder of `benchmarks.pipeline` and names the faces of all photos twice: with `batch`,
and by requests of so many clients to a server. Meanwhile one more client asks for the list of people, 20
times a second. Where other programs keep the processors busy, compare the processor time of a photo.
`memory` sends requests of all kinds to one worker and says how large it was on the way.
`kills` kills a server with SIGKILL, again and again, while clients change its gallery, and checks that every
change that was acknowledged is there.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import numpy as np
from PIL import Image
from skimage import data

from benchmarks.pipeline import fitted, make_folder
from facepipe.core.processors import granted_processors

_START_S = 60.0
_LIGHT_EVERY_S = 0.05
_CHANGES, _KILLED_WITHIN_S = 12, 0.3
"""A server is killed after so many changes at most, and within so long after them."""
_NO_LIMITS = ("--requests-per-minute", 10**9, "--max-faces", 10**4)
_JPEG = {"Content-Type": "image/jpeg"}


@dataclass(slots=True)
class Client:
    """One connection to a server, opened again when it breaks."""

    port: int
    connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises:
            OSError: The server is gone.
        """
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self.connection.connect()
            self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.connection.request(method, path, body, _JPEG if body else {})
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            raise ConnectionError(str(error)) from error


@contextmanager
def served(gallery: Path, port: int, *options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends."""
    words = ["--gallery", gallery, "--port", port, *_NO_LIMITS, *options]
    command = [sys.executable, "-m", "facepipe.cli", "serve", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_ready(port, process)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            if Client(port).request("GET", "/readyz")[0] == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the server did not start")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def jpeg(size_wh: tuple[int, int]) -> bytes:
    """Return the portrait of scikit-image in a size."""
    stream = BytesIO()
    portrait = np.asarray(data.astronaut(), np.uint8)
    Image.fromarray(fitted(portrait, size_wh)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _resident_mb(process_id: int) -> float:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("Linux only")


@click.group()
def main() -> None:
    """Measure the server."""


# Throughput


@main.command()
@click.option(
    "--source", type=click.Path(path_type=Path, exists=True), help="Photos to make the folder from."
)
@click.option("--photos", default=200, show_default=True)
@click.option("--clients", default=8, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--rounds", default=1, show_default=True)
def throughput(source: Path | None, photos: int, clients: int, workers: int, rounds: int) -> None:
    """Photos a second of a server and of `batch`; a light request's time meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder / "photos", source, photos)
        files = [file.read_bytes() for file in sorted((folder / "photos").iterdir())]
        enroll_portrait(folder / "gallery")
        for _ in range(rounds):
            by_batch = _batch_speed(folder)
            by_server, light_s = _server_speed(folder / "gallery", files, clients, workers)
            light = np.percentile(light_s, [50, 99]) * 1000
            click.echo(f"batch {by_batch}; server with {clients} clients {by_server}")
            click.echo(f"light request under load: median {light[0]:.1f} ms, p99 {light[1]:.1f} ms")


@dataclass(frozen=True, slots=True)
class Speed:
    """Photos a second, and the processor time of one."""

    photos_per_s: float
    processor_s: float

    def __str__(self) -> str:
        return f"{self.photos_per_s:.1f} photos/s, {1000 * self.processor_s:.0f} ms of a processor each"


def enroll_portrait(gallery: Path) -> None:
    """Make a gallery with one person."""
    from facepipe.gallery import NewTemplate
    from facepipe.pipeline import FacePipeline

    with FacePipeline.load(gallery, create_gallery=True) as pipeline:
        faces = pipeline.embed(np.asarray(data.astronaut(), np.uint8))
        assert faces.embeddings is not None
        assert pipeline.gallery is not None
        pipeline.gallery.add("Eileen Collins", [NewTemplate(embedding=faces.embeddings[0])])


def _batch_speed(folder: Path) -> Speed:
    words = [sys.executable, "-m", "benchmarks.pipeline", "--contestant", "batch", "--work", str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    seconds, photos = figures["seconds"], figures["photos"]
    return Speed(photos / seconds, figures["busy"] * granted_processors() * seconds / photos)


def _server_speed(
    gallery: Path, files: Sequence[bytes], clients: int, workers: int
) -> tuple[Speed, list[float]]:
    """The speed, and the seconds of each light request."""
    port, ended, light_s = free_port(), threading.Event(), list[float]()

    def ask_light() -> None:
        client = Client(port)
        while not ended.wait(_LIGHT_EVERY_S):
            started = time.perf_counter()
            assert client.request("GET", "/v1/people?limit=10")[0] == 200
            light_s.append(time.perf_counter() - started)

    with served(gallery, port, "--workers", workers) as process:
        identify_all(port, files[: 4 * clients], clients)  # networks and caches are warm from here on
        asking = threading.Thread(target=ask_light)
        asking.start()
        started, worked_s = time.perf_counter(), _processor_s(process.pid)
        identify_all(port, files, clients)
        taken_s, worked_s = time.perf_counter() - started, _processor_s(process.pid) - worked_s
        ended.set()
        asking.join()
    return Speed(len(files) / taken_s, worked_s / len(files)), light_s


def _processor_s(parent_id: int) -> float:
    """Processor time so far of a process and its children."""
    children = Path(f"/proc/{parent_id}/task/{parent_id}/children").read_text().split()
    ticks = 0
    for process_id in (parent_id, *children):
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def identify_all(port: int, files: Sequence[bytes], clients: int) -> None:
    """Send each photo once; every client sends its next one when the last is answered."""
    waiting, lock = iter(files), threading.Lock()

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            status, answer = client.request("POST", "/v1/identify", body)
            assert status == 200, answer

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(work) for _ in range(clients)]:
            done.result()


# Memory


@main.command()
@click.option("--requests", default=20_000, show_default=True)
@click.option("--clients", default=8, show_default=True)
def memory(requests: int, clients: int) -> None:
    """Size of a worker over many requests of all kinds."""
    photos = [jpeg(size) for size in ((96, 96), (128, 128), (160, 120), (160, 160), (200, 150))]
    kinds: list[Callable[[Client], object]] = [
        lambda client: client.request("GET", "/v1/people"),
        lambda client: client.request("GET", "/v1/nothing/there"),
        lambda client: client.request("POST", "/v1/detect", b"no photo"),
        lambda client: client.request("GET", "/metrics"),
        *(lambda client, photo=photo: client.request("POST", "/v1/identify", photo) for photo in photos),
    ]
    dice, port = random.Random(0), free_port()
    with tempfile.TemporaryDirectory() as name:
        enroll_portrait(Path(name) / "gallery")
        with served(Path(name) / "gallery", port) as process, ThreadPoolExecutor(clients) as pool:
            step = max(1, requests // 20)
            for done in range(0, requests, step):
                plan = [dice.choice(kinds) for _ in range(step)]
                list(pool.map(lambda kind: kind(_client_of_thread(port)), plan))
                size_mb = _resident_mb(process.pid)
                click.echo(f"{done + step:6d} requests: {size_mb:.0f} MB")


_of_thread = threading.local()


def _client_of_thread(port: int) -> Client:
    if not hasattr(_of_thread, "client"):
        _of_thread.client = Client(port)
    client: Client = _of_thread.client
    return client


# Kills


@main.command()
@click.option("--kills", "count", default=50, show_default=True)
@click.option("--clients", default=4, show_default=True)
@click.option("--workers", default=2, show_default=True)
def kills(count: int, clients: int, workers: int) -> None:
    """Kill a server under load; every acknowledged change must be there."""
    with tempfile.TemporaryDirectory() as name:
        acknowledged = kill_under_load(Path(name) / "gallery", count, clients, workers)
    click.echo(f"{count} kills, {acknowledged} acknowledged changes, none lost, no removed person came back")


def kill_under_load(gallery: Path, count: int, clients: int, workers: int, seed: int = 0) -> int:
    """Kill a server again and again while clients change its gallery; returns the changes it acknowledged.

    Raises:
        AssertionError: An acknowledged change is missing, or a removed person is there.
    """
    dice, photo, port = random.Random(seed), jpeg((256, 256)), free_port()
    writers = [_Writer(number, port, photo) for number in range(clients)]
    for _ in range(count):
        with served(gallery, port, "--workers", workers) as process, ThreadPoolExecutor(clients) as pool:
            stop = threading.Event()
            working = [pool.submit(writer.work, stop) for writer in writers]
            _wait_for_changes(writers, dice.randint(1, _CHANGES))
            time.sleep(dice.uniform(0, _KILLED_WITHIN_S))
            os.killpg(process.pid, signal.SIGKILL)
            stop.set()
            for done in working:
                done.result()
        for writer in writers:
            writer.check(_people_in(gallery))
    return sum(writer.acknowledged for writer in writers)


def _wait_for_changes(writers: Sequence[_Writer], count: int) -> None:
    before, deadline = sum(writer.acknowledged for writer in writers), time.monotonic() + _START_S
    while sum(writer.acknowledged for writer in writers) < before + count:
        assert time.monotonic() < deadline, "no change was acknowledged"
        time.sleep(0.005)


def _people_in(gallery: Path) -> set[str]:
    from facepipe.gallery import Gallery

    with Gallery.open(gallery) as opened:
        return {person.name for person in opened.people()}


class _Writer:
    """Creates, renames and removes people of its own, and remembers what was acknowledged."""

    def __init__(self, number: int, port: int, photo: bytes) -> None:
        self._number, self._port, self._photo = number, port, photo
        self._next = self.acknowledged = 0
        self._there: set[str] = set()
        self._gone: set[str] = set()
        self._unsure: set[str] = set()
        """Changes whose answer did not come: either way is right."""

    def work(self, stop: threading.Event) -> None:
        """Change people until the server is gone."""
        client = Client(self._port)
        with suppress(OSError):
            while not stop.is_set():
                self._create(client)
                if self._next % 3 == 0:
                    self._remove(client)

    def _create(self, client: Client) -> None:
        name = f"person {self._number}.{self._next}"
        self._next += 1
        self._unsure.add(name)
        status, answer = client.request("POST", f"/v1/people?name={quote(name)}", self._photo)
        assert status == 201, answer
        self._unsure.discard(name)
        self._there.add(name)
        self.acknowledged += 1

    def _remove(self, client: Client) -> None:
        name = min(self._there)
        self._there.discard(name)
        self._unsure.add(name)
        status, answer = client.request("DELETE", f"/v1/people/{quote(name)}")
        assert status == 200, answer
        self._unsure.discard(name)
        self._gone.add(name)
        self.acknowledged += 1

    def check(self, people: set[str]) -> None:
        """Compare with the people that are there."""
        assert self._there <= people, self._there - people
        assert not self._gone & people, self._gone & people


if __name__ == "__main__":
    main()
