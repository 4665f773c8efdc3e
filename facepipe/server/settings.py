"""Settings of the server: where it listens, what it serves, and its limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from facepipe.core.errors import UsageError
from facepipe.gallery.address import GalleryAddress

SERVER_FILE = "server.sqlite3"
"""In the gallery's folder: hashes of API keys, and subjects without faces."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request, and all requests of a worker together, may take. Beyond it they get a 4xx.

    Attributes:
        body_bytes: Of one request.
        waiting_bytes: Of the bodies that a worker holds at once.
        max_pixels: Of a photo.
        max_faces: Of a photo.
        queue: Photos of a worker that may wait for the networks.
        requests_per_minute: Of one key, or of one address without a key, in each worker.
        body_s: Until a body has arrived.
        work_s: Until a photo has been analyzed.
    """

    body_bytes: int = 20_000_000
    waiting_bytes: int = 200_000_000
    max_pixels: int = 50_000_000
    max_faces: int = 500
    queue: int = 64
    requests_per_minute: int = 6000
    body_s: float = 30.0
    work_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise UsageError(f"{name.replace('_', ' ')}: expected more than 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server listens and what it serves.

    Attributes:
        gallery: Folder or URL of the gallery.
        host: Address or name to listen on.
        port: 0: any free one.
        workers: Processes.
        allowed_hosts: Names, besides `localhost`, under which the server is called; addresses always are.
        proxies: Addresses of reverse proxies, whose `X-Forwarded-For` is believed.
        libraries: Folders of batches (`--out`) whose state may be read; no two of one name.
        compreface: Whether CompreFace's routes are served too.
        log_json: Log as lines of JSON.
        limits: See `Limits`.

    Raises:
        UsageError: Two libraries have one name.
    """

    gallery: GalleryAddress
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    allowed_hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()
    compreface: bool = False
    log_json: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        names = [folder.resolve().name for folder in self.libraries]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{twice[0]!r} is the name of two libraries: rename one, or give one")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Return whether a host is an IP address and no name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
