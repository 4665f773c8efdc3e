"""Limits: what is too large, too much, too often or too slow gets a 4xx, and the others their answers."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from server_helpers import Server, as_jpeg, code_of, raw, running

from facepipe.core.faces import UInt8Array
from facepipe.server.admission import Rates


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small limits."""
    folder = tmp_path_factory.mktemp("small")
    options = {
        "--max-body-mb": 0.5,
        "--max-faces": 1,
        "--queue": 2,
        "--max-megapixels": 1,
        "--requests-per-minute": 100,
        "--body-time-limit": 1,
    }
    words = [word for option in options.items() for word in option]
    with running(folder / "gallery", *words, "--log-json", log=folder / "log") as server:
        yield server


def test_too_large_a_body_is_refused_before_it_is_read(small: Server) -> None:
    answer = small.client.post("/v1/detect", **raw(bytes(600_000)))
    assert code_of(answer) == (413, "body_too_large")
    address = httpx.URL(small.url)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.putrequest("POST", "/v1/detect")
    connection.putheader("Content-Length", str(10**15))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_a_body_in_chunks_is_limited_too(small: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield bytes(10_000)

    headers = {"Content-Type": "image/jpeg"}
    assert small.client.post("/v1/detect", content=chunks(), headers=headers).status_code == 413


def test_too_many_pixels_and_faces_are_refused(small: Server, astronaut: UInt8Array) -> None:
    large = as_jpeg(np.full((1001, 1000, 3), 128, np.uint8))
    answer = small.client.post("/v1/detect", **raw(large))
    assert code_of(answer) == (422, "photo")
    assert "more than 1,000,000 pixels" in answer.json()["message"]
    two = as_jpeg(np.concatenate([astronaut, astronaut], axis=1))
    assert code_of(small.client.post("/v1/detect", **raw(two))) == (422, "too_many_faces")


def test_a_full_queue_refuses_and_the_others_are_answered(small: Server, portrait: bytes) -> None:
    def detect(_: int) -> tuple[int, str | None]:
        answer = httpx.post(f"{small.url}/v1/detect", **raw(portrait), timeout=30)
        return answer.status_code, answer.headers.get("Retry-After")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(detect, range(32)))
    assert set(answers) == {(200, None), (429, "1")}


def test_a_body_that_does_not_arrive_is_given_up(small: Server) -> None:
    address = httpx.URL(small.url)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 1000\r\n\r\nx"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_too_many_requests_a_minute_are_refused(small: Server) -> None:
    answers = (small.client.get("/v1/people") for _ in range(2000))
    refused = next(answer for answer in answers if answer.status_code != 200)
    assert code_of(refused) == (429, "too_many_requests")
    assert refused.headers["Retry-After"] == "1"


def test_callers_are_counted_apart_and_forgiven_as_time_passes() -> None:
    rates = Rates(per_minute=2)
    assert [rates.wait_s("a", now_s=0.0) for _ in range(3)] == [0, 0, 30]
    assert rates.wait_s("b", now_s=0.0) == 0
    assert rates.wait_s("a", now_s=29.0) == 1
    assert [rates.wait_s("a", now_s=30.0) for _ in range(2)] == [0, 30]
    assert [rates.wait_s("a", now_s=1e6) for _ in range(3)] == [0, 0, 30]


def test_requests_that_are_being_answered_end_before_the_server_does(
    stopping: Server, portrait: bytes
) -> None:
    started = threading.Barrier(9)

    def identify(_: int) -> int:
        with httpx.Client(base_url=stopping.url, timeout=30) as client:
            client.get("/healthz")
            started.wait()
            return client.post("/v1/identify", **raw(portrait)).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(identify, number) for number in range(8)]
        started.wait()
        time.sleep(0.05)
        stopping.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [200] * 8
    assert stopping.process.wait(30) == 0
    logged = [json.loads(line) for line in stopping.log.read_text().splitlines()]
    assert logged[-1]["message"] == "stopped"


@pytest.fixture
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to be stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    with running(folder / "gallery", "--log-json", log=folder / "log") as server:
        yield server
