"""Several workers on one gallery: changes are seen at once, removed people stay away, kills lose nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_helpers import Server, raw, running

from benchmarks.server import kill_under_load


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two workers."""
    folder = tmp_path_factory.mktemp("pair")
    with running(folder / "gallery", "--workers", 2, log=folder / "log") as server:
        yield server


def _connections(server: Server, count: int) -> list[httpx.Client]:
    """Clients with connections of their own, so that both workers have some."""
    return [httpx.Client(base_url=server.url, timeout=30) for _ in range(count)]


def _names(client: httpx.Client, photo: bytes) -> list[str | None]:
    return [face["name"] for face in client.post("/v1/identify", **raw(photo)).json()["faces"]]


def test_every_worker_sees_a_change_at_once(pair: Server, portrait: bytes) -> None:
    clients = _connections(pair, 6)
    for number in range(3):
        name = f"Eileen {number}"
        clients[0].post("/v1/people", params={"name": name}, **raw(portrait)).raise_for_status()
        assert [_names(client, portrait) for client in clients] == [[name]] * 6
        clients[1].delete(f"/v1/people/{name}").raise_for_status()
        assert [_names(client, portrait) for client in clients] == [[None]] * 6


def test_a_removed_person_is_never_named_again(pair: Server, portrait: bytes) -> None:
    """Requests under way everywhere: none that begins after the removal was acknowledged gives the name."""
    manager, *askers = _connections(pair, 5)
    removed_at: dict[str, float] = {}
    seen: list[tuple[float, str | None]] = []
    stop = threading.Event()

    def ask(client: httpx.Client) -> None:
        while not stop.is_set():
            began = time.monotonic()
            seen.extend((began, name) for name in _names(client, portrait))

    with ThreadPoolExecutor(len(askers)) as pool:
        asking = [pool.submit(ask, client) for client in askers]
        for number in range(8):
            name = f"Removed {number}"
            manager.post("/v1/people", params={"name": name}, **raw(portrait)).raise_for_status()
            time.sleep(0.2)
            manager.delete(f"/v1/people/{name}").raise_for_status()
            removed_at[name] = time.monotonic()
        time.sleep(0.3)
        stop.set()
        for done in asking:
            done.result()
    assert len({name for _, name in seen if name}) >= 4
    assert [name for began, name in seen if name and began > removed_at[name]] == []


def test_a_photo_under_way_does_not_bring_a_removed_person_back(pair: Server, portrait: bytes) -> None:
    manager, adder = _connections(pair, 2)
    for _ in range(5):
        manager.post("/v1/people?name=Gone", **raw(portrait)).raise_for_status()
        with ThreadPoolExecutor(1) as pool:
            adding = pool.submit(adder.post, "/v1/people/Gone/photos?force=true", **raw(portrait))
            manager.delete("/v1/people/Gone").raise_for_status()
            assert adding.result().status_code in (201, 404)
        assert manager.get("/v1/people/Gone").status_code == 404


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with running(tmp_path / "gallery", "--workers", 2, log=tmp_path / "log") as server:
        server.process.kill()
        with pytest.raises(httpx.TransportError):
            _ask_for(20, server)


def _ask_for(seconds: float, server: Server) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        httpx.get(f"{server.url}/healthz", timeout=5)
        time.sleep(0.1)


def test_metrics_are_of_all_workers(pair: Server) -> None:
    def total() -> float:
        text = pair.client.get("/metrics").text
        found = re.search(r'facepipe_requests_total\{[^}]*route="/healthz"[^}]*\} ([0-9.]+)', text)
        return float(found[1]) if found else 0.0

    before = total()
    for client in _connections(pair, 8):
        client.get("/healthz").raise_for_status()
    assert total() == before + 8


def test_no_acknowledged_change_is_lost_when_the_server_is_killed(memory_folder: Path) -> None:
    assert kill_under_load(memory_folder / "gallery", count=2, clients=3, workers=2) >= 2
