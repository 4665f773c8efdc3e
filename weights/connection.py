"""Download of one file by http or https, from servers that may be slow, faulty or hostile."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from facepipe.core.errors import WeightsError, one_line

Progress = Callable[[int, int | None], None]
"""Called with the bytes received and the bytes of the whole file (None: not known)."""

OFFLINE_CURE = "or put the file into a folder and name that folder in FACEPIPE_OFFLINE_WEIGHTS"
_CHUNK_BYTES = 1 << 16
_REDIRECTIONS_MAX = 5
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_WORTH_A_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Limits of a download.

    Attributes:
        timeout_s: Longest wait for the next bytes, in seconds.
        total_s: Longest time of the whole download with all attempts, in seconds.
        retries: Further attempts after a lost connection or a failure of the server.
        first_wait_s: Pause before the first retry, in seconds; each later one is twice as long.
        min_bytes, max_bytes: A smaller or larger file is refused.
    """

    timeout_s: float = 30.0
    total_s: float = 3600.0
    retries: int = 3
    first_wait_s: float = 1.0
    min_bytes: int = 1 << 20
    max_bytes: int = 1 << 28


class TransientError(Exception):
    """A failure of the connection or the server that may pass."""


class Deadline:
    """A limit of time for connections: it closes those made through it when the time is over.

    A socket's timeout begins again with each byte, so that a server that sends one now and then would keep
    a download waiting without end.
    """

    def __init__(self, total_s: float) -> None:
        self._total_s, self._is_over = total_s, False
        self._connections: list[socket.socket] = []
        self._timer = threading.Timer(total_s, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connection in self._connections:
            connection.close()

    def connect(self, address: tuple[str, int], *arguments: Any) -> socket.socket:
        """Connect like `socket.create_connection`."""
        connection = socket.create_connection(address, *arguments)
        self._connections.append(connection.dup())  # stays valid when TLS takes the connection over
        if self._is_over:
            self._end()
        return connection

    def check(self, url: str) -> None:
        """Raise WeightsError where the time is over."""
        if self._is_over:
            raise WeightsError(
                f"{url}: not there within {self._total_s:g} s. Try another address (--url), {OFFLINE_CURE}"
            )

    def _end(self) -> None:
        self._is_over = True
        for connection in self._connections:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)


