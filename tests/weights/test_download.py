"""Fetching, against a real HTTP server on this computer that behaves and misbehaves on command."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import facepipe.weights.connection as connection
import facepipe.weights.downloads as download
from facepipe.core.errors import WeightsError
from facepipe.weights.connection import FetchOptions
from facepipe.weights.downloads import fetch
from facepipe.weights.published import PUBLISHED

NAME = "published_facenet_mobilenet_128"
FILE = "facenet_mobilenet.pth"


def checkpoint(values: bytes) -> bytes:
    """A zip of the form that torch writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02}.")
        archive.writestr("weights/data/0", values)
    return buffer.getvalue()


BODY = checkpoint(os.urandom(300_000))
SHA256 = hashlib.sha256(BODY).hexdigest()
HASTY = FetchOptions(timeout_s=2.0, total_s=20.0, retries=2, first_wait_s=0.01, min_bytes=1000)

Answer = Callable[[BaseHTTPRequestHandler], None]


def send(
    body: bytes, status: int = 200, kind: str = "application/octet-stream", encoding: str | None = None
) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if encoding:
            request.send_header("Content-Encoding", encoding)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def cut(request: BaseHTTPRequestHandler) -> None:
    """Announce all, send half, hang up."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(BODY[: len(BODY) // 2])


def of_a_senseless_length(request: BaseHTTPRequestHandler) -> None:
    """Announce a length that no number of Python holds, and send all."""
    request.send_response(200)
    request.send_header("Content-Length", "9" * 5000)
    request.end_headers()
    request.wfile.write(BODY)


def cut_chunked(request: BaseHTTPRequestHandler) -> None:
    """No length announced; hang up in the middle of a chunk."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"40000\r\n" + BODY[:1000])


def hang_up(request: BaseHTTPRequestHandler) -> None:
    """Not even a status line."""


def stall(request: BaseHTTPRequestHandler) -> None:
    """Send half of the body, then nothing for longer than the client's patience."""
    cut(request)
    time.sleep(1.0)


def without_length(request: BaseHTTPRequestHandler, body: bytes = BODY) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(body)


def redirect_to(place: str | None, status: int = 302) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        if place is not None:
            request.send_header("Location", place)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def until_refused(request: BaseHTTPRequestHandler, piece: bytes, pause_s: float = 0.0) -> None:
    """Send a piece again and again, for as long as the client takes it."""
    with suppress(OSError):
        for _ in range(10_000):
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(pause_s)


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    until_refused(request, BODY)