def require_address(url: str) -> None:
    """Check that `url` is an http or https address with a host and without name and password.

    Raises:
        WeightsError: It is none.
    """
    shown = one_line(repr(url))
    if not url.isascii() or any(letter <= " " or letter == "\x7f" for letter in url):
        raise WeightsError(
            f"{shown}: expected an http or https address of ASCII letters: write others as %XX"
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # read for its check
    except ValueError as error:
        raise WeightsError(f"{shown}: not an address: {one_line(error)}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WeightsError(f"{shown}: expected an http or https address")
    if "@" in parts.netloc:
        raise WeightsError(f"{parts.hostname}: leave name and password out of the address: they are not sent")


def receive(
    url: str, options: FetchOptions, deadline: Deadline, progress: Progress | None = None
) -> Iterator[bytes]:
    """Yield the file at `url` in pieces, and check its type, encoding and size.

    Raises:
        WeightsError: It is no address, the answer is no whole file as it is, or the time is over.
        TransientError: What may go well another time.
    """
    try:
        with _answer(url, options, deadline) as response:
            _check_answer(url, response, options)
            yield from _counted(response, url, options, progress)
        deadline.check(url)
    except (TransientError, OSError, http.client.HTTPException, ValueError) as error:
        deadline.check(url)
        raise _explained(url, error) from error


def _explained(url: str, error: Exception) -> Exception:
    if isinstance(error, TransientError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        answer = one_line(f"HTTP {error.code} {error.reason}")
        if error.code in _WORTH_A_RETRY:
            return TransientError(f"the server answered {answer}")
        return WeightsError(f"{url}: {answer}. {page_cure(url)}")
    if isinstance(error, urllib.error.URLError):
        return TransientError(f"no connection ({one_line(error.reason)})")
    if isinstance(error, ValueError | http.client.InvalidURL):  # such as a name that no host can have
        return WeightsError(f"{url}: not an address that can be asked: {one_line(error)}")
    return TransientError(f"the connection broke off ({type(error).__name__}: {one_line(error)})")


def page_cure(source: str) -> str:
    """Advice for an address where something else than a weight was found."""
    return f"Open {source} in a browser to see what is wrong, {OFFLINE_CURE}"


# Asking


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """Leave redirections to the caller: urllib would read their bodies to the end, and follow them to ftp."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


class _Connecting(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connect through a deadline."""

    def __init__(self, deadline: Deadline) -> None:
        urllib.request.HTTPSHandler.__init__(self)
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPHandler`."""
        return self.do_open(partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPSHandler`."""
        return self.do_open(partial(self._connection, http.client.HTTPSConnection), request)

    def _connection(self, kind: Callable[..., Any], host: str, **settings: Any) -> Any:
        connection = kind(host, **settings)
        connection._create_connection = self._deadline.connect
        return connection


def _answer(url: str, options: FetchOptions, deadline: Deadline) -> http.client.HTTPResponse:
    """Open `url`, following redirections."""
    opener = urllib.request.build_opener(_NoRedirections, _Connecting(deadline))
    require_address(url)
    asked = url
    for _ in range(_REDIRECTIONS_MAX + 1):
        request = urllib.request.Request(asked, headers={"User-Agent": "facepipe"})
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=options.timeout_s)
            return answer
        except urllib.error.HTTPError as error:
            if error.code not in _REDIRECTING:
                raise
            error.close()
            deadline.check(url)
            asked = _redirected(asked, error.headers.get("Location"))
    raise WeightsError(f"{url}: redirects more than {_REDIRECTIONS_MAX} times. {page_cure(url)}")


def _redirected(asked: str, location: str | None) -> str:
    """Return the address of a redirection, which may not lead from https to http.

    Raises:
        WeightsError: Nowhere, or the redirection leaves https.
    """
    if not location:
        raise WeightsError(f"{asked}: redirects to nowhere. {page_cure(asked)}")
    try:
        following = urljoin(asked, location)
        require_address(following)
    except (ValueError, WeightsError) as error:
        reason = one_line(error)
        raise WeightsError(f"{asked}: redirects to no address that can be asked: {reason}") from error
    if asked.startswith("https:") and not following.startswith("https:"):
        raise WeightsError(
            f"{asked}: redirects to {one_line(following)}, which anyone on the way could change"
        )
    return following


# The answer


def _check_answer(url: str, response: http.client.HTTPResponse, options: FetchOptions) -> None:
    if response.status != 200:
        raise WeightsError(
            f"{url}: the server answered HTTP {response.status}, not the whole file. {page_cure(url)}"
        )
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WeightsError(f"{url}: the server sent the file packed ({one_line(encoding)}). {page_cure(url)}")
    if response.headers.get_content_type() in ("text/html", "application/json"):
        raise WeightsError(f"{url}: the server sent a web page, not a weight file. {page_cure(url)}")
    _check_not_larger(url, response.length or 0, options)


def _check_not_larger(url: str, size: int, options: FetchOptions) -> None:
    if size > options.max_bytes:
        raise WeightsError(f"{url}: larger than the limit of {options.max_bytes} bytes")


def _counted(
    response: http.client.HTTPResponse, url: str, options: FetchOptions, progress: Progress | None
) -> Iterator[bytes]:
    total, received = response.length, 0
    while chunk := response.read1(_CHUNK_BYTES):  # `read` would wait until the chunk is full
        received += len(chunk)
        _check_not_larger(url, received, options)
        if progress is not None:
            progress(received, total)
        yield chunk
    if total is not None and received < total:
        raise TransientError(f"the connection was cut after {received} of {total} bytes")
    if 0 < received < options.min_bytes:
        raise WeightsError(f"{url}: {received} bytes are too few for a weight file. {page_cure(url)}")