def endless_chunks(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    until_refused(request, b"%x\r\n%b\r\n" % (len(BODY), BODY))


def drip_body(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    until_refused(request, b"P", 0.05)


def drip_chunks(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    until_refused(request, b"1\r\nP\r\n", 0.05)


def drip_headers(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    until_refused(request, b"x", 0.05)


def continue_without_end(request: BaseHTTPRequestHandler) -> None:
    until_refused(request, b"HTTP/1.1 100 Continue\r\n\r\n", 0.05)


def drip_redirection(request: BaseHTTPRequestHandler) -> None:
    """A redirection to itself, whose body has no end."""
    request.send_response(302)
    request.send_header("Location", "/again")
    request.end_headers()
    until_refused(request, b"x", 0.05)


def _zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


_OLDER = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""With this torch's older form begins."""


@dataclass
class Server:
    """Answers requests with `answers`, one after the other; the last one is repeated."""

    answers: list[Answer] = field(default_factory=lambda: [send(BODY)])
    paths: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        close_connection = True

        def do_GET(self) -> None:
            state.paths.append(self.path)
            number = min(len(state.paths), len(state.answers)) - 1
            state.answers[number](self)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/release/{FILE}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACEPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACEPIPE_OFFLINE_WEIGHTS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def known_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the registry held the file's hash."""
    monkeypatch.setattr(download, "PUBLISHED", {NAME: replace(PUBLISHED[NAME], sha256=SHA256)})


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_fetched_file_is_whole_and_its_hash_remembered(server: Server, home: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    result = fetch(
        NAME, url=server.url, options=HASTY, progress=lambda done, total: seen.append((done, total))
    )
    next_step = f"facepipe weights import {result.path} --name NAME"
    assert result == download.FetchResult(home / "downloads" / FILE, SHA256, False, "network", next_step)
    assert result.path.read_bytes() == BODY
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))
    assert json.loads((home / "fetched_sha256.json").read_text()) == {NAME: SHA256}
    assert files_in(home) == [f"downloads/{FILE}", "fetched_sha256.json"]


def test_a_file_to_train_with_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", str(tmp_path))
    (tmp_path / "yunet_n_dynamic.onnx").write_bytes(b"\x08\x09\x3a\x00")  # a version, and an empty graph
    result = fetch("yunet_any_size")
    assert result.next_step.endswith(f"--set detail.weights={result.path}")
    (tmp_path / "mobilenetv1_025.pretrained").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=r"mobilenetv1_025\.pretrained: is not a whole PyTorch checkpoint"):
        fetch("imagenet_mobilenet025")


def test_the_registered_address_is_asked_by_default(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(PUBLISHED[NAME], url=server.url)
    monkeypatch.setattr(download, "PUBLISHED", {NAME: entry})
    assert fetch(NAME, options=HASTY).sha256 == SHA256
    assert server.paths == [f"/release/{FILE}"]


def test_a_file_that_is_there_is_used_again(server: Server, tmp_path: Path) -> None:
    first = fetch(NAME, url=server.url, folder=tmp_path / "mine", options=HASTY)
    second = fetch(NAME, url=server.url, folder=tmp_path / "mine", options=HASTY)
    assert second == replace(first, origin="existing", was_known=True)
    assert len(server.paths) == 1


def test_a_damaged_file_that_is_there_is_not_used(server: Server) -> None:
    path = fetch(NAME, url=server.url, options=HASTY).path
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match=rf"{FILE}: sha256 is .* expected {SHA256}.*delete"):
        fetch(NAME, url=server.url, options=HASTY)


def test_a_known_hash_is_checked_and_not_remembered_again(
    server: Server, known_hash: None, home: Path
) -> None:
    assert fetch(NAME, url=server.url, options=HASTY).was_known
    assert files_in(home) == [f"downloads/{FILE}"]


def test_a_wrong_hash_is_refused(server: Server, known_hash: None, home: Path) -> None:
    server.answers = [send(BODY[:-1] + bytes([BODY[-1] ^ 1]))]
    with pytest.raises(WeightsError, match=f"sha256 is .* expected {SHA256}") as caught:
        fetch(NAME, url=server.url, options=HASTY)
    assert server.url in str(caught.value)
    assert len(server.paths) == 1
    assert files_in(home) == []


def test_a_file_that_changed_since_the_first_fetch_is_refused(server: Server, home: Path) -> None:
    fetch(NAME, url=server.url, options=HASTY).path.unlink()
    server.answers = [send(BODY + b"!")]
    with pytest.raises(WeightsError, match=rf"expected {SHA256}.*take {NAME} out of .*fetched_sha256\.json"):
        fetch(NAME, url=server.url, options=HASTY)
    assert files_in(home) == ["fetched_sha256.json"]


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b'{"a": 1}', b"\xff"])
def test_damaged_memory_is_refused(content: bytes, server: Server, home: Path) -> None:
    home.mkdir()
    (home / "fetched_sha256.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"fetched_sha256\.json: .*mend or delete"):
        fetch(NAME, url=server.url, options=HASTY)
    assert server.paths == []


def test_remembering_one_hash_keeps_the_others(server: Server, home: Path) -> None:
    home.mkdir()
    (home / "fetched_sha256.json").write_text('{"another": "abc"}')
    fetch(NAME, url=server.url, options=HASTY)
    assert json.loads((home / "fetched_sha256.json").read_text()) == {"another": "abc", NAME: SHA256}


REFUSED = {
    "html by its type": (send(b"<p>sorry", kind="text/html; charset=utf-8"), "web page"),
    "html by its beginning": (send(b"\xef\xbb\xbf\n <!DOCTYPE html><p>sorry"), "web page"),
    "html without a doctype": (send(b"<HTML><body>sorry"), "web page"),
    "xml": (send(b"<?xml version='1.0'?><Error/>"), "web page"),
    "empty": (send(b""), "is empty"),
    "not found": (send(b"no", status=404), "HTTP 404"),
    "forbidden": (send(b"no", status=403), "HTTP 403"),
    "gone": (send(b"<html>", status=410, kind="text/html"), "HTTP 410"),
    "a part": (send(BODY, status=206), "HTTP 206, not the whole file"),
    "no content": (send(b"", status=204), "HTTP 204, not the whole file"),
    "packed by the server": (send(BODY, encoding="gzip"), "packed"),
    "packed file": (send(gzip.compress(os.urandom(5000))), "not a whole PyTorch checkpoint"),
    "json by its type": (send(b'{"message": "no"}', kind="application/json; charset=utf-8"), "web page"),
    "json by its beginning": (send(b'\n {"message": "' + b"no" * 900), "web page"),
    "small": (send(BODY[:700]), "700 bytes are too few"),
    "small, unannounced": (lambda request: without_length(request, BODY[:700]), "700 bytes are too few"),
    "noise": (send(os.urandom(5000)), "not a whole PyTorch checkpoint"),
    "half a checkpoint": (lambda request: without_length(request, BODY[:150_000]), "not a whole PyTorch"),
    "another archive": (send(_zipped({"readme.txt": os.urandom(5000)})), "not a whole PyTorch checkpoint"),
    "a bomb": (send(_zipped({"a/data.pkl": bytes(3_000_000)}, zipfile.ZIP_DEFLATED)), "not a whole PyTorch"),
    "a changed byte": (send(_changed(checkpoint(os.urandom(90_000)), 9000)), "not a whole PyTorch"),
    "older form, cut": (send(_OLDER + bytes(2000)), "not a whole PyTorch checkpoint"),
    "a body without end": (endless, "larger than the limit of 200000 bytes"),
    "a body in pieces without end": (endless_chunks, "larger than the limit of 200000 bytes"),
    "redirected to nowhere": (redirect_to(None), "redirects to nowhere"),
    "redirected to a file": (redirect_to("file:///etc/passwd"), "expected an http or https address"),
    "redirected to ftp": (redirect_to("ftp://127.0.0.1/x"), "expected an http or https address"),
    "redirected to no address": (redirect_to("http://[::1"), "not an address"),
    "redirected to a senseless port": (redirect_to("http://127.0.0.1:99999/x"), "not an address"),
    "redirected with a password": (
        redirect_to("http://me:secret@127.0.0.1/x"),
        "leave name and password",
    ),
    "too large": (send(BODY), "larger than the limit of 200000 bytes"),
    "too large, senselessly announced": (of_a_senseless_length, "larger than the limit of 200000 bytes"),
    "too large, unannounced": (without_length, "larger than the limit of 200000 bytes"),
}


@pytest.mark.parametrize(("answer", "told"), REFUSED.values(), ids=REFUSED)
def test_what_no_retry_mends_is_refused_at_once(
    answer: Answer, told: str, server: Server, home: Path
) -> None:
    server.answers = [answer]
    with pytest.raises(WeightsError, match=told) as caught:
        fetch(NAME, url=server.url, options=replace(HASTY, max_bytes=200_000))
    assert server.url in str(caught.value)
    assert len(server.paths) == 1
    assert files_in(home) == []


PASSING = {
    "cut": (cut, f"cut after {len(BODY) // 2} of {len(BODY)} bytes"),
    "cut in a chunk": (cut_chunked, "broke off.*IncompleteRead"),
    "silence": (stall, "cut after|broke off"),
    "no answer": (hang_up, "no connection|broke off"),
    "server error": (send(b"", status=500), "HTTP 500"),
    "busy": (send(b"", status=503), "HTTP 503"),
    "too many requests": (send(b"", status=429), "HTTP 429"),
}


@pytest.mark.parametrize(("answer", "_told"), PASSING.values(), ids=PASSING)
def test_a_passing_failure_is_retried(answer: Answer, _told: str, server: Server, home: Path) -> None:
    server.answers = [answer, answer, send(BODY)]
    options = replace(HASTY, timeout_s=0.3)
    assert fetch(NAME, url=server.url, options=options).path.read_bytes() == BODY
    assert len(server.paths) == 3
    assert files_in(home / "downloads") == [FILE]


@pytest.mark.parametrize(("answer", "told"), PASSING.values(), ids=PASSING)
def test_a_failure_that_lasts_is_told(answer: Answer, told: str, server: Server, home: Path) -> None:
    server.answers = [answer]
    with pytest.raises(WeightsError, match=rf"(?:{told}).*tried 3 times.*FACEPIPE_OFFLINE_WEIGHTS"):
        fetch(NAME, url=server.url, options=replace(HASTY, timeout_s=0.3))
    assert len(server.paths) == 3
    assert files_in(home) == []


def test_retries_wait_longer_each_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.answers = [send(b"", status=500)]
    with pytest.raises(WeightsError):
        fetch(NAME, url=server.url, options=FetchOptions(retries=3, first_wait_s=1.0))
    assert waits == [1.0, 2.0, 4.0]


def test_a_server_that_is_down_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/{FILE}"
    with pytest.raises(WeightsError, match=r"no connection .*tried 3 times"):
        fetch(NAME, url=url, options=HASTY)
    assert files_in(home) == []


def test_a_body_without_announced_length_is_taken(server: Server) -> None:
    server.answers = [without_length]
    totals: set[int | None] = set()
    assert fetch(NAME, url=server.url, options=HASTY, progress=lambda _, t: totals.add(t)).sha256 == SHA256
    assert totals == {None}


def test_redirections_are_followed(server: Server) -> None:
    server.answers = [redirect_to("/moved"), send(BODY)]
    assert fetch(NAME, url=server.url, options=HASTY).sha256 == SHA256
    assert server.paths == [f"/release/{FILE}", "/moved"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirections_end(status: int, server: Server, home: Path) -> None:
    server.answers = [redirect_to(f"/{i}", status) for i in range(9)]
    with pytest.raises(WeightsError, match="redirects more than 5 times"):
        fetch(NAME, url=server.url, options=HASTY)
    assert len(server.paths) == 6
    server.answers = [*server.answers[:5], send(BODY)]
    server.paths.clear()
    assert fetch(NAME, url=server.url, options=HASTY).sha256 == SHA256


def test_a_redirection_may_not_leave_https() -> None:
    assert connection._redirected("https://a/x", "https://b/y") == "https://b/y"
    assert connection._redirected("https://a/x", "/y") == "https://a/y"
    assert connection._redirected("http://a/x", "http://b/y") == "http://b/y"
    with pytest.raises(WeightsError, match="redirects to http://b/y"):
        connection._redirected("https://a/x", "http://b/y")


DRIPPING = {
    "body": drip_body,
    "body in pieces": drip_chunks,
    "headers": drip_headers,
    "promises": continue_without_end,
}


@pytest.mark.parametrize("answer", DRIPPING.values(), ids=DRIPPING)
def test_a_server_that_sends_a_little_at_a_time_is_left(answer: Answer, server: Server, home: Path) -> None:
    server.answers = [answer]
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"not there within 0\.6 s"):
        fetch(NAME, url=server.url, options=replace(HASTY, total_s=0.6))
    assert time.monotonic() - began < 5
    assert len(server.paths) == 1
    assert files_in(home) == []


def test_a_handshake_has_an_end_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of TLS that comes byte by byte."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            client, _ = listening.accept()
            with client, suppress(OSError):
                client.sendall(b"\x16\x03\x03\x40\x00")
                for _ in range(200):
                    client.sendall(b"\0")
                    time.sleep(0.05)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/{FILE}"
        with pytest.raises(WeightsError, match=r"not there within 0\.6 s"):
            fetch(NAME, url=url, options=replace(HASTY, total_s=0.6))
        thread.join()


def test_the_body_of_a_redirection_is_not_waited_for(server: Server) -> None:
    server.answers = [drip_redirection, send(BODY)]
    assert fetch(NAME, url=server.url, options=HASTY).sha256 == SHA256


def test_a_hash_that_is_known_goes_before_the_form(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where none is known, the form of the file has to vouch for it."""
    other = os.urandom(5000)
    known = replace(PUBLISHED[NAME], sha256=hashlib.sha256(other).hexdigest())
    monkeypatch.setattr(download, "PUBLISHED", {NAME: known})
    server.answers = [send(other)]
    assert fetch(NAME, url=server.url, options=HASTY).path.read_bytes() == other


def test_a_file_that_is_no_weight_is_not_remembered(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / FILE).write_bytes(b"something" * 500)
    with pytest.raises(WeightsError, match=f"{FILE}: is not a whole PyTorch checkpoint"):
        fetch(NAME)
    (home / "downloads" / FILE).unlink()
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", str(tmp_path))
    (tmp_path / FILE).write_bytes(b"something" * 500)
    with pytest.raises(WeightsError, match=f"{FILE}: is not a whole PyTorch checkpoint"):
        fetch(NAME)
    assert files_in(home) == []


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older form"])
def test_both_forms_of_torch_are_taken(zipped: bool, server: Server) -> None:
    torch = pytest.importorskip("torch", reason="writes checkpoints")
    buffer = io.BytesIO()
    torch.save({"a": torch.rand(3000)}, buffer, _use_new_zipfile_serialization=zipped)
    server.answers = [send(buffer.getvalue())]
    assert not fetch(NAME, url=server.url, options=HASTY).was_known


NO_ADDRESSES = [
    *("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "no address", "", "//host/x", "http:", "http://"),
    *("http:///x", "http://:80/x", "http://host:99999/x", "http://host:-1/x", "http://host:port/x"),
    *("http://host:80:80/x", "http://[::1", "http://[nothing]/x", "http://]/x", "http://me:secret@host/x"),
    *("http://@host/x", "http://h\u00f6st/x", "http://host/\u00e9", "http://h\u2100st/x", "http://ho st/x"),
    *(
        "http://host/a b",
        "http://host/x\n",
        "http://ho\rst/x",
        "http://host/\0",
        "\thttp://host/x",
        "http://\ud800/",
    ),
]
NOBODY = [
    "http://[fe80::1%25eth0]/x",
    "http://[::1%nothing]:1/x",
    "http://a..b/x",
    f"http://{'a' * 64}.b/",
    "http://h:0/",
]


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_only_web_addresses_are_asked(url: str, home: Path) -> None:
    with pytest.raises(WeightsError, match=r"address|password") as caught:
        fetch(NAME, url=url, options=HASTY)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert files_in(home) == []


@pytest.mark.parametrize("url", NOBODY)
def test_addresses_of_nobody_are_told(url: str, home: Path, no_network: None) -> None:
    with pytest.raises(WeightsError, match=r"no connection|not an address") as caught:
        fetch(NAME, url=url, options=replace(HASTY, retries=0))
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are turned into bytes as the system does, and nobody is asked."""

    def refused(host: str, *_: object, **__: object) -> None:
        host.encode("idna")
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("no_proxy", "*")


LETTERS = [
    "a" * 70,
    "\u2100",
    "\u00e9",
    "\ud800",
    "\n",
    " ",
    "\0",
    "[",
    "]",
    "@",
    "/",
    "\\",
    "?",
    "#",
    ";",
    "-",
]
WORDS = ["http://", "https://", "host", "::1", "%25", "%", ":", "80", "99999", "..", ".", "xn--", "0x7f.1"]
ADDRESS_PARTS = st.lists(
    st.sampled_from([*LETTERS, *WORDS]),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ADDRESS_PARTS | st.text(max_size=20).map(lambda text: f"http://{text}"))
def test_any_address_is_one_line(no_network: None, url: str) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(NAME, url=url, options=FetchOptions(retries=0))
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n"), max_size=25) | ADDRESS_PARTS)
def test_any_redirection_is_one_line(no_network: None, place: str) -> None:
    try:
        connection.require_address(connection._redirected("https://host/x", place))
    except WeightsError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_the_offline_folder_comes_before_the_network(
    server: Server, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = tmp_path / "carried"
    carried.mkdir()
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", str(carried))
    assert fetch(NAME, url=server.url, folder=tmp_path / "a", options=HASTY).origin == "network"
    (carried / FILE).write_bytes(BODY)
    result = fetch(NAME, url=server.url, options=HASTY)
    path = home / "downloads" / FILE
    assert (result.path, result.sha256, result.was_known, result.origin) == (path, SHA256, True, "offline")
    assert result.path.read_bytes() == BODY
    assert len(server.paths) == 1


def test_the_offline_file_is_checked_like_any_other(
    known_hash: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACEPIPE_OFFLINE_WEIGHTS", str(tmp_path))
    for content, told in ((BODY[:-1], f"expected {SHA256}"), (b"<html>", "web page"), (b"", "is empty")):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{tmp_path / FILE}: .*{told}"):
            fetch(NAME)
    assert files_in(home) == []


def test_a_file_in_the_folder_s_place_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=rf"{FILE}: can't be written .*choose another folder"):
        fetch(NAME, url=server.url, folder=tmp_path / "file", options=HASTY)


def test_a_folder_in_the_file_s_place_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(WeightsError, match=f"{FILE}: can't read"):
        fetch(NAME, url=server.url, folder=tmp_path, options=HASTY)


@pytest.fixture
def no_rights() -> Iterator[Path]:
    """A folder that this process may read and not write; the superuser steps down for as long."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    superuser = hasattr(os, "geteuid") and os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if superuser:
            os.seteuid(0)
        folder.chmod(0o755)
        folder.rmdir()


@pytest.mark.skipif(os.name == "nt", reason="folders have no such rights on Windows")
def test_a_read_only_folder_is_told(server: Server, no_rights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEPIPE_HOME", str(no_rights))
    with pytest.raises(WeightsError, match=r"can't be written .*[Pp]ermission denied"):
        fetch(NAME, url=server.url, folder=no_rights, options=HASTY)
    with pytest.raises(WeightsError, match=r"can't be written .*[Pp]ermission denied"):
        fetch(NAME, url=server.url, options=HASTY)
    assert files_in(no_rights) == []


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_fetch_leaves_no_half_file(server: Server, home: Path) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        cut(request)
        time.sleep(20 if len(server.paths) == 1 else 0)

    server.answers = [endless, send(BODY)]
    script = (
        "from facepipe.weights.downloads import fetch, FetchOptions;"
        f"fetch({NAME!r}, url={server.url!r}, options=FetchOptions(min_bytes=1))"
    )
    root = Path(download.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in (home / "downloads").glob(".facepipe-*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert not (home / "downloads" / FILE).exists()
    assert fetch(NAME, url=server.url, options=HASTY).path.read_bytes() == BODY
    assert [path.name for path in (home / "downloads").iterdir()] == [FILE]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=rf"there are {NAME}.*Did you mean {NAME}"):
        fetch("published_facenet_mobilnet_128")
